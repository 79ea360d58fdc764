// Search, filters, order and the metrics of what they leave.
import { byId, grouped, h, settled } from "./dom.js";
import { COLUMNS, DEPTHS, fieldNames, metricsOf } from "./rows.js";
import { CORRECT, SORTS, SORTS_OF_TWO, relations } from "./selection.js";
import { visible } from "./text.js";

const TYPED = ["search", "filter", "min", "max"];
const CHOSEN = ["where", "sort", "correct", "relation", "run"];
const FILTERS = ["filter", "min", "max", "correct", "relation"];
const PAUSE = 60; // Milliseconds after the last key.

export class Controls {
  /** `onChange(names → values)`: what the person set. */
  constructor(onChange) {
    this.fields = Object.fromEntries([...TYPED, ...CHOSEN].map((name) => [name, byId(name)]));
    for (const name of TYPED) {
      this.fields[name].addEventListener("input", settled(() => onChange(this.typed()), PAUSE));
    }
    for (const name of CHOSEN) {
      this.fields[name].addEventListener("change", () => onChange({ ...this.typed(), [name]: this.fields[name].value }));
    }
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("reset").addEventListener("click", () => {
      onChange({ search: "", where: "", filter: "", correct: "", relation: "", min: "", max: "" });
      this.fields.search.focus();
    });
    fill(this.fields.where, [["", "in queries"], ["passages", "in passages, too"]]);
    fill(this.fields.correct, [...CORRECT].map(([value, [label]]) => [value, label]));
  }

  /** What stands in the typed fields: always told with a choice, which may come before the pause after a key is over. */
  typed() {
    return Object.fromEntries(TYPED.map((name) => [name, this.fields[name].value]));
  }

  /** Offers what the runs have: relations, orders, runs. */
  offer(entries, runs) {
    const found = relations(entries);
    const all = [["", "any"], ...found.map(([name, count]) => [name, `${visible(name).slice(0, 60)} (${grouped(count)})`])];
    fill(this.fields.relation, all);
    this.fields.relation.parentElement.hidden = !found.length;
    fill(this.fields.sort, [...SORTS].filter(([value]) => runs.length > 1 || !SORTS_OF_TWO.has(value)).map(([value, [label]]) => [value, label]));
    fill(this.fields.run, runs.map((run, place) => [String(place + 1), run.name]));
    byId("run-label").hidden = runs.length < 2;
  }

  /** Shows a view's settings; a field in which the person types stays as it is. */
  show(view) {
    for (const [name, field] of Object.entries(this.fields)) {
      if (field.value !== view[name] && !(TYPED.includes(name) && field === document.activeElement)) field.value = view[name];
    }
    if (FILTERS.some((name) => view[name])) byId("more").open = true;
  }

  /** Empties the typed fields too, the one with the focus included. */
  reset(view) {
    for (const name of TYPED) this.fields[name].value = view[name];
  }

  tell({ count, total, error, isFiltered }) {
    byId("filter-error").textContent = error;
    this.fields.filter.setAttribute("aria-invalid", String(Boolean(error)));
    const noun = total === 1 ? "query" : "queries";
    byId("count").textContent = count === total ? `${grouped(total)} ${noun}` : `${grouped(count)} of ${grouped(total)} ${noun}`;
    byId("reset").hidden = !isFiltered;
    if (error) byId("more").open = true;
  }

  /** Says that passages are searched, and where a file is read for that, how far that is; or with null, that they are not. */
  tellSearching(share) {
    const text = share ? `Reading the passages: ${Math.floor(100 * share)} %` : "Searching the passages…";
    byId("searching").textContent = share === null ? "" : text;
  }

  focusSearch() {
    this.fields.search.focus();
    this.fields.search.select();
  }
}

function fill(select, options) {
  const value = select.value;
  select.replaceChildren(...options.map(([of, label]) => h("option", { value: of }, label)));
  if (options.some(([of]) => of === value)) select.value = value;
}

/** The table of metrics over the entries shown, a column a run. */
export function showMetrics(entries, runs) {
  const all = runs.map((run, place) => metricsOf(entries.map((entry) => entry.rows[place]).filter(Boolean)));
  const host = byId("metrics");
  if (!all.some((found) => found.judged)) {
    const hint = entries.length
      ? "None of these queries says which proponents are correct (field proponent_correct; trackstar view --facts)."
      : "No queries, no metrics.";
    host.replaceChildren(h("p", { class: "hint" }, hint));
    return;
  }
  const names = ["MRR", ...DEPTHS.map((depth) => `Recall@${depth}`), ...DEPTHS.map((depth) => `Precision@${depth}`)];
  const head = h("tr", {}, h("th", { scope: "col" }, "over these queries"), ...runs.map((run) => h("th", { scope: "col", dir: "auto" }, run.name)));
  const counts = h("tr", {}, h("th", { scope: "row" }, "judged"), ...all.map((found) => h("td", {}, grouped(found.judged))));
  const rows = names.map((name) =>
    h("tr", {}, h("th", { scope: "row" }, name), ...all.map((found) => h("td", {}, found.judged ? found.values.get(name).toFixed(3) : "–"))),
  );
  host.replaceChildren(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Metrics" }, h("table", {}, h("thead", {}, head), h("tbody", {}, counts, rows))));
}

const KEYS = [
  ["/", "search"],
  ["j, k", "next, previous query"],
  ["↑ ↓ Page Home End", "move in the list of queries, or from passage to passage"],
  ["Enter", "read the query that is chosen in the list"],
  ["Esc", "back to the list"],
  ["p", "to the passages"],
  ["o", "proponents or opponents"],
  ["h", "mark the words that are selected on the page"],
  ["r", "the record as it stands in the file"],
  ["c", "copy a link to this view"],
  ["?", "this help"],
];

/** What the help says: keys, and what an expression may hold. */
export function helpContent(entries, close, isOn, setOn) {
  const fields = fieldNames(entries.map((entry) => entry.rows.find(Boolean)));
  const keys = KEYS.map(([key, meaning]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, meaning)));
  const columns = [...COLUMNS].map(([name, [meaning]]) => h("div", {}, h("dt", {}, h("code", {}, name)), h("dd", {}, meaning)));
  const box = h("input", { type: "checkbox", id: "keys-on", onchange: (event) => setOn(event.target.checked) });
  box.checked = isOn;
  return [
    h("h2", { id: "help-title" }, "Help"),
    h("h3", {}, "Keys"),
    h("p", {}, box, " ", h("label", { for: "keys-on" }, "single keys act when no field has the focus")),
    h("dl", { class: "keys" }, keys),
    h("h3", {}, "Filter expressions"),
    h("p", {}, h("code", {}, 'rank > 1 and relation = "P36"'), ", ", h("code", {}, 'prompt ~ "capital" or not correct'), ", ", h("code", {}, "rank@1 < rank@2")),
    h("p", {}, "and, or, not, parentheses; = != < <= > >=; ~ contains, !~ does not; texts in quotes; true, false, null; @2 asks the second run."),
    h("dl", { class: "keys" }, columns),
    fields.length ? h("p", {}, "Fields of these files: ", fields.slice(0, 60).map((name) => [h("code", { dir: "auto" }, visible(name)), " "])) : null,
    h("p", {}, "Metrics, as trackstar evaluate has them: MRR is 1 / the rank of the first correct proponent; Recall@k, whether one of the first k is correct; Precision@k, the share of correct ones in the first k. Means over the queries shown that are judged."),
    h("button", { class: "button", type: "button", onclick: close }, "Close"),
  ];
}
