// One WebSocket message, a protobuf LogEntry, as a plain object with the names of proto/ecaptureq.proto.
//
// 64-bit numbers are BigInts, others Numbers, bytes views of the message. Fields that are not known are skipped.

const EVENT = {
  1: ["timestamp", "i64"], 2: ["uuid", "text"], 3: ["src_ip", "text"], 4: ["src_port", "u32"], 5: ["dst_ip", "text"],
  6: ["dst_port", "u32"], 7: ["pid", "i64"], 8: ["pname", "text"], 9: ["type", "u32"], 10: ["length", "u32"],
  11: ["payload", "bytes"], 100: ["direction", "i32"], 101: ["tid", "u32"], 102: ["uid", "u32"],
  103: ["connection_id", "u64"], 104: ["stream_offset", "u64"], 105: ["lost_before", "u64"], 106: ["app", "text"],
  107: ["server_name", "text"], 108: ["process_start", "u64"], 109: ["library", "text"], 110: ["truncated", "bool"],
};
const HEARTBEAT = {
  1: ["timestamp", "i64"], 2: ["count", "i64"], 3: ["message", "text"], 100: ["run_id", "text"], 101: ["last_seq", "u64"],
  102: ["captured_events", "u64"], 103: ["captured_bytes", "u64"], 104: ["lost_events", "u64"], 105: ["lost_bytes", "u64"],
  106: ["missed_messages", "u64"], 107: ["missed_bytes", "u64"], 108: ["clients", "u32"], 109: ["uptime_ms", "u64"],
};
const ENTRY = {
  1: ["log_type", "i32"], 2: ["event_payload", EVENT], 3: ["heartbeat_payload", HEARTBEAT], 4: ["run_log", "once"],
  100: ["seq", "u64"],
};
const NONE = { text: "", bytes: new Uint8Array(), bool: false, u32: 0, i32: 0, u64: 0n, i64: 0n };
const utf8 = new TextDecoder();

/** The entry in `bytes`; throws an Error on what is no protobuf. */
export function decodeEntry(bytes) {
  return decodeMessage(bytes, ENTRY);
}

function decodeMessage(bytes, fields) {
  const message = {};
  for (const [name, kind] of Object.values(fields)) {
    if (kind in NONE) message[name] = NONE[kind];
  }
  let at = 0;
  const varint = () => {
    // Most are small, and BigInt is slow.
    let small = 0;
    for (let scale = 1; scale < 2 ** 35 && at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      small += (byte & 127) * scale;
      if (byte < 128) return BigInt(small);
    }
    let value = BigInt(small);
    for (let shift = 35n; shift < 70n; shift += 7n) {
      if (at >= bytes.length) throw new Error("a message ends inside a number");
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return BigInt.asUintN(64, value);
    }
    throw new Error("a number in a message is longer than 64 bits");
  };
  const take = (length) => {
    if (length > bytes.length - at) throw new Error("a message ends inside a field");
    at += length;
    return bytes.subarray(at - length, at);
  };
  while (at < bytes.length) {
    const tag = Number(varint());
    const [name, kind] = fields[Math.floor(tag / 8)] ?? [];
    const wire = tag & 7;
    if (wire === 0) {
      const value = varint();
      if (kind === "bool") message[name] = value !== 0n;
      else if (kind === "u64") message[name] = value;
      else if (kind === "i64") message[name] = BigInt.asIntN(64, value);
      else if (kind === "u32") message[name] = Number(BigInt.asUintN(32, value));
      else if (kind === "i32") message[name] = Number(BigInt.asIntN(32, value));
    } else if (wire === 2) {
      const value = take(Number(varint()));
      if (kind === "text" || kind === "once") message[name] = utf8.decode(value);
      else if (kind === "bytes") message[name] = value;
      else if (typeof kind === "object") message[name] = decodeMessage(value, kind);
    } else if (wire === 1 || wire === 5) {
      take(wire === 1 ? 8 : 4);
    } else {
      throw new Error(`a message has a field of the unknown wire type ${wire}`);
    }
  }
  return message;
}
