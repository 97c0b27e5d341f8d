// One line a message; shared by node and browsers.

import { fromBinary } from "@bufbuild/protobuf";
import { LogEntrySchema, LogType } from "./ecaptureq_pb.js";

const PROTOCOLS = ["?", "http1-request", "http2-request", "http1-response", "http2-response", "websocket"];
const DIRECTIONS = ["?", "read", "written"];

/** Text that harms no terminal: ASCII as it is, \xHH for every other byte and the backslash. */
function printable(data) {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
  const isPlain = (byte) => byte >= 0x20 && byte < 0x7f && byte !== 0x5c;
  const show = (byte) =>
    isPlain(byte) ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`;
  return Array.from(bytes, show).join("");
}

/** The number's name, or the number where a newer agent knows more of them. */
const name = (names, number) => names[number] ?? String(number);

/** What is printed for one binary message, a Uint8Array. */
export function line(message) {
  let entry;
  try {
    entry = fromBinary(LogEntrySchema, message);
  } catch {
    return `undecodable bytes=${message.length}`;
  }
  const { case: kind, value } = entry.payload;
  if (entry.logType === LogType.EVENT && kind === "eventPayload") {
    return (
      `event seq=${entry.seq} ${printable(value.pname)}[${value.pid}/${value.tid}] ` +
      `${name(DIRECTIONS, value.direction)} ${printable(value.srcIp)}:${value.srcPort}` +
      `->${printable(value.dstIp)}:${value.dstPort} ${name(PROTOCOLS, value.type)} ` +
      `connection=${value.connectionId} offset=${value.streamOffset} lost_before=${value.lostBefore} ` +
      printable(value.payload)
    );
  }
  if (entry.logType === LogType.HEARTBEAT && kind === "heartbeatPayload") {
    return (
      `heartbeat count=${value.count} run=${printable(value.runId)} last_seq=${value.lastSeq} ` +
      `lost_events=${value.lostEvents} missed_messages=${value.missedMessages}`
    );
  }
  if (entry.logType === LogType.PROCESS_LOG && kind === "runLog") {
    return `log seq=${entry.seq} ${printable(value)}`;
  }
  return `unknown log_type=${entry.logType} seq=${entry.seq}`;
}
