// The detail of a row, and the parts that the page is made of. Payloads become text nodes only, never markup.

import { hexOf, plainBody, textOf } from "./export.js";

const MAX_SHOWN = 256 << 10;

/** The page's own part of this id. */
export const $ = (id) => document.getElementById(id);

export function element(name, text, ...classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes);
  return made;
}

export function sizeText(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1 << 20 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

export class Detail {
  #place;
  #row = null;
  /** Which view was chosen for each body. */
  #views = new Map();

  constructor(place) {
    this.#place = place;
    this.clear();
  }

  get row() {
    return this.#row;
  }

  clear() {
    this.#row = null;
    this.#place.replaceChildren(element("p", "Choose a line to see its request and response.", "hint"));
  }

  /** Shows `row`, or what became of it if it is shown already. */
  async show(row) {
    if (row !== this.#row) {
      this.#views.clear();
      this.#place.scrollTop = 0;
    }
    this.#row = row;
    const parts = [facts([["Process", `${row.process} (${row.pid}) ${row.app}`], ["Host", row.host],
      ["Time", new Date(row.time).toISOString()], ["Protocol", row.protocol]])];
    for (const [title, message] of [["Request", row.request], ["Response", row.response]]) {
      if (message) parts.push(...await this.#message(title, message));
    }
    if (row.request && !row.response) parts.push(element("h2", "Response"), element("p", "none so far"));
    for (const [title, pile] of [["Written", row.written], ["Read", row.read]]) {
      if (pile) parts.push(element("h2", title), ...this.#body(title, pile.bytes, sizeText(pile.length)));
    }
    if (row !== this.#row) return;
    const focused = document.activeElement?.dataset.key;
    this.#place.replaceChildren(...parts);
    for (const part of this.#place.querySelectorAll("[data-key]")) {
      if (part.dataset.key === focused) part.focus({ preventScroll: true });
    }
  }

  async #message(title, message) {
    const parts = [element("h2", `${title}: ${message.start}`), facts(message.headers)];
    const { bytes, note } = await plainBody(message);
    if (!message.size) return parts;
    const open = message.endless ? "without a length: it lasts as long as its connection" : "not complete yet";
    const notes = [sizeText(message.size), note, message.cut && "cut off", !message.done && open,
      message.size > message.body.length && `only its first ${sizeText(message.body.length)} are kept`];
    parts.push(...this.#body(title, bytes, notes.filter(Boolean).join(", ")));
    return parts;
  }

  #body(title, bytes, note) {
    const part = bytes.subarray(0, MAX_SHOWN);
    const text = textOf(part);
    const views = { Text: () => text ?? new TextDecoder().decode(part), Hex: () => hexOf(part) };
    let first = text === null ? "Hex" : "Text";
    const json = jsonOf(text);
    if (json) {
      views.JSON = () => json;
      first = "JSON";
    }
    const shows = element("pre");
    shows.tabIndex = 0;
    shows.dataset.key = `${title} body`;
    shows.role = "region";
    shows.ariaLabel = `${title}'s body`;
    const show = (name) => {
      shows.textContent = views[name]();
      shows.classList.toggle("hex", name === "Hex");
      for (const button of buttons) button.ariaPressed = String(button.textContent === name);
    };
    const buttons = Object.keys(views).map((name) => {
      const button = element("button", name);
      button.dataset.key = `${title} ${name}`;
      button.addEventListener("click", () => {
        this.#views.set(title, name);
        show(name);
      });
      return button;
    });
    const chosen = this.#views.get(title);
    show(chosen in views ? chosen : first);
    const bar = element("p", `Body, ${note}${bytes.length > MAX_SHOWN ? `, its first ${sizeText(MAX_SHOWN)}:` : ""} `, "bar");
    bar.append(...buttons);
    return [bar, shows];
  }
}

/** The JSON document in `text`, set in lines; none if it is no object or list. */
function jsonOf(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value ? JSON.stringify(value, null, 2) : null;
  } catch {
    return null;
  }
}

function facts(pairs) {
  const made = element("dl");
  for (const [name, value] of pairs) made.append(element("dt", name), element("dd", value));
  return made;
}
