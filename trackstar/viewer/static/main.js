// The page: brings runs, view, list and query together.
import { Controls, helpContent, showMetrics } from "./controls.js";
import { QueryDetail } from "./detail.js";
import { byId, grouped, h } from "./dom.js";
import { acceptFiles, runsOf } from "./opening.js";
import { QueryList } from "./query_list.js";
import { save, showRecordOf } from "./raw.js";
import { matched } from "./rows.js";
import { runOf, selected, unknownNames } from "./selection.js";
import { HeldRun, exportedData, serverData } from "./sources.js";
import { readFragment, writeFragment } from "./state.js";
import { Theme, remembered, remember } from "./theme.js";

class Page {
  constructor() {
    this.runs = [];
    this.entries = [];
    this.shown = [];
    this.view = readFragment(location.hash);
    this.keysOn = remembered("keys") !== "off";
    this.controls = new Controls((changes) => this.change(changes));
    this.list = new QueryList(byId("list"), {
      onSelect: (entry, isStep) => this.select(entry.key, isStep),
      onEnter: (entry, moveFocus) => this.read(moveFocus),
    });
    this.detail = new QueryDetail(byId("detail"), {
      back: () => this.backToList(),
      copyLink: () => this.copyLink(),
      showRaw: (place) => this.showRaw(place),
      setEnd: (end) => this.change({ end }, true),
      setWords: (words) => this.change({ words }, true),
    });
    this.theme = new Theme(byId("theme"));
    if (matchMedia("(max-width: 50rem)").matches) byId("metrics-box").open = false; // The list needs the room.
    acceptFiles((files) => this.addFiles(files));
    byId("export").addEventListener("click", () => this.saveSelection());
    byId("help-open").addEventListener("click", () => this.showHelp());
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault(); // The fragment of the address is the view.
      this.read(true);
    });
    window.addEventListener("hashchange", () => this.restore());
    window.addEventListener("popstate", () => this.restore());
    document.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Loads what the page or its server holds. */
  async start() {
    const data = exportedData();
    try {
      const { info, runs } = data ? { info: {}, runs: data.runs.map((run) => new HeldRun(run)) } : await serverData();
      await this.setRuns(runs);
      if (info.live) await this.mountLive(info);
    } catch (error) {
      await this.setRuns([]);
      this.announce(error.message, true);
    }
    document.body.dataset.ready = "true";
  }

  async mountLive(info) {
    const host = byId("live");
    const { mountLive } = await import("./live.js");
    host.hidden = false;
    await mountLive(host, info, { showRecord: (record, name) => this.showRecord(record, name), announce: (text) => this.announce(text) });
  }

  /** Shows a record as a query of the run of that name, in the place of the one with its example_id, and selects it. */
  showRecord(record, name = "live") {
    let run = this.runs.find((found) => found instanceof HeldRun && found.name === name);
    if (!run) run = new HeldRun({ name, source: name, rows: [], records: [] });
    const number = run.put(record);
    this.setRuns(this.runs.includes(run) ? this.runs : [...this.runs, run]);
    const place = this.runs.indexOf(run);
    const entry = this.entries.find((found) => found.numbers[place] === number);
    Object.assign(this.view, { search: "", filter: "", correct: "", relation: "", min: "", max: "" });
    this.controls.reset(this.view);
    this.refresh();
    this.select(entry.key, true);
    this.read(true);
  }

  setRuns(runs) {
    this.runs = runs;
    this.entries = matched(runs);
    this.controls.offer(this.entries, runs);
    this.showRunNames();
    byId("export").disabled = !runs.length;
    document.title = runs.length ? `${runs.map((run) => run.name).join(", ")} · TrackStar` : "TrackStar";
    this.refresh(true);
    return this.showSelected();
  }

  /** Sets parts of the view; with `isStep`, the browser's back button undoes it. */
  change(changes, isStep = false) {
    Object.assign(this.view, changes);
    writeFragment(this.view, isStep);
    const isOfDetail = Object.keys(changes).every((name) => name === "end" || name === "words");
    if (!isOfDetail) this.refresh();
    if (isOfDetail || "hidden" in changes) return this.showSelected();
    return Promise.resolve();
  }

  /** The view of the address, when it was changed there. */
  restore() {
    const view = readFragment(location.hash);
    if (JSON.stringify(view) === JSON.stringify(this.view)) return;
    this.view = view;
    this.controls.reset(view);
    this.showRunNames();
    this.refresh(true);
    this.showSelected();
  }

  /** The list, its tally and its metrics; `reveals`: with the selected query in sight. */
  refresh(reveals = false) {
    const found = selected(this.entries, this.view, this.runs.length);
    this.shown = found.entries;
    this.controls.show(this.view);
    const run = runOf(this.view, this.runs.length);
    this.controls.tell({
      count: this.shown.length,
      total: this.entries.length,
      error: found.error || unknownNames(this.view.filter, this.entries, run),
      isFiltered: ["search", "filter", "correct", "relation", "min", "max"].some((name) => this.view[name]),
    });
    showMetrics(this.shown, this.runs);
    byId("metrics-box").hidden = !this.runs.length;
    this.list.selected = this.view.query || null;
    this.list.show(this.shown, this.runs, this.runs.length ? "No query matches." : "No results are open yet.", reveals);
  }

  select(key, isStep) {
    if (key !== this.view.query) {
      this.view.query = key;
      writeFragment(this.view, isStep);
      this.showSelected();
    }
    this.list.select(key);
  }

  /** The places of the runs that are not hidden. */
  shownRuns() {
    const hidden = new Set(this.view.hidden.split(",").filter(Boolean).map((number) => Number(number) - 1));
    return this.runs.map((_, place) => place).filter((place) => !hidden.has(place));
  }

  current() {
    return this.entries.find((entry) => entry.key === this.view.query) ?? null;
  }

  async showSelected() {
    if (!this.runs.length) {
      this.detail.showNothing(
        h("p", {}, "Drop results files on this page, or open some: JSONL as trackstar score writes it, or as the paper released it. They stay on this computer."),
      );
      return;
    }
    const entry = this.current();
    if (!entry && this.view.query) {
      this.detail.showNothing(h("p", { class: "hint" }, "These files have no such query. Choose one in the list."));
    } else if (!entry) {
      if (!this.shown.length) return this.detail.showNothing(h("p", { class: "hint" }, "No query matches."));
      this.view.query = this.shown[0].key; // Not written into the address: nobody chose it.
      this.list.select(this.view.query);
      await this.showSelected();
    } else if (!this.shownRuns().length) {
      this.detail.showNothing(h("p", { class: "hint" }, "All files are hidden; show one at the top of the page."));
    } else {
      await this.detail.show(entry, this.runs, this.shownRuns(), this.view);
    }
  }

  /** On a narrow screen, shows the query in the list's place. */
  read(moveFocus) {
    document.body.dataset.view = "detail";
    if (moveFocus) this.detail.focus();
  }

  backToList() {
    document.body.dataset.view = "list";
    this.list.focus();
  }

  step(steps) {
    const entry = this.list.neighbour(steps);
    if (entry) this.select(entry.key, false);
  }

  showRunNames() {
    const shown = new Set(this.shownRuns());
    byId("runs").replaceChildren(
      ...this.runs.map((run, place) =>
        h(
          "li",
          {},
          h(
            "button",
            {
              class: "chip",
              type: "button",
              "aria-pressed": String(shown.has(place)),
              title: `${run.source}: ${grouped(run.rows.length)} queries`,
              onclick: () => this.toggleRun(place),
            },
            h("bdi", {}, run.name),
          ),
        ),
      ),
    );
  }

  toggleRun(place) {
    const shown = new Set(this.shownRuns());
    if (!shown.delete(place)) shown.add(place);
    const hidden = this.runs.map((_, other) => other).filter((other) => !shown.has(other));
    this.change({ hidden: hidden.map((other) => other + 1).join(",") }, true);
    this.showRunNames();
    byId("runs").children[place].firstElementChild.focus();
  }

  /** Opens files beside those that are open. */
  async addFiles(files) {
    try {
      const opened = await runsOf(files, this.runs, (text) => this.announce(text));
      if (!opened.length) return;
      this.setRuns([...this.runs, ...opened]);
      this.announce(`Opened ${opened.map((run) => `${run.name} (${grouped(run.rows.length)} queries)`).join(", ")}`);
    } catch (error) {
      this.announce(error.message, true);
    }
  }

  /** Saves the queries shown in the list, of each run that is shown, as the files have them. */
  async saveSelection() {
    for (const place of this.shownRuns()) {
      const numbers = this.shown.map((entry) => entry.numbers[place]).filter((number) => number !== null);
      if (!numbers.length) continue;
      try {
        save(await this.runs[place].lines(numbers), `${this.runs[place].name.replace(/[^\p{L}\p{N}_-]+/gu, "_")}-selection.jsonl`);
        this.announce(`Saved ${grouped(numbers.length)} records of ${this.runs[place].name}`);
      } catch (error) {
        this.announce(error.message, true);
        return;
      }
    }
  }

  async copyLink() {
    this.view.query = this.current()?.key ?? "";
    writeFragment(this.view, false);
    try {
      await navigator.clipboard.writeText(location.href);
      this.announce("Link copied");
    } catch {
      this.announce("The link is in the address bar");
    }
  }

  async showRaw(place) {
    const entry = this.current();
    if (!entry || entry.numbers[place] === null) return;
    try {
      await showRecordOf(this.runs[place], entry.numbers[place]);
    } catch (error) {
      this.announce(error.message, true);
    }
  }

  showHelp() {
    const dialog = byId("help");
    const setOn = (isOn) => {
      this.keysOn = isOn;
      remember("keys", isOn ? "on" : "off");
    };
    dialog.replaceChildren(...helpContent(this.entries, () => dialog.close(), this.keysOn, setOn).filter(Boolean));
    dialog.showModal();
  }

  /** Says something at the foot of the page, and to screen readers. */
  announce(text, isError = false) {
    const toast = byId("toast");
    toast.textContent = text;
    toast.classList.toggle("error", isError);
    clearTimeout(this.toastTimer);
    if (!isError) this.toastTimer = setTimeout(() => (toast.textContent = ""), 4000);
  }

  onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    const isTyping = event.target.closest?.("input:not([type=checkbox]), select, textarea");
    if (event.key === "Escape") {
      this.backToList();
    } else if (!isTyping && this.keysOn && Object.hasOwn(SINGLE_KEYS, event.key)) {
      event.preventDefault();
      SINGLE_KEYS[event.key](this);
    }
  }

  markSelection() {
    const words = String(getSelection()).replace(/["\s]+/gu, " ").trim().slice(0, 200);
    if (!words) return this.announce("Select some words first");
    return this.change({ words: `${this.view.words} "${words}"`.trim() }, true);
  }
}

const SINGLE_KEYS = {
  "/": (page) => {
    document.body.dataset.view = "list";
    page.controls.focusSearch();
  },
  j: (page) => page.step(1),
  k: (page) => page.step(-1),
  p: (page) => page.detail.focusPassages(),
  o: (page) => page.change({ end: page.view.end === "proponents" ? "opponents" : "proponents" }, true),
  h: (page) => page.markSelection(),
  r: (page) => page.showRaw(page.shownRuns().find((place) => (page.current()?.numbers[place] ?? null) !== null) ?? 0),
  c: (page) => page.copyLink(),
  "?": (page) => page.showHelp(),
};

new Page().start();
