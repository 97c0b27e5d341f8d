// Lets a browser see the stream: serves browser.html, and passes on what plaintapd sends. plaintapd itself talks to no page but
// its own, since any page in the world could ask for the stream otherwise.
//
//     node serve.js [URL] [PORT]      default: ws://127.0.0.1:28257/ 8000; then open http://127.0.0.1:8000/

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import WebSocket, { WebSocketServer } from "ws";

const [agent = "ws://127.0.0.1:28257/", port = "8000"] = process.argv.slice(2);
const TYPES = { html: "text/html; charset=utf-8", js: "text/javascript" };
const FILES =
  /^\/(browser\.html|line\.js|ecaptureq_pb\.js|node_modules\/@bufbuild\/protobuf\/dist\/esm\/[\w/-]+\.js)$/;

const server = createServer(async (request, answer) => {
  const [, file] = FILES.exec(request.url === "/" ? "/browser.html" : request.url) ?? [];
  const body = file && (await readFile(new URL(file, import.meta.url)).catch(() => undefined));
  answer.writeHead(body ? 200 : 404, { "content-type": TYPES[file?.split(".").pop()] ?? "text/plain" });
  answer.end(body);
});
// Only our own page, under a name that no other site can take.
const isOurs = ({ origin, req }) =>
  origin === `http://${req.headers.host}` && /^(127\.0\.0\.1|localhost):\d+$/.test(req.headers.host);
new WebSocketServer({ server, verifyClient: isOurs }).on("connection", (page) => {
  const socket = new WebSocket(agent, { perMessageDeflate: false });
  socket.on("message", (message, isBinary) => page.send(message, { binary: isBinary }));
  socket.on("error", (error) => page.close(1011, error.message.slice(0, 100)));
  socket.on("close", () => page.close(1001, "plaintapd ended"));
  page.on("error", () => {}).on("close", () => socket.close());
});
server.on("error", (error) => {
  console.error(`serve.js: ${error.message}`);
  process.exitCode = 1;
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
