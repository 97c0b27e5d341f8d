// An HTTP/2 server and a client of it in one process, over TLS: node's own, with nghttp2 inside.
//
//   node h2.mjs CERT KEY     prints its port, then does what each line of its input says:
//     get PATH               a request on the one connection; prints the status and the body
//     many COUNT             so many requests at the same time, each with a body of its own that comes back; prints "done"
import { once } from "node:events";
import fs from "node:fs";
import http2 from "node:http2";
import readline from "node:readline";

const [cert, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const server = http2.createSecureServer({ cert, key });
server.on("stream", (stream, headers) => {
  const chunks = [];
  stream.on("data", (chunk) => chunks.push(chunk));
  stream.on("end", () => {
    stream.respond({ ":status": 200, "x-path": headers[":path"] }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "x-last": "word" }));
    stream.end(`you said ${Buffer.concat(chunks)} to ${headers[":path"]}\n`);
  });
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
const { port } = server.address();
const client = http2.connect(`https://127.0.0.1:${port}`, { rejectUnauthorized: false });
await once(client, "connect");
console.log(port);

async function ask(method, path, body) {
  const stream = client.request({ ":method": method, ":path": path, "x-mark": "remembered" });
  let status;
  stream.on("response", (headers) => {
    status = headers[":status"];
  });
  stream.end(body);
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return `${status} ${Buffer.concat(chunks).toString().trim()}`;
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, value] = line.split(" ");
  if (command === "get") {
    console.log(await ask("GET", value));
  } else {
    const numbers = [...Array(Number(value)).keys()];
    await Promise.all(numbers.map((number) => ask("POST", `/many/${number}`, `word-${number}-`.repeat(number + 1))));
    console.log("done");
  }
}
client.close();
server.close();
