// HPACK (RFC 7541): header blocks of one direction of an HTTP/2 connection, with its dynamic table.

// Length of each symbol's code, as a letter ("A" is 5 bits). The code is canonical, so that lengths say all. Appendix B.
const LENGTHS =
  "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJBKABABABBBACCBBBABCBAABCCCCC" +
  "KGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVW" +
  "WWWWXWWWWWVZ";
// Appendix A.
const STATIC = (
  ":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|:status=204|" +
  ":status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|accept-encoding=gzip, deflate|accept-language|" +
  "accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control|content-disposition|" +
  "content-encoding|content-language|content-length|content-location|content-range|content-type|cookie|date|etag|expect|" +
  "expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|" +
  "max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie|" +
  "strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
).split("|").map((entry) => {
  const equals = entry.indexOf("=");
  return equals < 0 ? [entry, ""] : [entry.slice(0, equals), entry.slice(equals + 1)];
});
/** What a table may be told to grow to. */
const MAX_TABLE = 64 << 10;
/** What a block's headers may come to, counted as the table is; those behind it are left out. */
const MAX_HEADERS = 256 << 10;
const latin = new TextDecoder("latin1");

const CODES = new Map();
{
  const symbols = [...LENGTHS].map((letter, symbol) => [letter.charCodeAt(0) - 60, symbol]);
  let code = 0;
  let length = 0;
  for (const [bits, symbol] of symbols.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    code *= 2 ** (bits - length);
    length = bits;
    CODES.set(length * 2 ** 32 + code++, symbol);
  }
}

/** The text of a Huffman-coded string; throws on what is none. */
export function huffman(bytes) {
  const out = [];
  let code = 0;
  let length = 0;
  for (const byte of bytes) {
    for (let bit = 7; bit >= 0; bit--) {
      code = code * 2 + ((byte >> bit) & 1);
      length += 1;
      const symbol = CODES.get(length * 2 ** 32 + code);
      if (symbol !== undefined && symbol < 256) {
        out.push(symbol);
        code = length = 0;
      } else if (length > 30) {
        throw new Error("a header has a broken Huffman code");
      }
    }
  }
  if (length > 7 || code !== 2 ** length - 1) throw new Error("a header's Huffman code ends too early");
  return latin.decode(new Uint8Array(out));
}

export class Hpack {
  #table = [];
  /** Bytes of the table, as the RFC counts them. */
  size = 0;
  #most = 4096;

  /** The headers of a whole block, as pairs. Throws when the block is broken, or its table's start was missed. */
  decode(block) {
    const headers = [];
    let room = MAX_HEADERS;
    const keep = (header) => {
      room -= header[0].length + header[1].length + 32;
      if (room >= 0) headers.push(header);
    };
    let at = 0;
    const byte = () => {
      if (at >= block.length) throw new Error("a header block ends too early");
      return block[at++];
    };
    const number = (bits) => {
      const most = 2 ** bits - 1;
      let value = block[at++] & most;
      if (value < most) return value;
      for (let scale = 1; ; scale *= 128) {
        const next = byte();
        value += (next & 127) * scale;
        if (value > 2 ** 30) throw new Error("a number in a header block is too large");
        if (next < 128) return value;
      }
    };
    const text = () => {
      const coded = byte() & 128;
      at -= 1;
      const length = number(7);
      if (length > block.length - at) throw new Error("a header block ends too early");
      at += length;
      const bytes = block.subarray(at - length, at);
      return coded ? huffman(bytes) : latin.decode(bytes);
    };
    while (at < block.length) {
      const first = block[at];
      if (first & 128) {
        keep(this.#entry(number(7)));
      } else if ((first & 224) === 32) {
        this.#most = Math.min(number(5), MAX_TABLE);
        this.#evict();
      } else {
        const kept = first & 64;
        const index = number(kept ? 6 : 4);
        const name = index ? this.#entry(index)[0] : text();
        const header = [name, text()];
        keep(header);
        if (kept) {
          this.#table.unshift(header);
          this.size += header[0].length + header[1].length + 32;
          this.#evict();
        }
      }
    }
    return headers;
  }

  #entry(index) {
    const entry = index <= STATIC.length ? STATIC[index - 1] : this.#table[index - STATIC.length - 1];
    if (!entry) throw new Error("a header was named before the capture began");
    return entry;
  }

  #evict() {
    while (this.size > this.#most) {
      const [name, value] = this.#table.pop();
      this.size -= name.length + value.length + 32;
    }
  }
}
