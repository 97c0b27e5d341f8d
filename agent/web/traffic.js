// Events to rows: connections put together, a row for each exchange of HTTP, or for each connection of anything else.
//
// Owns all that is kept. Bounded: `MAX_ROWS` rows, `MAX_KEPT` bytes of bodies; the oldest rows go first.

import { headerOf, Http1, joinBytes } from "./http1.js";
import { Http2, isHttp2 } from "./http2.js";

export const MAX_ROWS = 50_000;
const MAX_KEPT = 128 << 20;
const MAX_CONNECTIONS = 2000;
const MAX_RAW = 64 << 10;
const MAX_WAITING = 256;

export class Traffic {
  rows = [];
  dropped = 0;
  #kept = 0;
  #number = 0;
  #connections = new Map();

  /** Forgets all rows. Connections that are open go on. */
  clear() {
    for (const row of this.rows) row.gone = true;
    this.rows = [];
    this.#kept = 0;
    for (const connection of this.#connections.values()) connection.raw = null;
  }

  /** Another run of the agent: its numbers have nothing to do with those before. */
  restart() {
    this.#connections.clear();
  }

  /** Takes an event of the stream. */
  add(event) {
    const key = event.connection_id ? String(event.connection_id) : event.uuid.replace(/_[01]_(?=[^_]*$)/, "_");
    let connection = this.#connections.get(key);
    if (!connection) {
      connection = { key, sides: {}, waiting: [], streams: new Map(), raw: null };
      this.#connections.set(key, connection);
      if (this.#connections.size > MAX_CONNECTIONS) this.#connections.delete(this.#connections.keys().next().value);
    }
    connection.event = event;
    const side = (connection.sides[event.direction] ??= { next: null, reader: null });
    const at = event.stream_offset;
    const hole = event.connection_id > 0n && (side.next === null ? at > 0n : at !== side.next);
    side.next = at + BigInt(event.payload.length);
    if (hole || event.lost_before > 0n) side.reader?.gap?.();
    side.reader ??= this.#reader(connection, event);
    side.reader.push(event.payload);
    this.#kept += event.payload.length;
    if (event.truncated) side.reader.gap?.();
    this.#bound();
  }

  #reader(connection, event) {
    const { payload, type } = event;
    const other = Object.values(connection.sides).find(({ reader }) => reader);
    if (other?.reader instanceof Http2 || isHttp2(payload)) {
      return new Http2((message) => this.#begun2(connection, message), (message) => this.#ended(connection, message));
    }
    const head = new TextDecoder("latin1").decode(payload.subarray(0, 16));
    if (other?.reader instanceof Http1 || type === 1 || type === 3 || /^([A-Z]+ |HTTP\/1)/.test(head)) {
      const method = () => connection.waiting[0]?.request?.method ?? "";
      return new Http1((message) => this.#begun1(connection, message), (message) => this.#ended(connection, message), method);
    }
    return { push: (bytes) => this.#raw(connection, bytes) };
  }

  #begun1(connection, message) {
    if (!message.status) {
      const row = this.#row(connection, "HTTP/1.1", message);
      connection.waiting.push(row);
      if (connection.waiting.length > MAX_WAITING) connection.waiting.shift();
      return;
    }
    const interim = message.status < 200 && message.status !== 101;
    const row = connection.waiting[0] ?? this.#row(connection, "HTTP/1.1", null);
    if (interim) return;
    connection.waiting.shift();
    this.#answer(row, message);
  }

  #begun2(connection, message) {
    let row = connection.streams.get(message.stream);
    if (!row) {
      row = this.#row(connection, "HTTP/2", null);
      connection.streams.set(message.stream, row);
      if (connection.streams.size > 1000) connection.streams.delete(connection.streams.keys().next().value);
    }
    if (message.status) this.#answer(row, message);
    else {
      row.request = message;
      row.host = headerOf(message, ":authority") || row.host;
    }
  }

  #answer(row, message) {
    row.response = message;
    message.row = row;
  }

  #ended(connection, message) {
    if (message.row && message.status) message.row.end = Number(connection.event.timestamp / 1000n) / 1000;
  }

  #raw(connection, bytes) {
    const { direction, type } = connection.event;
    const row = (connection.raw ??= this.#row(connection, type === 5 ? "WebSocket" : "bytes", null));
    const side = direction === 2 ? "written" : "read";
    row[side] = joinBytes(row[side] ?? new Uint8Array(), bytes, MAX_RAW);
    row.rawSize = (row.rawSize ?? 0) + bytes.length;
  }

  #row(connection, protocol, request) {
    const { event } = connection;
    const row = {
      number: ++this.#number, protocol, request, response: null,
      time: Number(event.timestamp / 1000n) / 1000, process: event.pname, pid: event.pid, app: event.app,
      host: headerOf(request, "host") || event.server_name || event.dst_ip,
    };
    this.rows.push(row);
    return row;
  }

  #bound() {
    let drop = Math.max(0, this.rows.length - MAX_ROWS);
    if (this.#kept > MAX_KEPT) drop = Math.max(drop, Math.ceil(this.rows.length / 4));
    if (!drop || (drop === 1 && this.rows.length < MAX_ROWS)) return;
    // A thousand at a time: to move all others costs more than one row is worth.
    drop = Math.min(this.rows.length, Math.max(drop, this.rows.length > MAX_ROWS ? 1000 : drop));
    for (const row of this.rows.splice(0, drop)) row.gone = true;
    this.dropped += drop;
    if (this.#kept > MAX_KEPT) this.#kept = this.rows.reduce((sum, row) => sum + sizeOf(row), 0);
  }
}

/** Bytes of a row's bodies. */
export function sizeOf(row) {
  return (row.request?.size ?? 0) + (row.response?.size ?? 0) + (row.rawSize ?? 0);
}

/** Whether a row has all words of `filter`, in any case of letters; `-word` must be missing. */
export function matches(row, filter) {
  if (!filter.trim()) return true;
  const { request, response } = row;
  const text = [row.process, row.pid, row.app, row.host, request?.method, request?.path, row.protocol, response?.status]
    .join(" ").toLowerCase();
  return filter.toLowerCase().trim().split(/\s+/).every((word) =>
    word.length > 1 && word.startsWith("-") ? !text.includes(word.slice(1)) : text.includes(word));
}
