// Prints what plaintapd sends: one line a message.
//
//     node client.js [URL]      default: ws://127.0.0.1:28257/

import WebSocket from "ws";
import { line } from "./line.js";

const socket = new WebSocket(process.argv[2] ?? "ws://127.0.0.1:28257/", { perMessageDeflate: false });
socket.on("message", (message, isBinary) => {
  if (isBinary) console.log(line(message));
});
socket.on("error", (error) => {
  console.error(`client.js: ${error.message}`);
  process.exitCode = 1;
});
