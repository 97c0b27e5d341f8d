// Prints what plaintapd sends: one line a message.
//
//     node client.js [URL]      default: ws://127.0.0.1:28257/

import WebSocket from "ws";
import { line } from "./line.js";

// A URL that is none, and a reader of our output that is gone, come here too.
const fail = ({ message }) => {
  console.error(`client.js: ${message}`);
  process.exit(1);
};
process.on("uncaughtException", fail);

const socket = new WebSocket(process.argv[2] ?? "ws://127.0.0.1:28257/", { perMessageDeflate: false });
socket.on("message", (message, isBinary) => {
  // Not console.log, which hides that it could not write.
  if (isBinary) process.stdout.write(`${line(message)}\n`);
});
socket.on("error", fail);
// The agent's end is 1001; another close is an error: 4008, for one, is "too slow".
socket.on("close", (code, reason) => {
  if (code !== 1000 && code !== 1001) fail({ message: `closed: ${code} ${reason}` });
});
