// The page's modules, under node's own runner: node --test tests/web/
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import net from "node:net";
import http2 from "node:http2";
import test from "node:test";
import { gunzipSync, gzipSync } from "node:zlib";
import { harOf, hexOf, plainBody, textOf } from "../../agent/web/export.js";
import { Hpack } from "../../agent/web/hpack.js";
import { Pile } from "../../agent/web/pile.js";
import { queryOf } from "../../agent/web/link.js";
import { decodeEntry } from "../../agent/web/proto.js";
import { matches, MAX_ROWS, Traffic } from "../../agent/web/traffic.js";

const vectors = new URL("../../proto/vectors/", import.meta.url);
const bytes = (text) => new Uint8Array(Buffer.from(text, "latin1"));

function pile(content) {
  const made = new Pile();
  made.push(content);
  return made;
}

function event(connection, direction, offset, payload, more = {}) {
  return {
    timestamp: 1754144170123456789n, uuid: "", pid: 1n, pname: "curl", app: "", dst_ip: "192.0.2.1", server_name: "example.org",
    type: 0, connection_id: BigInt(connection), direction, stream_offset: BigInt(offset), lost_before: 0n, truncated: false,
    payload: typeof payload === "string" ? bytes(payload) : payload, ...more,
  };
}

test("every vector decodes to what its JSON says", () => {
  const names = readdirSync(vectors).filter((name) => name.endsWith(".bin"));
  assert.ok(names.length >= 10);
  const enums = { log_type: ["LOG_TYPE_HEARTBEAT", "LOG_TYPE_PROCESS_LOG", "LOG_TYPE_EVENT"],
    direction: ["DIRECTION_UNKNOWN", "DIRECTION_READ", "DIRECTION_WRITTEN"] };
  const json = (key, value) => {
    if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
    if (typeof value === "bigint") return String(value);
    return enums[key]?.[value] ?? value;
  };
  for (const name of names) {
    const decoded = decodeEntry(new Uint8Array(readFileSync(new URL(name, vectors))));
    const expected = JSON.parse(readFileSync(new URL(name.replace(".bin", ".json"), vectors), "utf8"));
    assert.deepEqual(JSON.parse(JSON.stringify(decoded, json)), expected, name);
  }
});

test("a torn message is refused and not half read", () => {
  const whole = new Uint8Array(readFileSync(new URL("event_full.bin", vectors)));
  for (const end of [1, 5, 50]) {
    assert.throws(() => decodeEntry(whole.subarray(0, end)), Error);
  }
});

test("HTTP/1 is put together, byte by byte and piece by piece", () => {
  const request = "GET /a HTTP/1.1\r\nHost: h.example\r\n\r\nHEAD /b HTTP/1.1\r\nHost: h.example\r\n\r\n";
  const response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n" +
    "HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n";
  for (const size of [1, 7, 1000]) {
    const traffic = new Traffic();
    for (const [direction, text] of [[2, request], [1, response]]) {
      for (let at = 0; at < text.length; at += size) {
        traffic.add(event(1, direction, at, text.slice(at, at + size), { type: direction === 2 ? 1 : 3 }));
      }
    }
    assert.deepEqual(traffic.rows.map((row) => [row.request.method, row.request.path, row.host, row.response.status]),
      [["GET", "/a", "h.example", 200], ["HEAD", "/b", "h.example", 404]]);
    assert.equal(textOf(traffic.rows[0].response.body.bytes), "abcde");
    assert.ok(traffic.rows.every((row) => row.response.done && !row.response.cut));
  }
});

test("after a hole reading goes on at the next head, and what was open says that it is cut", () => {
  const traffic = new Traffic();
  traffic.add(event(1, 2, 0, "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc"));
  traffic.add(event(1, 2, 500, "GET /b HTTP/1.1\r\nHost: h\r\n\r\n"));
  assert.deepEqual(traffic.rows.map((row) => [row.request.path, row.request.cut]), [["/a", true], ["/b", false]]);
});

test("the RFC's header blocks decode, with Huffman and a table that evicts", () => {
  // Source: RFC 7541, appendix C.4.
  const hpack = new Hpack();
  const block = (hex) => new Uint8Array(Buffer.from(hex, "hex"));
  assert.deepEqual(hpack.decode(block("828684418cf1e3c2e5f23a6ba0ab90f4ff")),
    [[":method", "GET"], [":scheme", "http"], [":path", "/"], [":authority", "www.example.com"]]);
  assert.deepEqual(hpack.decode(block("828684be5886a8eb10649cbf")).slice(3),
    [[":authority", "www.example.com"], ["cache-control", "no-cache"]]);
  assert.throws(() => new Hpack().decode(block("ff80ffffffff7f")));
  assert.throws(() => new Hpack().decode(block("be")));
});

test("HTTP/2 between node's own client and server is put together", async () => {
  const traffic = new Traffic();
  const server = http2.createServer((request, response) => {
    response.setHeader("content-encoding", "gzip");
    response.end(gzipSync(`you sent ${request.method} ${request.url}`));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const offsets = { 1: 0, 2: 0 };
  const note = (direction, data) => {
    traffic.add(event(9, direction, offsets[direction], new Uint8Array(data)));
    offsets[direction] += data.length;
  };
  const proxy = net.createServer((near) => {
    const far = net.connect(server.address().port, "127.0.0.1");
    near.on("data", (data) => {
      note(2, data);
      far.write(data);
    });
    far.on("data", (data) => {
      note(1, data);
      near.write(data);
    });
    near.on("close", () => far.destroy());
    far.on("error", () => {});
    near.on("error", () => {});
  });
  await new Promise((done) => proxy.listen(0, "127.0.0.1", done));
  const client = http2.connect(`http://127.0.0.1:${proxy.address().port}`);
  for (const path of ["/one", "/two"]) {
    const stream = client.request({ ":path": path, ":method": "POST" });
    stream.end("body");
    stream.resume();
    await new Promise((done) => stream.on("end", done));
  }
  client.destroy();
  proxy.close();
  server.close();
  assert.deepEqual(traffic.rows.map((row) => [row.protocol, row.request.method, row.request.path, row.response.status]),
    [["HTTP/2", "POST", "/one", 200], ["HTTP/2", "POST", "/two", 200]]);
  const { bytes: body } = await plainBody(traffic.rows[1].response);
  assert.equal(textOf(body), "you sent POST /two");
  assert.equal(textOf(traffic.rows[0].request.body.bytes), "body");
  const har = JSON.parse((await harOf(traffic.rows)).join(""));
  assert.equal(har.log.entries[1].response.content.text, "you sent POST /two");
  assert.match(har.log.entries[0].request.url, /^https:\/\/127\.0\.0\.1:\d+\/one$/);
});

test("a broken gzip body is shown as it was sent", async () => {
  const message = { headers: [["Content-Encoding", "gzip"]], body: pile(bytes("no gzip")) };
  assert.match((await plainBody(message)).note, /not decodable/);
});

test("what is no HTTP is a row of bytes, and no number of rows is too many", () => {
  const traffic = new Traffic();
  for (let index = 1; index <= MAX_ROWS + 10; index++) traffic.add(event(index, 2, 0, "\x00\x01"));
  assert.ok(traffic.rows.length <= MAX_ROWS);
  assert.ok(traffic.dropped > 0);
  assert.equal(hexOf(traffic.rows[0].written.bytes), "00000000  00 01                                            ..");
});

test("what follows an upgrade is shown as the bytes that it is", () => {
  const traffic = new Traffic();
  const answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
  traffic.add(event(1, 2, 0, "GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n"));
  traffic.add(event(1, 1, 0, `${answer}early`));
  traffic.add(event(1, 1, answer.length + 5, " and late", { type: 5 }));
  traffic.add(event(1, 2, 60, "mine", { type: 5, lost_before: 0n }));
  const [exchange, rest] = traffic.rows;
  assert.deepEqual([exchange.request.path, exchange.response.status, traffic.rows.length], ["/chat", 101, 2]);
  assert.equal(textOf(rest.read.bytes), "early and late");
  assert.equal(textOf(rest.written.bytes), "mine");
});

test("a download of any size takes no more than a body's room, and sends no other row away", () => {
  const traffic = new Traffic();
  traffic.add(event(1, 2, 0, "GET /first HTTP/1.1\r\nHost: h\r\n\r\n"));
  traffic.add(event(2, 2, 0, "GET /large HTTP/1.1\r\nHost: h\r\n\r\n"));
  const head = `HTTP/1.1 200 OK\r\nContent-Length: ${400 << 20}\r\n\r\n`;
  traffic.add(event(2, 1, 0, head));
  const piece = new Uint8Array(1 << 20);
  for (let sent = 0; sent < 400; sent++) traffic.add(event(2, 1, head.length + sent * piece.length, piece));
  const [first, large] = traffic.rows;
  assert.deepEqual([first.request.path, large.response.size, large.response.body.length], ["/first", 400 << 20, 1 << 20]);
  assert.ok(large.response.done && !large.response.cut);
});

test("bodies that come to more than there is room for send the oldest rows away, and what is open of them stays empty", () => {
  const traffic = new Traffic();
  const piece = new Uint8Array(1 << 20);
  const heads = "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\n";
  for (let index = 1; index <= 300; index++) {
    traffic.add(event(index, 2, 0, heads));
    traffic.add(event(index, 2, heads.length, piece));
  }
  const kept = traffic.rows.reduce((sum, row) => sum + row.request.body.length, 0);
  assert.ok(traffic.dropped > 0 && traffic.rows.length > 50 && kept <= 129 << 20, `${kept} bytes`);
  const gone = [...traffic.changed].find((row) => row.gone);
  assert.equal(gone.request.body.length, 0);
});

test("bytes in pieces of one are put together in no more than linear time", () => {
  const whole = new Pile();
  const one = new Uint8Array([7]);
  const start = performance.now();
  for (let count = 0; count < 1 << 20; count++) whole.push(one);
  assert.equal(whole.length, 1 << 20);
  assert.ok(performance.now() - start < 5000);
  whole.drop(1 << 19);
  whole.trim();
  assert.equal(whole.bytes.buffer.byteLength, 1 << 19);
});

test("the filter wants all words, and leaves out those after a minus", () => {
  const traffic = new Traffic();
  traffic.add(event(1, 2, 0, "GET /Path HTTP/1.1\r\nHost: h.example\r\n\r\n"));
  const [row] = traffic.rows;
  assert.ok(["", "curl path", "GET -post", "h.example"].every((filter) => matches(row, filter)));
  assert.ok(!["wget", "curl -path"].some((filter) => matches(row, filter)));
});

test("the link asks for the backlog first, then for what comes behind what it saw", () => {
  assert.equal(queryOf({ run: "", after: "0" }, null), "?backlog=all");
  assert.equal(queryOf({ run: "ab", after: "7" }, "t"), "?after=7&run=ab&token=t");
});

test("the page asks nothing of any other host and has no place where markup could come from", () => {
  const page = gunzipSync(readFileSync(new URL("../../agent/web/page.html.gz", import.meta.url))).toString();
  assert.doesNotMatch(page, /innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|\son\w+="/);
  assert.doesNotMatch(page, /(src|href)="(?!data:,)/);
});
