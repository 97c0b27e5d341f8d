// HTTP/2 of one direction of a connection: frames in, messages out, one per stream.

import { Hpack } from "./hpack.js";
import { headerOf, joinBytes, MAX_BODY } from "./http1.js";

const PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_FRAME = 1 << 20;
/** Streams open at a time; the oldest are given up. */
const MAX_STREAMS = 1000;
const DATA = 0, HEADERS = 1, RST = 3, CONTINUATION = 9;

/** Whether a direction's first bytes are a client's HTTP/2 (or a server's, by its SETTINGS frame). */
export function isHttp2(bytes) {
  const text = String.fromCharCode(...bytes.subarray(0, PREFACE.length));
  if (text.length >= 3 && PREFACE.startsWith(text)) return true;
  return bytes.length >= 9 && bytes[0] === 0 && bytes[3] === 4 && bytes[4] < 2 && !(bytes[5] | bytes[6] | bytes[7] | bytes[8]);
}

export class Http2 {
  #rest = new Uint8Array();
  #hpack = new Hpack();
  #streams = new Map();
  #block = null;
  #dead = false;
  #started = false;

  /** As `Http1`'s; messages have `stream`, the stream's number. */
  constructor(begun, ended) {
    this.begun = begun;
    this.ended = ended;
  }

  /** Takes the stream's next bytes. */
  push(bytes) {
    if (this.#dead) return;
    let rest = joinBytes(this.#rest, bytes);
    if (!this.#started) {
      const preface = rest[0] === 80;
      if (preface && rest.length < PREFACE.length) {
        this.#rest = rest;
        return;
      }
      if (preface) rest = rest.subarray(PREFACE.length);
      this.#started = rest.length > 0 || preface;
    }
    while (rest.length >= 9) {
      const length = (rest[0] << 16) | (rest[1] << 8) | rest[2];
      if (length > MAX_FRAME) {
        this.gap();
        return;
      }
      if (rest.length < 9 + length) break;
      const stream = (((rest[5] & 127) << 24) | (rest[6] << 16) | (rest[7] << 8) | rest[8]) >>> 0;
      this.#frame(rest[3], rest[4], stream, rest.subarray(9, 9 + length));
      rest = rest.subarray(9 + length);
    }
    this.#rest = rest.slice();
  }

  /** Bytes are missing: frames and header tables can't be found again, so that this direction ends here. */
  gap() {
    this.#dead = true;
    this.#rest = new Uint8Array();
    for (const stream of [...this.#streams.keys()]) this.#end(stream, true);
  }

  #frame(type, flags, stream, payload) {
    let body = payload;
    if ((type === DATA || type === HEADERS) && flags & 8) {
      body = body.subarray(1, Math.max(1, body.length - (body[0] ?? 0)));
    }
    if (type === HEADERS) {
      this.#block = { ends: flags & 1, bytes: flags & 32 ? body.subarray(5) : body };
    } else if (type === CONTINUATION && this.#block) {
      this.#block.bytes = joinBytes(this.#block.bytes, body, MAX_FRAME);
    }
    if ((type === HEADERS || type === CONTINUATION) && flags & 4 && this.#block) {
      const { ends, bytes } = this.#block;
      this.#block = null;
      this.#headers(stream, bytes);
      if (ends) this.#end(stream, false);
    } else if (type === DATA) {
      const message = this.#streams.get(stream);
      if (message) {
        message.size += body.length;
        message.body = joinBytes(message.body, body, MAX_BODY);
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
    const open = this.#streams.get(stream);
    if (open) {
      open.headers.push(...headers);
      return;
    }
    const message = { stream, headers, body: new Uint8Array(), size: 0, done: false, cut: false };
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
    this.ended(message);
  }
}
