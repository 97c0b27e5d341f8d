// HTTP/1 of one direction of a connection: bytes in, whole messages out.
//
// A head of more than 64 KiB ends the reading; of a body at most `MAX_BODY` bytes are kept, its size is counted on.

import { Pile } from "./pile.js";

export const MAX_BODY = 1 << 20;
const MAX_HEAD = 64 << 10;
const latin1 = new TextDecoder("latin1");

export class Http1 {
  #rest = new Pile();
  /** How much of a head that is not whole yet was looked through for its end. */
  #seen = 0;
  #left = 0;
  #state = "head";
  #message = null;

  /** `begun(message)` is called at a message's head, `ended(message)` at its end; `method()` gives the method that the
   * next response answers. */
  constructor(begun, ended, method = () => "") {
    this.begun = begun;
    this.ended = ended;
    this.method = method;
  }

  /** Takes the stream's next bytes. */
  push(bytes) {
    if (this.#state === "dead" || this.#state === "upgraded") return;
    this.#rest.push(bytes);
    while (this.#step());
    if (this.#state === "dead") this.#rest.clear();
  }

  /** What came behind a head after which HTTP ends, as an upgrade's. */
  rest() {
    const bytes = this.#rest.bytes.slice();
    this.#rest.clear();
    return bytes;
  }

  /** The message whose body is being read. */
  get current() {
    return this.#message;
  }

  /** Bytes that wait for others. */
  get held() {
    return this.#rest.length;
  }

  /** Bytes are missing here: what is open stays cut, and reading goes on at the next head. */
  gap() {
    if (this.#message) this.#finish(true);
    this.#rest.clear();
    this.#seen = 0;
    this.#state = "head";
  }

  #line() {
    const { bytes } = this.#rest;
    const at = bytes.subarray(0, MAX_HEAD).indexOf(10, this.#seen);
    if (at < 0) {
      this.#seen = bytes.length;
      if (bytes.length > MAX_HEAD) {
        this.#finish(true);
        this.#state = "dead";
      }
      return null;
    }
    const line = latin1.decode(bytes.subarray(0, at)).replace(/\r$/, "");
    this.#rest.drop(at + 1);
    this.#seen = 0;
    return line;
  }

  #body(most) {
    const part = this.#rest.bytes.subarray(0, Math.min(most, this.#rest.length));
    this.#message.size += part.length;
    this.#message.body.push(part, this.#message.gone ? 0 : MAX_BODY);
    this.#rest.drop(part.length);
    return part.length;
  }

  #finish(cut = false) {
    const message = this.#message;
    this.#message = null;
    this.#state = "head";
    message.cut = cut;
    message.done = true;
    message.body.trim();
    this.ended(message);
  }

  #step() {
    if (this.#state === "head") return this.#head();
    if (this.#state === "until-end") {
      this.#body(Infinity);
      return false;
    }
    if (this.#state === "length" || this.#state === "chunk") {
      this.#left -= this.#body(this.#left);
      if (this.#left > 0) return false;
      if (this.#state === "length") this.#finish();
      else this.#state = "after-chunk";
      return true;
    }
    if (this.#state === "dead" || this.#state === "upgraded") return false;
    const line = this.#line();
    if (line === null) return false;
    if (this.#state === "trailers") {
      if (line === "") this.#finish();
    } else if (this.#state === "after-chunk") {
      this.#state = "size";
    } else {
      this.#left = /^[0-9a-f]{1,12}\s*(;|$)/i.test(line) ? Number.parseInt(line, 16) : -1;
      if (this.#left < 0) {
        this.#finish(true);
        this.#state = "dead";
        return false;
      }
      this.#state = this.#left === 0 ? "trailers" : "chunk";
    }
    return true;
  }

  #head() {
    let end = -1;
    const { bytes } = this.#rest;
    // The end may stand astride two pieces.
    for (let at = bytes.indexOf(10, Math.max(0, this.#seen - 3)); at >= 0; at = bytes.indexOf(10, at + 1)) {
      if (bytes[at + 1] === 10 || (bytes[at + 1] === 13 && bytes[at + 2] === 10)) {
        end = at + (bytes[at + 1] === 10 ? 2 : 3);
        break;
      }
    }
    if (end < 0) {
      this.#seen = bytes.length;
      if (bytes.length > MAX_HEAD) this.#state = "dead";
      return false;
    }
    this.#seen = 0;
    const [start, ...lines] = latin1.decode(bytes.subarray(0, end)).trim().split(/\r?\n/);
    this.#rest.drop(end);
    const request = /^([!-~]+) (\S+) HTTP\/1\.\d$/.exec(start);
    const response = /^HTTP\/1\.\d (\d{3})/.exec(start);
    // After a gap this may be any text: look on for a head.
    if (!request && !response) return true;
    const headers = lines.map((line) => {
      const colon = line.indexOf(":");
      return [line.slice(0, colon), line.slice(colon + 1).trim()];
    });
    this.#message = { start, headers, body: new Pile(), size: 0, done: false, cut: false };
    if (request) [, this.#message.method, this.#message.path] = request;
    else this.#message.status = Number(response[1]);
    this.#frame(this.#message);
    return true;
  }

  #frame(message) {
    const { status } = message;
    const method = status ? this.method(status) : "";
    this.begun(message);
    const length = headerOf(message, "content-length");
    if (status === 101 || (method === "CONNECT" && status < 300)) {
      this.#finish();
      this.#state = "upgraded";
    } else if (method === "HEAD" || status === 204 || status === 304 || (status >= 100 && status < 200)) {
      this.#finish();
    } else if (/chunked/i.test(headerOf(message, "transfer-encoding"))) {
      this.#state = "size";
    } else if (/^\d+$/.test(length)) {
      this.#left = Number(length);
      this.#state = "length";
      if (this.#left === 0) this.#finish();
    } else if (status) {
      this.#state = "until-end";
      message.endless = true;
    } else {
      this.#finish();
    }
  }
}

/** The value of a message's header `name` (in small letters), or "". */
export function headerOf(message, name) {
  return message?.headers.find(([key]) => key.toLowerCase() === name)?.[1] ?? "";
}
