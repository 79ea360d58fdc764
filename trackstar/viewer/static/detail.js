// One query: what was asked and said, what is known of it, and its proponents or opponents in every run that is shown.
import { grouped, h } from "./dom.js";
import { passageList } from "./passages.js";
import { passageWords } from "./selection.js";
import { appendVisible, headOf, numberText, patternOf, phrasesOf, renderText, subjectsOf } from "./text.js";

const LONGEST_PROMPT = 4000;
const MOST_FOUND = 20; // Buttons that lead to passages with the words searched for.
const ENDS = { proponents: "Proponents", opponents: "Opponents" };
const LISTED = /^(proponent|opponent)(s$|_ids$|_scores$|_correct$|_tokens$|_shards$|_positions$)/;
const HEADED = new Set(["example_id", "query_set", "inputs_plaintext", "targets_plaintext"]);

/** `actions`: {back, copyLink, showRaw(place), setEnd(name), setWords(text)}. */
export class QueryDetail {
  constructor(host, actions) {
    this.host = host;
    this.actions = actions;
    this.turn = 0;
  }

  /** What is said where no query is selected. */
  showNothing(...content) {
    this.turn++;
    this.host.replaceChildren(h("h2", { id: "query-title", tabindex: -1 }, "No query"), ...content);
  }

  /** Shows an entry; `places`: which runs are shown. Records may take a while: what was asked for last wins. */
  async show(entry, runs, places, view) {
    const turn = ++this.turn;
    const there = places.filter((place) => entry.numbers[place] !== null);
    const loaded = await Promise.all(
      there.map((place) => runs[place].record(entry.numbers[place]).then((record) => ({ record }), (error) => ({ error }))),
    );
    if (turn !== this.turn) return;
    const columns = places.map((place) => ({
      place,
      name: runs[place].name,
      row: entry.rows[place],
      ...(there.includes(place) ? loaded[there.indexOf(place)] : {}),
    }));
    const first = columns.find((column) => column.record)?.record;
    if (!first) {
      const failed = columns.find((column) => column.error);
      this.showNothing(h("p", { class: "error", role: "alert" }, failed ? failed.error.message : "None of the runs shown has this query."));
      return;
    }
    const reads = document.activeElement?.id === "query-title"; // Whoever was sent there before it came is sent to the new one.
    this.host.replaceChildren(
      this.head(first),
      facts(first),
      this.tools(columns, view),
      this.columns(columns, patternsFor(first, view), view),
    );
    if (reads) this.focus();
  }

  focus() {
    this.host.querySelector("#query-title")?.focus();
  }

  /** Focuses the first passage in the tab order. */
  focusPassages() {
    this.host.querySelector('.passage[tabindex="0"]')?.focus();
  }

  head(record) {
    const prompt = h("span", { class: "prompt", dir: "auto" });
    appendCut(prompt, record.inputs_plaintext);
    const target = h("bdi", { class: "target" });
    appendCut(target, record.targets_plaintext.trim() || record.targets_plaintext);
    return h(
      "div",
      { class: "detail-head" },
      h("button", { class: "button back", type: "button", onclick: this.actions.back }, "← Queries"),
      h("h2", { id: "query-title", tabindex: -1 }, prompt, h("span", { class: "arrow" }, " → "), target),
    );
  }

  tools(columns, view) {
    const choose = async (name) => {
      await this.actions.setEnd(name);
      this.host.querySelector(`#tab-${name}`)?.focus(); // The tab is a new element.
    };
    const tabs = Object.entries(ENDS).map(([name, label]) => {
      const most = Math.max(0, ...columns.filter((column) => column.record).map((column) => column.record[`${name}`].length));
      return h(
        "button",
        {
          class: "tab",
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-selected": String(view.end === name),
          "aria-controls": "columns",
          tabindex: view.end === name ? 0 : -1,
          onclick: () => choose(name),
        },
        `${label} (${grouped(most)})`,
      );
    });
    const list = h("div", { class: "tabs", role: "tablist", "aria-label": "End of the ranking" }, tabs);
    list.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      choose(view.end === "proponents" ? "opponents" : "proponents");
    });
    const words = h("input", {
      class: "field",
      value: view.words,
      placeholder: "words to mark",
      "aria-label": "Words to mark in the passages",
      autocomplete: "off",
      spellcheck: "false",
      onchange: async (event) => {
        const isHere = document.activeElement === event.target; // And not on its way elsewhere.
        await this.actions.setWords(event.target.value);
        if (isHere) this.host.querySelector(".legend .field")?.focus();
      },
    });
    return h(
      "div",
      { class: "tools" },
      list,
      h("div", { class: "legend" }, words, h("mark", { class: "match-target" }, "target"), " ", h("mark", { class: "match-subject" }, "subject")),
      h(
        "div",
        { class: "actions" },
        h("button", { class: "button", type: "button", onclick: this.actions.copyLink }, "Copy link"),
        ...columns
          .filter((column) => column.record)
          .map((column) =>
            h(
              "button",
              { class: "button", type: "button", onclick: () => this.actions.showRaw(column.place) },
              columns.length > 1 ? `Record: ${column.name}` : "Record",
            ),
          ),
      ),
    );
  }

  columns(columns, patterns, view) {
    const { end } = view;
    const shown = columns.map((column) => ({ ...column, ranking: column.record ? rankingOf(column, end) : null }));
    const jumps = new Map();
    for (const column of shown) {
      column.ranks = new Map((column.ranking?.ids ?? []).map((id, place) => [id, place + 1]));
    }
    const elements = shown.map((column) => {
      const others = shown
        .filter((other) => other !== column && other.ranking)
        .map((other) => ({ name: other.name, ranks: other.ranks, jump: (rank) => jumps.get(other)(rank) }));
      const title = h("h3", { class: "column-title", dir: "auto" }, column.name);
      if (column.error) return h("section", { class: "column" }, title, h("p", { class: "error", role: "alert" }, column.error.message));
      if (!column.ranking) return h("section", { class: "column" }, title, h("p", { class: "hint" }, "This run has no such query."));
      const list = passageList(column.ranking, { label: end, patterns, others });
      jumps.set(column, list.jump);
      const common = others.map((other) => h("p", { class: "hint" }, sharedText(column.ranks, other)));
      const found = foundIn(column.ranking.texts, passageWords(view), list.jump);
      return h("section", { class: "column", "aria-label": `${ENDS[end]} of ${column.name}` }, columns.length > 1 ? [title, common] : null, found, list.element);
    });
    const box = h("div", { class: "columns", id: "columns", role: "tabpanel", "aria-labelledby": `tab-${end}` }, elements);
    box.style.setProperty("--columns", String(elements.length));
    return box;
  }
}

function sharedText(ranks, other) {
  const ids = [...ranks.keys()];
  const count = ids.filter((id) => other.ranks.has(id)).length;
  const top = ids.slice(0, 10).filter((id) => (other.ranks.get(id) ?? 11) <= 10).length;
  const depth = Math.min(10, Math.max(ranks.size, other.ranks.size));
  return `${count} in common with ${other.name}; ${top} among the first ${depth} of both`;
}

function rankingOf(column, end) {
  const one = end.slice(0, -1);
  const record = column.record;
  const texts = record[end];
  const isList = (value) => Array.isArray(value) && value.length === texts.length;
  const extras = Object.entries(record)
    .filter(([name, value]) => name.startsWith(`${one}_`) && !LISTED.test(name) && isList(value))
    .map(([name, value]) => [name.slice(one.length + 1).replaceAll("_", " "), value])
    .filter(([, value]) => value.every((item) => ["number", "string", "boolean"].includes(typeof item)));
  const marks = record[`${one}_correct`];
  const [shards, positions] = [`${one}_shards`, `${one}_positions`].map((name) => (isList(record[name]) ? record[name] : []));
  return {
    texts,
    ids: record[`${one}_ids`],
    scores: record[`${one}_scores`],
    marks: isList(marks) ? marks : null,
    origins: texts.map((_, place) => ({ shard: shards[place], position: positions[place] })),
    tokens: Array.isArray(record[`${one}_tokens`]) ? record[`${one}_tokens`] : null,
    extras,
    total: end === "proponents" ? column.row.n : column.row.m,
  };
}

/** Which passages hold a word that is searched for: buttons with their ranks that lead there. */
function foundIn(texts, words, jump) {
  if (!words.length) return null;
  const ranks = texts.flatMap((text, place) => (words.some((word) => text.toLowerCase().includes(word)) ? [place + 1] : []));
  if (!ranks.length) return h("p", { class: "hint" }, "The words searched for are in none of these passages.");
  const buttons = ranks.slice(0, MOST_FOUND).map((rank) =>
    h("button", { class: "chip", type: "button", "aria-label": `To passage ${rank}`, onclick: () => jump(rank) }, `#${rank}`),
  );
  const more = ranks.length > MOST_FOUND ? "…" : null;
  return h("p", { class: "hint found" }, `Words searched for in ${grouped(ranks.length)} of ${grouped(texts.length)}:`, buttons, more);
}

/** What is marked in passages: the target first, then the subject, then the words that were typed, or searched for in passages. */
function patternsFor(record, view) {
  return [
    { kind: "target", pattern: patternOf([record.targets_plaintext]) },
    { kind: "subject", pattern: patternOf(subjectsOf(record)) },
    { kind: "words", pattern: patternOf(phrasesOf(view.words)) },
    { kind: "words", pattern: patternOf(passageWords(view), true) },
  ];
}

function appendCut(host, text) {
  const head = headOf(text, LONGEST_PROMPT);
  appendVisible(host, head);
  if (head.length === text.length) return;
  const button = h("button", { class: "link", type: "button" }, `Show all (${grouped(text.length)} characters)`);
  button.addEventListener("click", () => {
    renderText(host, text);
  });
  host.append("… ", button);
}

/** The record's other fields. */
function facts(record) {
  const pairs = [["example_id", record.example_id]];
  if (record.query_set) pairs.push(["query_set", record.query_set]);
  for (const [name, value] of Object.entries(record)) {
    if (HEADED.has(name) || LISTED.test(name) || value === null || /^(proponent|opponent)_/.test(name)) continue;
    const isFraction = typeof value === "number" && !Number.isInteger(value);
    pairs.push([name, isFraction ? numberText(value) : typeof value === "object" ? JSON.stringify(value) : String(value)]);
  }
  const list = h("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    const cell = h("dd", { dir: "auto" });
    appendVisible(cell, headOf(value, 300) + (value.length > 300 ? "…" : ""));
    list.append(h("div", {}, h("dt", {}, name), cell));
  }
  return list;
}
