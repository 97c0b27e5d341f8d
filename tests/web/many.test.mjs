// Very many events: the page stays as quick as it was, and its memory is bounded. The server is a stand-in for the agent,
// that sends as fast as the page takes; the page is the one that the agent carries.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import http from "node:http";
import { test } from "node:test";
import { openPage, startBrowser } from "./parts.mjs";

/** What RFC 6455 has a server add to a client's key. */
const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const EVENTS = 50_000;
/** So many that rows have to go: a row has two events. */
const MANY = 120_000;
const MAX_ROWS = 50_000;

function varint(value) {
  const bytes = [];
  for (let left = BigInt(value); ; left >>= 7n) {
    if (left < 128n) return Buffer.from([...bytes, Number(left)]);
    bytes.push(Number(left & 127n) | 128);
  }
}

/** A protobuf field: a number, or text or bytes with their length. */
function field(number, value) {
  if (typeof value === "number") return Buffer.concat([varint(number * 8), varint(value)]);
  const bytes = Buffer.from(value);
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

/** The `index`th event: by turns a request and its answer, each pair on a connection of its own. */
function entry(index) {
  const pair = Math.floor(index / 2) + 1;
  const answer = index % 2;
  const body = JSON.stringify({ number: pair, text: "x".repeat(400) });
  const payload = answer ? `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
    : `GET /things/${pair} HTTP/1.1\r\nHost: api.example.com\r\nAccept: application/json\r\n\r\n`;
  const event = Buffer.concat([field(1, 1_754_144_170_000_000_000 + index), field(7, 42), field(8, "program"),
    field(10, payload.length), field(11, payload), field(100, answer ? 1 : 2), field(103, pair)]);
  return Buffer.concat([field(1, 2), field(2, event), field(100, index + 1)]);
}

/** A binary WebSocket message. */
function frame(payload) {
  const head = payload.length < 126 ? [0x82, payload.length] : [0x82, 126, payload.length >> 8, payload.length & 255];
  return Buffer.concat([Buffer.from(head), payload]);
}

async function startStandIn() {
  const page = readFileSync(new URL("../../agent/web/page.html.gz", import.meta.url));
  const server = http.createServer((_, response) =>
    response.writeHead(200, { "content-type": "text/html", "content-encoding": "gzip" }).end(page));
  let socket;
  server.on("upgrade", (request, upgraded) => {
    const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + GUID).digest("base64");
    upgraded.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      `Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
    upgraded.on("error", () => {});
    socket = upgraded;
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: server.address().port,
    async send(bytes) {
      if (!socket.write(bytes)) await once(socket, "drain");
    },
    stop() {
      socket?.destroy();
      server.close();
    },
  };
}

test("50,000 events are taken, the costs of the first and the last thousand are told, and memory is bounded", async (t) => {
  const [server, browser] = await Promise.all([startStandIn(), startBrowser()]);
  try {
    const { page, wrong } = await openPage(browser, server.port);
    const debug = await page.context().newCDPSession(page);
    // Processor time: this machine may be at work on other things.
    await debug.send("Performance.enable", { timeDomain: "threadTicks" });
    const whole = await browser.newBrowserCDPSession();
    const { processInfo } = await whole.send("SystemInfo.getProcessInfo");
    const renderers = processInfo.filter(({ type }) => type === "renderer");
    /** Milliseconds of processor time that the page's thread has worked. */
    const worked = async () => {
      const { metrics } = await debug.send("Performance.getMetrics");
      return metrics.find(({ name }) => name === "TaskDuration").value * 1000;
    };
    /** MiB that the tab's process has in memory, after a collection. */
    const resident = async () => {
      await debug.send("HeapProfiler.collectGarbage");
      return Math.max(...renderers.map(({ id }) =>
        Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${id}/status`, "utf8"))[1]) / 1024));
    };
    const sendTo = async (from, to) => {
      const frames = [];
      for (let index = from; index < to; index++) frames.push(frame(entry(index)));
      const before = await worked();
      await server.send(Buffer.concat(frames));
      // In the page, once a frame: to ask from outside costs it more than the events do.
      await page.waitForFunction((text) => document.getElementById("space").lastElementChild?.textContent.includes(text),
        `/things/${to / 2}200`);
      return await worked() - before;
    };
    const start = await resident();
    const costs = [];
    for (let from = 0; from < EVENTS; from += 1000) costs.push(await sendTo(from, from + 1000));
    const middle = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
    // The very first pays for the compiler.
    const first = middle(costs.slice(1, 6));
    const last = middle(costs.slice(-5));
    const full = await resident();
    for (let from = EVENTS; from < MANY; from += 5000) await sendTo(from, from + 5000);
    const bounded = await resident();
    t.diagnostic(`a thousand events, ms of the page's thread: the first ${costs[0].toFixed(0)}, then ${first.toFixed(0)}, the ` +
      `last of ${EVENTS} ${last.toFixed(0)}; MiB of the tab: ${start.toFixed(0)} empty, ${full.toFixed(0)} with ${EVENTS}, ` +
      `${bounded.toFixed(0)} with ${MANY}`);
    // Times are told, and not asserted: docs/performance.md has them.
    assert.ok(bounded < start + 400, `${bounded} MiB`);
    const rows = Number(await page.getByRole("option").last().getAttribute("aria-setsize"));
    assert.ok(rows > MAX_ROWS - 2000 && rows <= MAX_ROWS, `${rows} rows`);
    assert.deepEqual(wrong, []);
  } finally {
    await browser.close();
    server.stop();
  }
});
