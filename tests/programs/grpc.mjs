// A gRPC server and a client of it in one process, over TLS: grpc-js, which stands on node's HTTP/2.
//
//   node grpc.mjs CERT KEY     prints "ready"; at a line of input it makes three calls and prints "done":
//     /demo.Talk/Say           one message each way
//     /demo.Talk/Count         one message there, three back
//     /demo.Talk/Fail          ends with status 5, NOT_FOUND
import fs from "node:fs";
import readline from "node:readline";
import grpc from "@grpc/grpc-js";

const [cert, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const bytes = (message) => Buffer.from(message);
const method = (name, responseStream) => ({
  path: `/demo.Talk/${name}`,
  requestStream: false,
  responseStream,
  requestSerialize: bytes,
  requestDeserialize: bytes,
  responseSerialize: bytes,
  responseDeserialize: bytes,
});
const service = { Say: method("Say", false), Count: method("Count", true), Fail: method("Fail", false) };

const server = new grpc.Server();
server.addService(service, {
  Say: (call, answer) => answer(null, `you said ${call.request}`),
  Count: (call) => {
    for (const number of ["one", "two", "three"]) call.write(number);
    call.end();
  },
  Fail: (_call, answer) => answer({ code: grpc.status.NOT_FOUND, details: "no such thing" }),
});
const credentials = grpc.ServerCredentials.createSsl(null, [{ cert_chain: cert, private_key: key }]);
const bind = (done) => server.bindAsync("127.0.0.1:0", credentials, (error, port) => done(error ?? port));
const port = await new Promise(bind);
const trust = grpc.credentials.createSsl(cert, null, null, { checkServerIdentity: () => undefined });
const Client = grpc.makeGenericClientConstructor(service, "Talk");
const client = new Client(`127.0.0.1:${port}`, trust, { "grpc.ssl_target_name_override": "localhost" });
console.log("ready");

for await (const _line of readline.createInterface({ input: process.stdin })) {
  const said = await new Promise((done) => client.Say("hello", (error, answer) => done(error ?? answer)));
  const counted = [];
  for await (const number of client.Count("to three")) counted.push(String(number));
  const failed = await new Promise((done) => client.Fail("x", (error) => done(error)));
  if (String(said) !== "you said hello" || counted.join() !== "one,two,three" || failed.code !== 5) {
    throw new Error(`${said} ${counted} ${failed}`);
  }
  console.log("done");
}
client.close();
server.forceShutdown();
