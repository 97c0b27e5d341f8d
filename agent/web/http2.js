// HTTP/2 of one direction of a connection: frames in, messages out, one per stream.

import { Hpack } from "./hpack.js";
import { headerOf, MAX_BODY } from "./http1.js";
import { Pile } from "./pile.js";

const PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_FRAME = 1 << 20;
/** Streams open at a time; the oldest are given up. */
const MAX_STREAMS = 1000;
/** Headers of a message to which more may come behind its body. */
const MAX_TRAILERS = 1000;
const DATA = 0, HEADERS = 1, RST = 3, PUSH = 5, CONTINUATION = 9;

/** Whether a direction's first bytes are a client's HTTP/2 (or a server's, by its SETTINGS frame). */
export function isHttp2(bytes) {
  const text = String.fromCharCode(...bytes.subarray(0, PREFACE.length));
  if (text.length >= 3 && PREFACE.startsWith(text)) return true;
  return bytes.length >= 9 && bytes[0] === 0 && bytes[3] === 4 && bytes[4] < 2 && !(bytes[5] | bytes[6] | bytes[7] | bytes[8]);
}

export class Http2 {
  #rest = new Pile();
  #hpack = new Hpack();
  #streams = new Map();
  #block = null;
  #dead = false;
  #started = false;
  /** The message of the last data. */
  current = null;

  /** As `Http1`'s; messages have `stream`, the stream's number. */
  constructor(begun, ended) {
    this.begun = begun;
    this.ended = ended;
  }

  /** Takes the stream's next bytes. */
  push(bytes) {
    if (this.#dead) return;
    const rest = this.#rest;
    rest.push(bytes);
    if (!this.#started) {
      const preface = rest.bytes[0] === 80;
      if (preface && rest.length < PREFACE.length) return;
      if (preface) rest.drop(PREFACE.length);
      this.#started = rest.length > 0 || preface;
    }
    while (rest.length >= 9) {
      const head = rest.bytes;
      const length = (head[0] << 16) | (head[1] << 8) | head[2];
      if (length > MAX_FRAME) {
        this.gap();
        return;
      }
      if (head.length < 9 + length) break;
      const stream = (((head[5] & 127) << 24) | (head[6] << 16) | (head[7] << 8) | head[8]) >>> 0;
      this.#frame(head[3], head[4], stream, head.subarray(9, 9 + length));
      rest.drop(9 + length);
    }
  }

  /** Bytes that wait for others, and those of the header table. */
  get held() {
    return this.#rest.length + this.#hpack.size + (this.#block?.bytes.length ?? 0);
  }

  /** Bytes are missing: frames and header tables can't be found again, so that this direction ends here. */
  gap() {
    this.#dead = true;
    this.#rest.clear();
    this.#block = null;
    for (const stream of [...this.#streams.keys()]) this.#end(stream, true);
  }

  #frame(type, flags, stream, payload) {
    let body = payload;
    if ((type === DATA || type === HEADERS || type === PUSH) && flags & 8) {
      body = body.subarray(1, Math.max(1, body.length - (body[0] ?? 0)));
    }
    if (type === HEADERS) {
      this.#block = { ends: flags & 1, bytes: new Pile() };
      this.#block.bytes.push(flags & 32 ? body.subarray(5) : body);
    } else if (type === PUSH) {
      // The request that it promises: read for what it does to the header table.
      this.#block = { promise: true, bytes: new Pile() };
      this.#block.bytes.push(body.subarray(4));
    } else if (type === CONTINUATION && this.#block) {
      this.#block.bytes.push(body, MAX_FRAME);
    }
    if ((type === HEADERS || type === PUSH || type === CONTINUATION) && flags & 4 && this.#block) {
      const { ends, promise, bytes } = this.#block;
      this.#block = null;
      this.#headers(promise ? 0 : stream, bytes.bytes);
      if (ends) this.#end(stream, false);
    } else if (type === DATA) {
      const message = this.#streams.get(stream);
      if (message) {
        this.current = message;
        message.size += body.length;
        message.body.push(body, message.gone ? 0 : MAX_BODY);
      }
      if (flags & 1) this.#end(stream, false);
    } else if (type === RST) {
      this.#end(stream, true);
    }
  }

  #headers(stream, block) {
    let headers;
    try {
      headers = this.#hpack.decode(block);
    } catch (error) {
      headers = [["(headers)", error.message]];
    }
    if (stream === 0) return;
    const open = this.#streams.get(stream);
    if (open) {
      for (const header of headers.slice(0, MAX_TRAILERS)) {
        if (open.headers.length < MAX_TRAILERS) open.headers.push(header);
      }
      return;
    }
    const message = { stream, headers, body: new Pile(), size: 0, done: false, cut: false };
    const status = headerOf(message, ":status");
    if (/^1\d\d$/.test(status)) return;
    if (status) message.status = Number(status);
    message.method = headerOf(message, ":method");
    message.path = headerOf(message, ":path");
    message.start = status ? `HTTP/2 ${status}` : `${message.method} ${message.path} HTTP/2`;
    this.#streams.set(stream, message);
    if (this.#streams.size > MAX_STREAMS) this.#end(this.#streams.keys().next().value, true);
    this.begun(message);
  }

  #end(stream, cut) {
    const message = this.#streams.get(stream);
    if (!message) return;
    this.#streams.delete(stream);
    message.done = true;
    message.cut = cut;
    message.body.trim();
    this.ended(message);
  }
}
