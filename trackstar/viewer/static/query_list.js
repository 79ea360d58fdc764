// The list of queries: only the rows in sight are elements, however many there are.
//
// A listbox with a roving tabindex: one row is in the tab order, arrow keys move it, and it stays an element even while it is
// scrolled out of sight, so that the focus is never lost.
import { h } from "./dom.js";
import { firstRank, isJudged } from "./rows.js";
import { numberText, visible } from "./text.js";

const SPARE = 6; // Rows beyond what is in sight, above and below.

export class QueryList {
  /** `onSelect(entry, isStep)`; `onEnter(entry)`: the person wants to read it. */
  constructor(host, { onSelect, onEnter }) {
    this.onSelect = onSelect;
    this.onEnter = onEnter;
    this.entries = [];
    this.runs = [];
    this.active = 0; // Place of the row in the tab order.
    this.selected = null; // Key of the selected entry.
    this.rendered = new Map(); // place → element
    this.spacer = h("div", { class: "list-spacer", role: "presentation" });
    this.box = h("div", { class: "list-box", role: "listbox", "aria-label": "Queries" }, this.spacer);
    this.empty = h("p", { class: "hint list-empty" });
    this.probe = h("div", { class: "list-probe" }); // As high as a row, whatever the size of letters.
    host.replaceChildren(this.probe, this.box, this.empty);
    this.box.addEventListener("scroll", () => this.draw(), { passive: true });
    this.box.addEventListener("keydown", (event) => this.onKey(event));
    this.box.addEventListener("click", (event) => this.onClick(event));
    const observer = new ResizeObserver(() => this.measure());
    observer.observe(this.box);
    observer.observe(this.probe);
  }

  /** Shows other entries from the first on, or where `reveals` says so the selected one, which stays in the tab order. */
  show(entries, runs, emptyText, reveals) {
    this.entries = entries;
    this.runs = runs;
    this.empty.textContent = entries.length ? "" : emptyText;
    this.box.hidden = !entries.length;
    const place = entries.findIndex((entry) => entry.key === this.selected);
    this.active = place < 0 ? 0 : place;
    this.clear();
    this.measure();
    if (reveals && place >= 0) this.reveal(place);
    else this.box.scrollTop = 0;
    this.draw();
  }

  /** Marks an entry as selected and brings it into sight. */
  select(key) {
    this.selected = key;
    const place = this.entries.findIndex((entry) => entry.key === key);
    if (place >= 0) {
      this.active = place;
      this.reveal(place);
    }
    this.clear();
    this.draw();
  }

  /** The entry `steps` further on; null at the ends. */
  neighbour(steps) {
    const place = this.entries.findIndex((entry) => entry.key === this.selected);
    return this.entries[place < 0 ? 0 : place + steps] ?? null;
  }

  focus() {
    this.measure(); // On a narrow screen the list was out of sight until now.
    this.reveal(this.active);
    this.draw();
    this.rendered.get(this.active)?.focus({ preventScroll: true });
  }

  measure() {
    if (this.probe.offsetHeight !== this.height) this.clear(); // Rows stand at multiples of the height.
    this.height = this.probe.offsetHeight;
    this.spacer.style.setProperty("height", `${this.entries.length * this.height}px`);
    this.draw();
  }

  clear() {
    const focused = this.box.contains(document.activeElement);
    for (const element of this.rendered.values()) element.remove();
    this.rendered.clear();
    this.refocus = focused;
  }

  reveal(place) {
    const [top, bottom] = [place * this.height, (place + 1) * this.height];
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (bottom > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = bottom - this.box.clientHeight;
  }

  /** Makes elements of the rows in sight and of the active one, and drops the others. */
  draw() {
    if (!this.height) return;
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - SPARE);
    const last = Math.min(this.entries.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + SPARE);
    const wanted = new Set();
    for (let place = first; place < last; place++) wanted.add(place);
    if (this.active < this.entries.length) wanted.add(this.active);
    for (const [place, element] of this.rendered) {
      if (wanted.has(place)) continue;
      element.remove();
      this.rendered.delete(place);
    }
    for (const place of wanted) {
      if (this.rendered.has(place)) continue;
      const element = this.row(place);
      this.rendered.set(place, element);
      const next = [...this.rendered.keys()].filter((other) => other > place).sort((a, b) => a - b)[0];
      this.spacer.insertBefore(element, next === undefined ? null : this.rendered.get(next)); // Reading order is list order.
    }
    if (this.refocus) {
      this.refocus = false;
      this.rendered.get(this.active)?.focus({ preventScroll: true });
    }
  }

  row(place) {
    const entry = this.entries[place];
    const row = entry.rows.find(Boolean);
    const element = h(
      "div",
      {
        class: "query-row",
        role: "option",
        id: `query-row-${place}`,
        "data-place": place,
        "aria-selected": String(entry.key === this.selected),
        "aria-posinset": place + 1,
        "aria-setsize": this.entries.length,
        tabindex: place === this.active ? 0 : -1,
      },
      h("span", { class: "row-prompt", dir: "auto" }, visible(row.prompt) || "(no prompt)"),
      h("span", { class: "row-target" }, h("span", { class: "arrow", "aria-hidden": "true" }, "→ "), h("bdi", {}, visible(row.target).trim())),
      h("span", { class: "row-facts" }, ...this.runs.map((run, number) => this.badge(entry.rows[number], run))),
    );
    element.style.setProperty("top", `${place * this.height}px`);
    return element;
  }

  badge(row, run) {
    const several = this.runs.length > 1;
    const name = several ? `${run.name}: ` : "";
    if (!row) return h("span", { class: "badge none", title: `${name}not asked` }, "·");
    const score = row.best === null ? null : h("span", { class: "row-score" }, numberText(row.best));
    if (!isJudged(row)) return several && score ? null : score;
    const rank = firstRank(row);
    const title = rank === null ? `${name}no correct proponent` : `${name}first correct proponent at rank ${rank}`;
    const mark = h(
      "span",
      { class: rank === null ? "badge wrong" : "badge right", title },
      h("span", { class: "hidden" }, title),
      h("span", { "aria-hidden": "true" }, rank === null ? "✗" : `✓${rank}`),
    );
    return several ? mark : [score, mark];
  }

  onClick(event) {
    const element = event.target.closest(".query-row");
    if (!element) return;
    const place = Number(element.dataset.place);
    this.onSelect(this.entries[place], true);
    this.onEnter(this.entries[place], false);
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height) - 1);
    const last = this.entries.length - 1;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.active, End: last - this.active };
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in moves) {
      event.preventDefault();
      this.active = Math.min(last, Math.max(0, this.active + moves[event.key]));
      this.onSelect(this.entries[this.active], false);
      this.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.onSelect(this.entries[this.active], true);
      this.onEnter(this.entries[this.active], true);
    }
  }
}
