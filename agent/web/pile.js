// Bytes that come in pieces. Taking n bytes costs O(n), in however many pieces they come.

const EMPTY = new Uint8Array();

export class Pile {
  #buffer = EMPTY;
  #from = 0;
  #to = 0;

  get length() {
    return this.#to - this.#from;
  }

  /** What is there, as a view that is good until the next `push`. */
  get bytes() {
    return this.#buffer.subarray(this.#from, this.#to);
  }

  /** Takes `bytes`, or what of them there is room for below `most`. */
  push(bytes, most = Infinity) {
    const room = Math.min(bytes.length, Math.max(0, most - this.length));
    if (!room) return;
    if (this.#to + room > this.#buffer.length) {
      const length = this.length;
      const grown = new Uint8Array(Math.max(length + room, Math.min(2 * length, most)));
      grown.set(this.bytes);
      this.#buffer = grown;
      this.#from = 0;
      this.#to = length;
    }
    this.#buffer.set(room < bytes.length ? bytes.subarray(0, room) : bytes, this.#to);
    this.#to += room;
  }

  /** Lets the first `count` bytes go. */
  drop(count) {
    this.#from += count;
    if (this.#from >= this.#to) this.clear();
  }

  clear() {
    this.#buffer = EMPTY;
    this.#from = this.#to = 0;
  }

  /** Gives back what was allocated and is not used. */
  trim() {
    if (this.#buffer.length > this.length) this.#buffer = this.bytes.slice();
    this.#to = this.#buffer.length;
    this.#from = 0;
  }
}
