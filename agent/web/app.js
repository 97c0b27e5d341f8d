// The page: the agent's messages in, the list, the detail and the exports out.

import { $, Detail, element } from "./detail.js";
import { harOf } from "./export.js";
import { connect } from "./link.js";
import { List } from "./list.js";
import { decodeEntry } from "./proto.js";
import { Traffic } from "./traffic.js";

const MAX_LINES = 500;
const MAX_STREAM = 64 << 20;
/** Milliseconds between two looks of an open detail at what is still coming. */
const DETAIL_EVERY = 250;
const traffic = new Traffic();
const detail = new Detail($("detail"));
const list = new List(traffic, (row) => detail.show(row));
const known = { run: "", after: "0" };
const lines = [];
let messages = [];
let messageBytes = 0;
let paused = false;
let planned = false;
let late = 0;
/** Whether a heartbeat came on this connection: before it come kept log lines, whose numbers say nothing of what was seen. */
let greeted = false;

function plan() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    const { row } = detail;
    if (row && traffic.changed.has(row) && !row.gone && !late) {
      late = setTimeout(() => {
        late = 0;
        if (row === detail.row && !row.gone) detail.show(row);
      }, DETAIL_EVERY);
    }
    list.update(traffic.changed);
    traffic.changed.clear();
    const { waiting } = list;
    $("waiting").textContent = waiting ? `${waiting} new` : "";
  });
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
  if (messageBytes > MAX_STREAM) {
    for (const old of messages.splice(0, Math.ceil(messages.length / 4))) messageBytes -= old.length;
  }
  const { event_payload: event, heartbeat_payload: beat, run_log: text, seq } = entry;
  if (beat) heartbeat(beat);
  if (seq > 0n && (greeted || event)) known.after = String(seq);
  if (text !== undefined) log(text);
  if (event) {
    traffic.add(event);
    plan();
  }
}

function heartbeat(beat) {
  greeted = true;
  if (beat.run_id !== known.run) {
    if (known.run) traffic.restart();
    known.run = beat.run_id;
  }
  known.after = String(beat.last_seq);
  $("beat").textContent = `${beat.captured_events} events captured, ${beat.lost_events} lost, ${beat.missed_messages} missed ` +
    `here, ${beat.clients} ${beat.clients === 1 ? "client" : "clients"}, up ${beat.uptime_ms / 1000n} s`;
}

function save(name, parts, type) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
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

$("filter").addEventListener("input", () => list.filter($("filter").value));
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").ariaPressed = String(paused);
  list.pause(paused);
  plan();
});
$("clear").addEventListener("click", () => {
  traffic.clear();
  messages = [];
  messageBytes = 0;
  list.unpick();
  detail.clear();
  plan();
});
$("har").addEventListener("click", async () => save("plaintap.har", await harOf(list.rows.slice()), "application/json"));
$("raw").addEventListener("click", () => save("plaintap.pb", delimited(), "application/octet-stream"));
$("logs").addEventListener("toggle", () => {
  $("log").textContent = lines.join("\n");
});
const token = new URLSearchParams(location.search).get("token");
connect(`ws://${location.host}/`, token, known, take, (text, open) => {
  greeted = false;
  $("state").textContent = text;
  $("state").classList.toggle("bad", !open);
});
