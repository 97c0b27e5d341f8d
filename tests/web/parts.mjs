// What the tests in a browser are made of: an agent, servers over TLS, curl as the program that is watched, and Chromium.

import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import http2 from "node:http2";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { chromium } from "playwright-core";

const WAIT = 60_000;
const root = fileURLToPath(new URL("../..", import.meta.url));
const run = promisify(execFile);

/** Markup, script, a way out of attributes, and characters that turn the direction of text. */
export const HOSTILE = `</script><script>window.owned=1</script><img src=x onerror="window.owned=2">"'><b>bold</b> \u202egnp.exe\u2066`;

/** Starts the agent that is asked for by PLAINTAP_BIN_DIR; it sees only programs named `comm`. */
export async function startAgent(comm) {
  const program = join(process.env.PLAINTAP_BIN_DIR ?? join(root, "target/release"), "plaintapd");
  if (!existsSync(program)) throw new Error(`${program} is missing: cargo build --release -p plaintapd`);
  const child = spawn(program, ["--ecaptureq", "ws://127.0.0.1:0/", "--comm", comm, "--no-scan"],
    { stdio: ["ignore", "ignore", "pipe"] });
  const said = [];
  const port = await new Promise((found, failed) => {
    const timer = setTimeout(() => failed(new Error(`the agent does not listen:\n${said.join("\n")}`)), WAIT);
    createInterface(child.stderr).on("line", (line) => {
      said.push(line);
      const url = /\blistening url="?ws:\/\/127\.0\.0\.1:(\d+)/.exec(line);
      if (url) {
        clearTimeout(timer);
        found(Number(url[1]));
      }
    });
    child.on("exit", (code) => failed(new Error(`the agent ended with ${code}:\n${said.join("\n")}`)));
  });
  return {
    port,
    pid: child.pid,
    async stop() {
      if (child.exitCode !== null) return;
      child.kill("SIGTERM");
      await once(child, "exit");
    },
  };
}

/** A folder with a certificate, its key, and curl under the name `comm`. */
export function makeFolder(comm) {
  const path = mkdtempSync(join(tmpdir(), "plaintap-web-"));
  execFileSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
    "-subj", "/CN=localhost", "-keyout", join(path, "key.pem"), "-out", join(path, "certificate.pem")], { stdio: "pipe" });
  const curl = join(path, comm);
  symlinkSync("/usr/bin/curl", curl);
  return {
    path,
    curl: (...flags) => run(curl, ["--silent", "--show-error", "--insecure", "--max-time", "20", ...flags], { encoding: "buffer" }),
    remove: () => rmSync(path, { recursive: true, force: true }),
  };
}

/** A server for HTTP/1.1 and HTTP/2 over TLS, in the shapes that servers give it; at any free port if none is named. */
export async function startServer(folder, host = "127.0.0.1", port = 0) {
  const tls = { cert: readFileSync(join(folder, "certificate.pem")), key: readFileSync(join(folder, "key.pem")) };
  const answer = (pathname, size, response) => {
    if (pathname === "/gzip") {
      response.writeHead(200, { "content-type": "application/json", "content-encoding": "gzip" });
      response.end(gzipSync(JSON.stringify({ path: pathname, list: [1, 2] })));
    } else if (pathname === "/chunked") {
      response.writeHead(200, { "content-type": "text/plain" });
      response.write("first ");
      response.end("second");
    } else if (pathname === "/until-close") {
      response.useChunkedEncodingByDefault = false;
      response.writeHead(200, { "content-type": "text/plain", connection: "close" });
      response.end("as long as it lasts");
    } else if (pathname === "/bytes") {
      response.end(Buffer.from([137, 80, 78, 71, 0, 1, 2, 255]));
    } else if (pathname === "/hostile") {
      response.writeHead(200, { "content-type": "text/html", "x-hostile": HOSTILE.replace(/[^ -~]/g, "?") });
      response.end(HOSTILE);
    } else if (pathname === "/missing") {
      response.writeHead(404).end("nothing here");
    } else {
      response.end(`${size} bytes came`);
    }
  };
  const server = http2.createSecureServer({ ...tls, allowHTTP1: true }, (request, response) => {
    let size = 0;
    request.on("data", (data) => {
      size += data.length;
    });
    // Not before: HTTP/2's answer to half a request ends with a reset, which curl takes for an error.
    request.on("end", () => answer(new URL(request.url, "https://localhost").pathname, size, response));
  });
  server.listen(port, host);
  await once(server, "listening");
  const sessions = new Set();
  server.on("session", (session) => sessions.add(session));
  return {
    url: `https://localhost:${server.address().port}`,
    stop() {
      for (const session of sessions) session.destroy();
      server.closeAllConnections?.();
      server.close();
    },
  };
}

/** A wire to the agent's port that can be cut and mended. */
export async function startWire(port) {
  const ends = new Set();
  let whole = true;
  const server = net.createServer((near) => {
    if (!whole) {
      near.destroy();
      return;
    }
    const far = net.connect(port, "127.0.0.1");
    for (const [from, to] of [[near, far], [far, near]]) {
      ends.add(from);
      from.pipe(to);
      from.on("error", () => {});
      from.on("close", () => {
        ends.delete(from);
        to.destroy();
      });
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = () => {
    whole = false;
    for (const end of ends) end.destroy();
  };
  return {
    port: server.address().port,
    cut,
    mend: () => { whole = true; },
    stop() {
      cut();
      server.close();
    },
  };
}

/** Chromium; `PLAINTAP_CHROMIUM` names another than Debian's. */
export function startBrowser() {
  // Tests load eBPF and so are root, whom Chromium's sandbox does not serve.
  return chromium.launch({
    executablePath: process.env.PLAINTAP_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-dev-shm-usage"],
  });
}

/** Opens the page at `port`. Gives it with what it asked for and what went wrong in it. */
export async function openPage(browser, port, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT);
  const asked = [];
  const wrong = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("websocket", (socket) => asked.push(socket.url()));
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") wrong.push(message.text());
  });
  await page.goto(`http://127.0.0.1:${port}/`);
  await page.getByText("connected", { exact: true }).waitFor();
  return { page, asked, wrong, close: () => context.close() };
}
