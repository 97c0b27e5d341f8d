// The client against proto/vectors, and against what is broken.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { equals, fromBinary, fromJson } from "@bufbuild/protobuf";
import WebSocket from "ws";
import { LogEntrySchema } from "./ecaptureq_pb.js";
import { line } from "./line.js";

const FOLDER = new URL("../../proto/vectors/", import.meta.url);
const names = readdirSync(FOLDER).flatMap((file) => (file.endsWith(".bin") ? [file.slice(0, -4)] : []));
const bytes = (name) => new Uint8Array(readFileSync(new URL(`${name}.bin`, FOLDER)));

test("every field is decoded", () => {
  assert.ok(names.length > 0);
  for (const name of names) {
    const decoded = fromBinary(LogEntrySchema, bytes(name), { readUnknownFields: false });
    const wanted = fromJson(
      LogEntrySchema,
      JSON.parse(readFileSync(new URL(`${name}.json`, FOLDER), "utf8")),
    );
    assert.ok(equals(LogEntrySchema, decoded, wanted), name);
  }
});

test("every vector is printed as expected", () => {
  const lines = [...names].sort().map((name) => `${name} ${line(bytes(name))}\n`);
  assert.equal(lines.join(""), readFileSync(new URL("../vectors.txt", import.meta.url), "utf8"));
});

test("no cut or changed message crashes", () => {
  for (const name of names) {
    const message = bytes(name);
    for (let length = 0; length < message.length; length++) {
      const changed = message.slice();
      changed[length] ^= 0xff;
      for (const broken of [message.subarray(0, length), changed]) assert.match(line(broken), /^[ -~]+$/);
    }
  }
});

test("serve.js lets no other page in", async (t) => {
  const program = fileURLToPath(new URL("serve.js", import.meta.url));
  const server = spawn(process.execPath, [program, "ws://127.0.0.1:1/", "0"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.after(() => server.kill());
  const [line] = await once(server.stdout, "data");
  const url = String(line).trim();
  const answer = async (headers) => {
    const socket = new WebSocket(url, { headers });
    socket.on("error", () => {});
    const [, { statusCode }] = await once(socket, "unexpected-response");
    return statusCode;
  };
  assert.equal(await answer({}), 401);
  assert.equal(await answer({ origin: "http://evil.example" }), 401);
  assert.equal(await answer({ origin: "http://evil.example:80", host: "evil.example:80" }), 401);
  const own = new WebSocket(url, { headers: { origin: url.slice(0, -1) } });
  const [code] = await once(own, "close");
  assert.equal(code, 1011, "let in, and told that there is no agent");
  assert.equal((await fetch(new URL("client.js", url))).status, 404);
  assert.equal((await fetch(url)).status, 200);
});
