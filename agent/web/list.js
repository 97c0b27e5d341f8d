// The list of rows. Only what is in view is in the document; a frame costs what changed, not what is there.

import { $, element, sizeText } from "./detail.js";
import { matches, sizeOf } from "./traffic.js";

const HEIGHT = 28;

export class List {
  #traffic;
  #shown = [];
  #paused = Infinity;
  #picked = null;
  #filter = "";

  /** `picked(row)` is called when a row is chosen. */
  constructor(traffic, picked) {
    this.#traffic = traffic;
    this.picked = picked;
    $("list").addEventListener("scroll", () => this.#draw());
    $("list").addEventListener("keydown", (key) => this.#key(key));
    $("space").addEventListener("click", ({ target }) => {
      const row = this.#shown[Number(target.closest(".row")?.dataset.index)];
      if (row) this.#pick(row);
    });
    new ResizeObserver(() => this.#draw()).observe($("list"));
  }

  /** The rows that the filter leaves. */
  get rows() {
    return this.#shown;
  }

  filter(text) {
    this.#filter = text;
    this.#rebuild();
  }

  /** Whether new rows wait. */
  pause(on) {
    this.#paused = on ? this.#traffic.last : Infinity;
    this.#rebuild();
  }

  /** How many rows wait. */
  get waiting() {
    return Math.min(this.#traffic.rows.length, Math.max(0, this.#traffic.last - this.#paused));
  }

  unpick() {
    this.#picked = null;
  }

  /** Shows what became of `changed` rows. */
  update(changed) {
    const first = this.#shown.findIndex((row) => !row.gone);
    this.#shown.splice(0, first < 0 ? this.#shown.length : first);
    for (const row of changed) {
      const at = this.#place(row.number);
      const there = this.#shown[at] === row;
      const wanted = this.#wants(row);
      if (wanted !== there) this.#shown.splice(at, there ? 1 : 0, ...(wanted ? [row] : []));
    }
    this.#show();
  }

  #wants(row) {
    return !row.gone && row.number <= this.#paused && matches(row, this.#filter);
  }

  /** Where in `#shown` the row of this number is, or would be. */
  #place(number) {
    let low = 0;
    let high = this.#shown.length;
    if (high && this.#shown[high - 1].number < number) return high;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#shown[middle].number < number) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #rebuild() {
    this.#shown = this.#traffic.rows.filter((row) => this.#wants(row));
    this.#show();
  }

  #show() {
    const list = $("list");
    const follows = list.scrollTop + list.clientHeight >= list.scrollHeight - HEIGHT;
    $("space").style.height = `${this.#shown.length * HEIGHT}px`;
    $("empty").hidden = this.#shown.length > 0;
    $("empty").textContent = this.#traffic.rows.length && this.#filter.trim() ? "Nothing here agrees with the filter."
      : "Nothing yet. What programs send over TLS shows here as it happens.";
    if (follows) list.scrollTop = list.scrollHeight;
    this.#draw();
  }

  #draw() {
    const list = $("list");
    const from = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 5);
    const rows = this.#shown.slice(from, from + Math.ceil(list.clientHeight / HEIGHT) + 10);
    $("space").replaceChildren(...rows.map((row, index) => this.#line(row, from + index)));
    if (rows.includes(this.#picked)) list.setAttribute("aria-activedescendant", `row${this.#picked.number}`);
    else list.removeAttribute("aria-activedescendant");
  }

  #line(row, index) {
    const { request, response } = row;
    const made = element("div", undefined, "row");
    made.id = `row${row.number}`;
    made.dataset.index = index;
    made.role = "option";
    made.ariaSelected = String(row === this.#picked);
    made.ariaSetSize = String(this.#shown.length);
    made.ariaPosInSet = String(index + 1);
    made.style.top = `${index * HEIGHT}px`;
    const status = element("span", response?.status ?? (request ? "…" : ""));
    if (response?.status >= 400) status.classList.add("bad");
    const time = new Date(row.time).toTimeString().slice(0, 8);
    made.append(element("span", time), element("span", row.process), element("span", request?.method ?? (response ? "" : row.protocol)),
      element("span", row.host + (request?.path ?? "")), status, element("span", sizeText(sizeOf(row))));
    return made;
  }

  #pick(row) {
    this.#picked = row;
    const top = this.#shown.indexOf(row) * HEIGHT;
    const list = $("list");
    if (top < list.scrollTop) list.scrollTop = top;
    const under = top + HEIGHT - list.clientHeight;
    if (under > list.scrollTop) list.scrollTop = under;
    this.#draw();
    this.picked(row);
  }

  #key(key) {
    const page = Math.max(1, Math.floor($("list").clientHeight / HEIGHT) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[key.key];
    if (!step || !this.#shown.length) return;
    key.preventDefault();
    const at = this.#shown.indexOf(this.#picked) + step;
    this.#pick(this.#shown[Math.min(this.#shown.length - 1, Math.max(0, at))]);
  }
}
