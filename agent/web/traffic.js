// Events to rows: connections put together, a row for each exchange of HTTP, or for each connection of anything else.
//
// Owns all that is kept. Bounded: `MAX_ROWS` rows, `MAX_KEPT` bytes of bodies and headers, and as many of connections' unread
// rests; the oldest go first.

import { headerOf, Http1 } from "./http1.js";
import { Http2, isHttp2 } from "./http2.js";
import { Pile } from "./pile.js";

export const MAX_ROWS = 50_000;
const MAX_KEPT = 128 << 20;
const MAX_CONNECTIONS = 2000;
const MAX_RAW = 64 << 10;
const MAX_WAITING = 256;
const MAX_ASKED = 1000;
/** What an object costs besides its text and bytes, about. */
const OBJECT = 64;

export class Traffic {
  rows = [];
  dropped = 0;
  /** Rows that are new or became others; whoever shows them empties it. */
  changed = new Set();
  #kept = 0;
  #number = 0;
  #connections = new Map();

  /** The newest row's number. */
  get last() {
    return this.#number;
  }

  /** Forgets all rows. Connections that are open go on. */
  clear() {
    this.#discard(this.rows.length);
    this.#kept = 0;
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
      if (this.#connections.size > MAX_CONNECTIONS) this.#forget(1);
    } else {
      // The one that was silent for longest is the first to go.
      this.#connections.delete(key);
      this.#connections.set(key, connection);
    }
    connection.event = event;
    connection.sides[event.direction] ??= { next: null, reader: null };
    const side = connection.sides[event.direction];
    const at = event.stream_offset;
    const hole = event.connection_id > 0n && (side.next === null ? at > 0n : at !== side.next);
    side.next = at + BigInt(event.payload.length);
    if (hole || event.lost_before > 0n) side.reader?.gap?.();
    if (connection.upgraded) {
      this.#raw(connection, event.payload);
    } else {
      side.reader ??= this.#reader(connection, event);
      side.reader.push(event.payload);
      // What came with the answer that ended HTTP here.
      if (connection.upgraded) this.#raw(connection, side.reader.rest());
    }
    const current = side.reader?.current;
    if (current?.row) this.changed.add(current.row);
    this.#kept += event.payload.length;
    if (event.truncated) side.reader?.gap?.();
    this.#bound();
  }

  #reader(connection, event) {
    const { payload, type } = event;
    const other = Object.values(connection.sides).find(({ reader }) => reader);
    if (other?.reader instanceof Http2 || isHttp2(payload)) {
      return new Http2((message) => this.#begun2(connection, message), (message) => this.#ended(connection, message));
    }
    const head = String.fromCharCode(...payload.subarray(0, 16));
    if (other?.reader instanceof Http1 || type === 1 || type === 3 || /^([A-Z]+ |HTTP\/1)/.test(head)) {
      const method = () => connection.waiting[0]?.request?.method ?? "";
      return new Http1((message) => this.#begun1(connection, message), (message) => this.#ended(connection, message), method);
    }
    return { push: (bytes) => this.#raw(connection, bytes) };
  }

  #begun1(connection, message) {
    if (!message.status) {
      const row = this.#row(connection, "HTTP/1.1", message);
      this.#belongs(row, message);
      connection.waiting.push(row);
      if (connection.waiting.length > MAX_WAITING) connection.waiting.shift();
      return;
    }
    if (message.status < 200 && message.status !== 101) return;
    const row = connection.waiting.shift() ?? this.#row(connection, "HTTP/1.1", null);
    row.response = message;
    this.#belongs(row, message);
    connection.upgraded = message.status === 101 || (row.request?.method === "CONNECT" && message.status < 300);
  }

  #begun2(connection, message) {
    let row = connection.streams.get(message.stream);
    if (!row) {
      row = this.#row(connection, "HTTP/2", null);
      connection.streams.set(message.stream, row);
      if (connection.streams.size > MAX_ASKED) connection.streams.delete(connection.streams.keys().next().value);
    }
    if (message.status) {
      row.response = message;
    } else {
      row.request = message;
      row.host = headerOf(message, ":authority") || row.host;
    }
    this.#belongs(row, message);
  }

  #belongs(row, message) {
    message.row = row;
    message.gone = row.gone;
    this.#kept += headersWeight(message);
    this.changed.add(row);
  }

  #ended(connection, message) {
    const { row } = message;
    if (!row) return;
    row.end = timeOf(connection.event);
    this.changed.add(row);
    if (row.request?.done && row.response?.done) connection.streams.delete(message.stream);
  }

  #raw(connection, bytes) {
    if (!bytes.length) return;
    const { direction, type } = connection.event;
    if (!connection.raw || connection.raw.gone) {
      connection.raw = this.#row(connection, type === 5 ? "WebSocket" : "bytes", null);
    }
    const row = connection.raw;
    const side = direction === 2 ? "written" : "read";
    row[side] ??= new Pile();
    row[side].push(bytes, MAX_RAW);
    this.changed.add(row);
    row.rawSize = (row.rawSize ?? 0) + bytes.length;
  }

  #row(connection, protocol, request) {
    const { event } = connection;
    const row = {
      number: ++this.#number, protocol, request, response: null,
      time: timeOf(event), process: event.pname, pid: event.pid, app: event.app,
      host: headerOf(request, "host") || event.server_name || event.dst_ip,
    };
    this.rows.push(row);
    this.changed.add(row);
    return row;
  }

  #bound() {
    // A thousand at a time: to move all others costs more than one row is worth.
    if (this.rows.length > MAX_ROWS) this.#discard(1000);
    if (this.#kept <= MAX_KEPT) return;
    // What was counted is more than what is there: bodies are kept in part.
    const weigh = () => this.rows.reduce((sum, row) => sum + weight(row), 0);
    this.#kept = weigh();
    while (this.#kept > MAX_KEPT * 0.75) {
      this.#discard(Math.ceil(this.rows.length / 4));
      this.#kept = weigh();
    }
    const held = () => [...this.#connections.values()].reduce((sum, { sides }) =>
      sum + Object.values(sides).reduce((bytes, { reader }) => bytes + (reader?.held ?? 0), 0), 0);
    while (held() > MAX_KEPT / 2) this.#forget(Math.ceil(this.#connections.size / 4));
  }

  /** Lets the oldest rows go, and what of them is still to come. */
  #discard(count) {
    for (const row of this.rows.splice(0, count)) {
      row.gone = true;
      for (const message of [row.request, row.response]) {
        if (!message) continue;
        message.gone = true;
        message.body = new Pile();
      }
      row.written = row.read = undefined;
      this.changed.add(row);
    }
    this.dropped += count;
  }

  /** Lets the connections go that were silent for longest. */
  #forget(count) {
    for (const key of [...this.#connections.keys()].slice(0, count)) this.#connections.delete(key);
  }
}

const timeOf = (event) => Number(event.timestamp / 1000n) / 1000;

const headersWeight = ({ headers }) =>
  headers.reduce((sum, [name, value]) => sum + name.length + value.length + OBJECT, OBJECT);

/** What a row takes of memory, about. */
function weight(row) {
  const messages = [row.request, row.response].filter(Boolean);
  return messages.reduce((sum, message) => sum + headersWeight(message) + message.body.length, OBJECT) +
    (row.written?.length ?? 0) + (row.read?.length ?? 0);
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
