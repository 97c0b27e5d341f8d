// The page in a real Chromium, over a real capture of curl.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { HOSTILE, makeFolder, openPage, startAgent, startBrowser, startServer, startWire } from "./parts.mjs";

const comm = `web${process.pid}`;
let agent, browser, folder, server, wire, view, page;

before(async () => {
  folder = makeFolder(comm);
  [agent, browser, server] = await Promise.all([startAgent(comm), startBrowser(), startServer(folder.path)]);
  wire = await startWire(agent.port);
  view = await openPage(browser, wire.port);
  page = view.page;
});

after(async () => {
  await browser?.close();
  wire?.stop();
  server?.stop();
  await agent?.stop();
  folder?.remove();
});

const rows = () => page.getByRole("option");
const row = (text) => rows().filter({ hasText: text });
const detail = () => page.getByRole("region", { name: "Detail" });

async function clear() {
  await page.getByRole("searchbox").fill("");
  await page.getByRole("button", { name: "Clear" }).click();
  await rows().first().waitFor({ state: "detached" });
}

async function exported(button) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: button }).click()]);
  return readFileSync(await download.path());
}

test("an HTTP/1.1 exchange is a line, and its detail has headers and the unzipped body as JSON, text and hex", async () => {
  await folder.curl("--http1.1", "-H", "X-Mine: yes", `${server.url}/gzip`);
  await row("/gzip").filter({ hasText: "200" }).waitFor();
  assert.match(await row("/gzip").innerText(), new RegExp(`${comm}\\s+GET\\s+localhost:\\d+/gzip\\s+200`));
  await row("/gzip").click();
  await detail().getByText("GET /gzip HTTP/1.1").waitFor();
  assert.match(await detail().innerText(), /X-Mine\s+yes/);
  const body = detail().locator("pre");
  assert.deepEqual(JSON.parse(await body.innerText()), { path: "/gzip", list: [1, 2] });
  await detail().getByRole("button", { name: "Text" }).click();
  assert.equal(await body.innerText(), '{"path":"/gzip","list":[1,2]}');
  await detail().getByRole("button", { name: "Hex" }).click();
  assert.match(await body.innerText(), /^00000000 {2}7b 22 70 61 .*\{"path":"\/gzip",/);
});

test("HTTP/2 exchanges of one connection are lines of their own", async () => {
  await folder.curl("--http2", "-d", "a body", `${server.url}/two-a`, `${server.url}/two-b`);
  await row("/two-b").filter({ hasText: "200" }).waitFor();
  await row("/two-a").click();
  await detail().getByText("POST /two-a HTTP/2").waitFor();
  assert.deepEqual(await detail().locator("pre").allInnerTexts(), ["a body", "6 bytes came"]);
});

test("a chunked body is put together, and one that lasts until the connection's end is shown", async () => {
  await folder.curl("--http1.1", `${server.url}/chunked`);
  await folder.curl("--http1.1", `${server.url}/until-close`);
  await row("/chunked").click();
  await detail().getByText("first second").waitFor();
  await row("/until-close").click();
  await detail().getByText("as long as it lasts").waitFor();
});

test("a body that is still coming grows in the open detail", async () => {
  // In pieces, the last of which is held back for as long as this takes.
  const upload = folder.curl("--http1.1", "--max-time", "120", "--request", "POST", "--upload-file", "-", `${server.url}/slow`);
  upload.child.stdin.write(Buffer.alloc(150_000, "x"));
  await row("/slow").click();
  await detail().getByText("not complete yet").first().waitFor();
  upload.child.stdin.end(Buffer.alloc(150_000, "x"));
  await upload;
  await detail().getByText("300000 bytes came").waitFor();
  assert.equal(await detail().getByText("not complete yet").count(), 0);
});

test("a payload full of markup, script and characters that turn text is text and nothing else", async () => {
  await folder.curl("--http1.1", "-A", HOSTILE, "-H", "Host: <b>evil</b>", `${server.url}/hostile?q=<script>window.owned=3</script>`);
  await row("/hostile").filter({ hasText: "200" }).click();
  await detail().getByText("x-hostile").waitFor();
  assert.equal(await detail().locator("pre").innerText(), HOSTILE);
  assert.match(await row("/hostile").innerText(), /<b>evil<\/b>.*<script>/);
  assert.equal(await page.locator("b, img, script:not([type=module])").count(), 0);
  assert.equal(await page.evaluate("window.owned"), undefined);
});

test("the filter chooses lines, and says so when none is left", async () => {
  await clear();
  await folder.curl(`${server.url}/one`, `${server.url}/missing`);
  await row("/missing").filter({ hasText: "404" }).waitFor();
  await page.getByRole("searchbox").fill("404");
  await row("/one").waitFor({ state: "detached" });
  assert.equal(await rows().count(), 1);
  await page.getByRole("searchbox").fill("404 -missing");
  await page.getByText("Nothing here agrees with the filter.").waitFor();
  await page.getByRole("searchbox").fill("");
  await row("/one").waitFor();
});

test("HAR export has the lines that are shown, and the stream's export the messages", async () => {
  await clear();
  await folder.curl("--http2", "-d", "posted", `${server.url}/har`, `${server.url}/bytes`);
  await row("/bytes").filter({ hasText: "200" }).waitFor();
  const har = JSON.parse(await exported("Export HAR"));
  assert.equal(har.log.version, "1.2");
  assert.deepEqual(har.log.entries.map(({ request, response }) => [request.method, request.url, response.status]),
    [["POST", `${server.url}/har`, 200], ["POST", `${server.url}/bytes`, 200]]);
  const [first, second] = har.log.entries;
  assert.equal(first.request.postData.text, "posted");
  assert.equal(first.response.content.text, "6 bytes came");
  assert.equal(second.response.content.encoding, "base64");
  assert.equal(second.response.content.text, Buffer.from([137, 80, 78, 71, 0, 1, 2, 255]).toString("base64"));
  const stream = await exported("Export stream");
  assert.ok(stream.includes("posted") && stream.includes("bytes came"));
});

test("pause stops the list and not the capture; clear empties it", async () => {
  await clear();
  const pause = page.getByRole("button", { name: "Pause" });
  await pause.click();
  await folder.curl(`${server.url}/while-paused`);
  await page.getByText("1 new").waitFor();
  assert.equal(await rows().count(), 0);
  await pause.click();
  await row("/while-paused").waitFor();
  await clear();
  assert.equal(await rows().count(), 0);
});

test("after a cut the page comes back by itself with what came meanwhile, and nothing twice", async () => {
  await clear();
  await folder.curl(`${server.url}/before`);
  await row("/before").filter({ hasText: "200" }).waitFor();
  wire.cut();
  // Until it has tried in vain, more than once.
  await page.getByText(/no connection to the agent; trying again in [2-9] s/).waitFor();
  await folder.curl(`${server.url}/meanwhile`);
  wire.mend();
  await row("/meanwhile").filter({ hasText: "200" }).waitFor();
  await page.getByText("connected", { exact: true }).waitFor();
  await folder.curl(`${server.url}/afterwards`);
  await row("/afterwards").filter({ hasText: "200" }).waitFor();
  for (const path of ["/before", "/meanwhile", "/afterwards"]) assert.equal(await row(path).count(), 1, path);
});

test("the list is moved in by keys, and tells a screen reader where it is", async () => {
  await clear();
  await folder.curl(`${server.url}/k1`, `${server.url}/k2`, `${server.url}/k3`);
  await row("/k3").filter({ hasText: "200" }).waitFor();
  const list = page.getByRole("listbox");
  await list.focus();
  for (const [key, path] of [["Home", "/k1"], ["ArrowDown", "/k2"], ["End", "/k3"], ["ArrowUp", "/k2"]]) {
    await page.keyboard.press(key);
    await detail().getByText(`GET ${path} HTTP`).waitFor();
    const active = await list.getAttribute("aria-activedescendant");
    assert.match(await page.locator(`#${active}[aria-selected=true]`).innerText(), new RegExp(path));
  }
});

test("the agent's log and heartbeat are there", async () => {
  await page.getByText(/^Agent:/).click();
  await page.getByLabel("Agent's log").getByText(/attached library/).waitFor();
  assert.match(await page.getByText(/events captured/).innerText(), /\b0 lost/);
});

test("no rule of accessibility is broken, in light and dark, on a desktop and on a phone", async () => {
  await folder.curl(`${server.url}/gzip`, `${server.url}/missing`);
  await row("/gzip").last().click();
  await detail().locator("pre").waitFor();
  const axe = readFileSync(new URL(import.meta.resolve("axe-core/axe.min.js")), "utf8");
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1280, 390]) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 800 });
      // By the debugger, which the page's policy does not bind.
      await page.evaluate(axe);
      const { passes, violations } = await page.evaluate("axe.run()");
      assert.ok(passes.length > 10);
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join("; ")}`);
      assert.deepEqual(found, [], `${colorScheme}, ${width} pixels`);
    }
  }
});

test("nothing was asked of any other host, nothing went wrong, and the page may not be framed", async () => {
  const hosts = new Set(view.asked.filter((url) => !url.startsWith("data:")).map((url) => new URL(url).host).filter(Boolean));
  assert.deepEqual([...hosts], [`127.0.0.1:${wire.port}`]);
  const own = view.wrong.filter((text) => !/WebSocket connection to 'ws:\/\/127/.test(text));
  assert.deepEqual(own, []);
  const answer = await page.request.get(`http://127.0.0.1:${wire.port}/`);
  const policy = answer.headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.match(policy, /connect-src 'self';/);
  assert.match(policy, /frame-ancestors 'none'/);
  assert.doesNotMatch(policy, /unsafe|\*/);
});
