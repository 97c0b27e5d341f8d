// HTTP/1 of one direction of a connection: bytes in, whole messages out.
//
// A head of more than 64 KiB ends the reading; of a body at most `MAX_BODY` bytes are kept, its size is counted on.

export const MAX_BODY = 1 << 20;
const MAX_HEAD = 64 << 10;
const latin1 = new TextDecoder("latin1");

/** Bytes put together, with no more than `most` of them kept. */
export function joinBytes(a, b, most = Infinity) {
  const room = Math.min(b.length, Math.max(0, most - a.length));
  if (!room) return a;
  const joined = new Uint8Array(a.length + room);
  joined.set(a);
  joined.set(b.subarray(0, room), a.length);
  return joined;
}

export class Http1 {
  #rest = new Uint8Array();
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
    if (this.#state === "dead") return;
    this.#rest = joinBytes(this.#rest, bytes);
    while (this.#step());
  }

  /** Bytes are missing here: what is open stays cut, and reading goes on at the next head. */
  gap() {
    if (this.#message) this.#finish(true);
    this.#rest = new Uint8Array();
    this.#state = "head";
  }

  #line() {
    const at = this.#rest.indexOf(10);
    if (at < 0) {
      if (this.#rest.length > MAX_HEAD) this.#state = "dead";
      return null;
    }
    const line = latin1.decode(this.#rest.subarray(0, at)).replace(/\r$/, "");
    this.#rest = this.#rest.subarray(at + 1);
    return line;
  }

  #body(most) {
    const part = this.#rest.subarray(0, Math.min(most, this.#rest.length));
    this.#rest = this.#rest.subarray(part.length);
    this.#message.size += part.length;
    this.#message.body = joinBytes(this.#message.body, part, MAX_BODY);
    return part.length;
  }

  #finish(cut = false) {
    const message = this.#message;
    this.#message = null;
    this.#state = "head";
    message.cut = cut;
    message.done = true;
    this.ended(message);
  }

  #step() {
    if (this.#state === "head") return this.#head();
    if (this.#state === "until-end") return this.#body(Infinity) > 0 && false;
    if (this.#state === "length" || this.#state === "chunk") {
      this.#left -= this.#body(this.#left);
      if (this.#left > 0) return false;
      if (this.#state === "length") this.#finish();
      else this.#state = "after-chunk";
      return true;
    }
    if (this.#state === "dead") return false;
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
    const bytes = this.#rest;
    for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) {
      if (bytes[at + 1] === 10 || (bytes[at + 1] === 13 && bytes[at + 2] === 10)) {
        end = at + (bytes[at + 1] === 10 ? 2 : 3);
        break;
      }
    }
    if (end < 0) {
      if (bytes.length > MAX_HEAD) this.#state = "dead";
      return false;
    }
    const [start, ...lines] = latin1.decode(bytes.subarray(0, end)).trim().split(/\r?\n/);
    this.#rest = bytes.subarray(end);
    const request = /^([!-~]+) (\S+) HTTP\/1\.\d$/.exec(start);
    const response = /^HTTP\/1\.\d (\d{3})/.exec(start);
    // After a gap this may be any text: look on for a head.
    if (!request && !response) return true;
    const headers = lines.map((line) => {
      const colon = line.indexOf(":");
      return [line.slice(0, colon), line.slice(colon + 1).trim()];
    });
    this.#message = { start, headers, body: new Uint8Array(), size: 0, done: false, cut: false };
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
      this.#state = "dead";
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
    } else {
      this.#finish();
    }
  }
}

/** The value of a message's header `name` (in small letters), or "". */
export function headerOf(message, name) {
  return message?.headers.find(([key]) => key.toLowerCase() === name)?.[1] ?? "";
}
