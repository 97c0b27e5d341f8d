// The page: what it shows, and what is done with it. Payloads become text nodes only, never markup.

import { harOf, hexOf, plainBody, textOf } from "./export.js";
import { connect } from "./link.js";
import { decodeEntry } from "./proto.js";
import { matches, sizeOf, Traffic } from "./traffic.js";

const HEIGHT = 28;
const MAX_LINES = 500;
const MAX_STREAM = 64 << 20;
const MAX_SHOWN = 256 << 10;
const $ = (id) => document.getElementById(id);
const traffic = new Traffic();
const known = { run: "", after: "0" };
const lines = [];
let messages = [];
let messageBytes = 0;
let shown = [];
let picked = null;
let paused = false;
let planned = false;

function element(name, text, ...classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes);
  return made;
}

function plan() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    if (!paused) refresh();
  });
}

function refresh() {
  const list = $("list");
  const follows = list.scrollTop + list.clientHeight >= list.scrollHeight - HEIGHT;
  const filter = $("filter").value;
  shown = filter.trim() ? traffic.rows.filter((row) => matches(row, filter)) : traffic.rows.slice();
  $("space").style.height = `${shown.length * HEIGHT}px`;
  $("empty").hidden = shown.length > 0;
  $("empty").textContent = traffic.rows.length ? "Nothing here agrees with the filter."
    : "Nothing yet. What programs send over TLS shows here as it happens.";
  if (follows) list.scrollTop = list.scrollHeight;
  draw();
}

function draw() {
  const list = $("list");
  const from = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 5);
  const rows = shown.slice(from, from + Math.ceil(list.clientHeight / HEIGHT) + 10);
  $("space").replaceChildren(...rows.map((row, index) => line(row, from + index)));
  if (rows.includes(picked)) list.setAttribute("aria-activedescendant", `row${picked.number}`);
  else list.removeAttribute("aria-activedescendant");
}

function line(row, index) {
  const { request, response } = row;
  const made = element("div", undefined, "row");
  made.id = `row${row.number}`;
  made.role = "option";
  made.ariaSelected = String(row === picked);
  made.ariaSetSize = String(shown.length);
  made.ariaPosInSet = String(index + 1);
  made.style.top = `${index * HEIGHT}px`;
  const status = element("span", response?.status ?? (request ? "…" : row.protocol));
  if (response?.status >= 400) status.classList.add("bad");
  const time = new Date(row.time).toTimeString().slice(0, 8);
  made.append(element("span", time), element("span", row.process), element("span", request?.method ?? ""),
    element("span", row.host + (request?.path ?? "")), status, element("span", sizeText(sizeOf(row))));
  made.addEventListener("click", () => pick(row));
  return made;
}

function sizeText(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1 << 20 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

function pick(row) {
  picked = row;
  const index = shown.indexOf(row);
  const list = $("list");
  if (index * HEIGHT < list.scrollTop) list.scrollTop = index * HEIGHT;
  const under = (index + 1) * HEIGHT - list.clientHeight;
  if (under > list.scrollTop) list.scrollTop = under;
  draw();
  detail(row);
}

function facts(pairs) {
  const made = element("dl");
  for (const [name, value] of pairs) made.append(element("dt", name), element("dd", value));
  return made;
}

async function detail(row) {
  const parts = [facts([["Process", `${row.process} (${row.pid}) ${row.app}`], ["Host", row.host],
    ["Time", new Date(row.time).toISOString()], ["Protocol", row.protocol]])];
  for (const [title, message] of [["Request", row.request], ["Response", row.response]]) {
    if (!message) continue;
    parts.push(element("h2", `${title}: ${message.start}`), facts(message.headers));
    const { bytes, note } = await plainBody(message);
    const notes = [note, message.cut && "cut off", !message.done && "not complete yet",
      message.size > message.body.length && `only its first ${sizeText(message.body.length)} are kept`];
    if (bytes.length) parts.push(...body(bytes, [sizeText(message.size), ...notes].filter(Boolean).join(", ")));
  }
  for (const [title, bytes] of [["Written", row.written], ["Read", row.read]]) {
    if (bytes) parts.push(element("h2", title), ...body(bytes, sizeText(bytes.length)));
  }
  if (row === picked) $("detail").replaceChildren(...parts);
}

function body(bytes, note) {
  const part = bytes.subarray(0, MAX_SHOWN);
  const text = textOf(part);
  const views = { Text: () => text ?? new TextDecoder().decode(part), Hex: () => hexOf(part) };
  let first = text === null ? "Hex" : "Text";
  try {
    const json = JSON.stringify(JSON.parse(text), null, 2);
    views.JSON = () => json;
    first = "JSON";
  } catch {
    // No JSON: text and hex remain.
  }
  const shows = element("pre");
  shows.tabIndex = 0;
  const buttons = Object.keys(views).map((name) => {
    const button = element("button", name);
    button.addEventListener("click", () => show(name));
    return button;
  });
  const show = (name) => {
    shows.textContent = views[name]();
    shows.classList.toggle("hex", name === "Hex");
    for (const button of buttons) button.ariaPressed = String(button.textContent === name);
  };
  show(first);
  const bar = element("p", `Body, ${note} `);
  bar.append(...buttons);
  return [bar, shows];
}

function log(text) {
  lines.push(text);
  if (lines.length > MAX_LINES) lines.shift();
  if ($("logs").open) $("log").textContent = lines.join("\n");
}

function take(bytes) {
  let entry;
  try {
    entry = decodeEntry(bytes);
  } catch (error) {
    log(`a message of the agent is broken: ${error.message}`);
    return;
  }
  messages.push(bytes);
  messageBytes += bytes.length;
  while (messageBytes > MAX_STREAM) {
    const half = messages.splice(0, Math.ceil(messages.length / 2));
    for (const old of half) messageBytes -= old.length;
  }
  const { event_payload: event, heartbeat_payload: beat, run_log: text, seq } = entry;
  if (beat) heartbeat(beat);
  if (seq > 0n) known.after = String(seq);
  if (text !== undefined) log(text);
  if (event) {
    traffic.add(event);
    plan();
  }
}

function heartbeat(beat) {
  if (beat.run_id !== known.run) {
    if (known.run) traffic.restart();
    known.run = beat.run_id;
    known.after = String(beat.last_seq);
  }
  $("beat").textContent = `${beat.captured_events} events captured, ${beat.lost_events} lost, ${beat.missed_messages} missed ` +
    `here, ${beat.clients} clients, up ${beat.uptime_ms / 1000n} s`;
}

function save(name, parts, type) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Each message with its length before it, as a protobuf varint: the usual form of a file of messages. */
function delimited() {
  return messages.flatMap((bytes) => {
    const prefix = [];
    for (let length = bytes.length; ; length >>= 7) {
      prefix.push(length > 127 ? (length & 127) | 128 : length);
      if (length < 128) return [new Uint8Array(prefix), bytes];
    }
  });
}

$("list").addEventListener("scroll", draw);
new ResizeObserver(draw).observe($("list"));
$("list").addEventListener("keydown", (key) => {
  const page = Math.max(1, Math.floor($("list").clientHeight / HEIGHT) - 1);
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[key.key];
  if (!step || !shown.length) return;
  key.preventDefault();
  pick(shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(picked) + step))]);
});
$("filter").addEventListener("input", refresh);
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").ariaPressed = String(paused);
  if (!paused) refresh();
});
$("clear").addEventListener("click", () => {
  traffic.clear();
  messages = [];
  messageBytes = 0;
  picked = null;
  $("detail").replaceChildren(element("p", "Choose a line to see its request and response."));
  refresh();
});
$("har").addEventListener("click", async () =>
  save("plaintap.har", [JSON.stringify(await harOf(shown))], "application/json"));
$("raw").addEventListener("click", () => save("plaintap.pb", delimited(), "application/octet-stream"));
$("logs").addEventListener("toggle", () => {
  $("log").textContent = lines.join("\n");
});
const token = new URLSearchParams(location.search).get("token");
connect(`ws://${location.host}/`, token, known, take, (text) => {
  $("state").textContent = text;
});
