// Bodies as people read them, and rows as a HAR.

import { headerOf } from "./http1.js";

const MAX_DECODED = 4 << 20;
const MAX_HAR = 256 << 20;

/** A message's body with its Content-Encoding undone, as far as this browser can and within 4 MiB. */
export async function plainBody(message) {
  const coding = headerOf(message, "content-encoding").trim().toLowerCase();
  const format = { gzip: "gzip", "x-gzip": "gzip", deflate: "deflate" }[coding];
  const { bytes: sent } = message.body;
  if (!format || !sent.length) {
    const other = coding && coding !== "identity" && sent.length;
    return { bytes: sent, note: other ? `as it was sent, in ${coding}` : "" };
  }
  const parts = [];
  let size = 0;
  let note = `un${coding === "deflate" ? "deflated" : "zipped"}`;
  try {
    const reader = new Blob([sent]).stream().pipeThrough(new DecompressionStream(format)).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      size += value.length;
      if (size > MAX_DECODED) {
        note = "only its first 4 MiB";
        await reader.cancel();
        break;
      }
    }
  } catch {
    note = "cut off: what could be decoded of it";
    if (!size) return { bytes: sent, note: `not decodable, as it was sent, in ${coding}` };
  }
  return { bytes: new Uint8Array(await new Blob(parts).arrayBuffer()), note };
}

/** The text of `bytes`, or null if they are no UTF-8 text. */
export function textOf(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what tells text from bytes
    return /[\x00-\x08\x0e-\x1a]/.test(text) ? null : text;
  } catch {
    return null;
  }
}

/** A hex dump: offset, 16 bytes, their ASCII. */
export function hexOf(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = [...bytes.subarray(at, at + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const ascii = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex.padEnd(47)}  ${ascii}`);
  }
  return lines.join("\n");
}

/** The rows that are HTTP, as the pieces of a HAR 1.2 file: one text would be longer than a text may be. */
export async function harOf(rows) {
  const creator = JSON.stringify({ name: "plaintap", version: "1" });
  const pieces = [`{"log":{"version":"1.2","creator":${creator},"entries":[`];
  let room = MAX_HAR;
  for (const row of rows) {
    if (!row.request) continue;
    const entry = JSON.stringify(await harEntry(row, room > 0));
    room -= entry.length;
    pieces.push(pieces.length > 1 ? `,\n${entry}` : entry);
  }
  pieces.push("]}}\n");
  return pieces;
}

async function harEntry(row, bodies) {
  const { request, response, protocol: httpVersion } = row;
  const pairs = (headers) => headers.filter(([name]) => !name.startsWith(":")).map(([name, value]) => ({ name, value }));
  const url = /^https?:/.test(request.path) ? request.path : `https://${row.host}${request.path}`;
  const parsed = URL.canParse(url) ? new URL(url) : null;
  const time = row.end ? Math.max(0, row.end - row.time) : 0;
  const sent = bodies ? textOf((await plainBody(request)).bytes) : null;
  const got = bodies && response ? (await plainBody(response)).bytes : new Uint8Array();
  const text = textOf(got);
  const content = { size: got.length, mimeType: headerOf(response, "content-type") };
  if (text !== null) {
    content.text = text;
  } else {
    content.text = base64(got);
    content.encoding = "base64";
  }
  const entry = {
    startedDateTime: new Date(row.time).toISOString(), time,
    request: {
      method: request.method, url, httpVersion, cookies: [], headers: pairs(request.headers),
      queryString: [...(parsed?.searchParams ?? [])].map(([name, value]) => ({ name, value })),
      headersSize: -1, bodySize: request.size,
    },
    response: {
      status: response?.status ?? 0, statusText: "", httpVersion, cookies: [], headers: pairs(response?.headers ?? []),
      content, redirectURL: headerOf(response, "location"), headersSize: -1, bodySize: response?.size ?? -1,
    },
    cache: {}, timings: { send: 0, wait: time, receive: 0 },
    comment: `${row.process} ${row.pid}${bodies ? "" : "; the export is full, so that bodies are left out"}`,
  };
  if (request.size) {
    entry.request.postData = { mimeType: headerOf(request, "content-type"), params: [], text: sent ?? "" };
  }
  return entry;
}

function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}
