// Which queries the list shows, and in what order.
import { FilterError, namesIn, parseFilter } from "./filter.js";
import { COLUMNS, fieldNames, firstRank, isJudged, reciprocalRank, valueOf } from "./rows.js";
import { phrasesOf } from "./text.js";

const SAME = new Intl.Collator("en", { numeric: true });

/** Ways to choose by correctness: value → [label, function of the row]. */
export const CORRECT = new Map([
  ["", ["any", () => true]],
  ["first", ["correct at rank 1", (row) => firstRank(row) === 1]],
  ["top10", ["correct in the top 10", (row) => (firstRank(row) ?? 11) <= 10]],
  ["some", ["some correct", (row) => firstRank(row) !== null]],
  ["none", ["none correct", (row) => isJudged(row) && firstRank(row) === null]],
  ["unknown", ["not judged", (row) => !isJudged(row)]],
]);

/** Orders: value → [label, what is compared, 1 for rising and -1 for falling]; what has no value comes last. */
export const SORTS = new Map([
  ["", ["file order", null, 1]],
  ["score", ["highest first score", (entry, run) => valueOf(entry.rows[run], "score"), -1]],
  ["score-up", ["lowest first score", (entry, run) => valueOf(entry.rows[run], "score"), 1]],
  ["rank", ["first correct, best", (entry, run) => valueOf(entry.rows[run], "rank"), 1]],
  ["rank-down", ["first correct, worst", (entry, run) => worstRank(entry.rows[run]), -1]],
  ["prompt", ["prompt", (entry, run) => valueOf(entry.rows[run], "prompt"), 1]],
  ["target", ["target", (entry, run) => valueOf(entry.rows[run], "target"), 1]],
  ["relation", ["relation", (entry, run) => valueOf(entry.rows[run], "relation"), 1]],
  ["better", ["where run 1 beats run 2", (entry) => difference(entry, 0, 1), -1]],
  ["worse", ["where run 2 beats run 1", (entry) => difference(entry, 1, 0), -1]],
]);
export const SORTS_OF_TWO = new Set(["better", "worse"]);

function worstRank(row) {
  if (row === null || !isJudged(row)) return null;
  return firstRank(row) ?? Number.MAX_SAFE_INTEGER;
}

function difference(entry, a, b) {
  const [one, other] = [a, b].map((run) => (entry.rows[run] ? reciprocalRank(entry.rows[run]) : null));
  return one === null || other === null ? null : one - other;
}

/**
 * The entries that a view selects, in its order: {entries, error}; with an error in the filter's expression, or a bound that
 * is no number, that part is left out and `error` says what is wrong.
 */
export function selected(entries, view, numRuns) {
  const run = runOf(view, numRuns);
  const { tests, errors } = testsOf(view, run, numRuns);
  const found = entries.filter((entry) => tests.every((test) => test(entry)));
  return { entries: sorted(found, view.sort, run), error: errors.join(" ") };
}

/** Place of the run whose values count. */
export function runOf(view, numRuns) {
  return Math.min(Math.max(1, Number.parseInt(view.run, 10) || 1), Math.max(1, numRuns)) - 1;
}

function testsOf(view, run, numRuns) {
  const tests = [];
  const errors = [];
  const ofRow = (test) => (entry) => entry.rows[run] !== null && test(entry.rows[run]);
  const words = phrasesOf(view.search.toLowerCase());
  if (words.length) tests.push((entry) => words.every((word) => searched(entry).includes(word)));
  if (CORRECT.has(view.correct) && view.correct) tests.push(ofRow(CORRECT.get(view.correct)[1]));
  if (view.relation) tests.push(ofRow((row) => String(row.fields.relation ?? "") === view.relation));
  for (const [name, holds] of [["min", (score, bound) => score >= bound], ["max", (score, bound) => score <= bound]]) {
    const text = view[name].trim();
    if (!text) continue;
    const bound = Number(text.replace(",", "."));
    if (Number.isFinite(bound)) tests.push(ofRow((row) => row.best !== null && holds(row.best, bound)));
    else errors.push(`“${text}” is not a number.`);
  }
  if (view.filter.trim()) {
    try {
      const holds = parseFilter(view.filter);
      tests.push((entry) => holds((name, number) => valueOf(entry.rows[number === null ? run : number - 1] ?? null, name)));
    } catch (error) {
      if (!(error instanceof FilterError)) throw error;
      errors.push(`The expression is not used: at character ${error.place + 1}, ${error.message}.`);
    }
  }
  return { tests, errors };
}

/** A hint where an expression names fields that no row has; empty where all is well. */
export function unknownNames(filter, entries, run) {
  let names;
  try {
    names = namesIn(filter);
  } catch {
    return "";
  }
  if (!names.length) return "";
  const known = new Set(fieldNames(entries.map((entry) => entry.rows[run]).filter(Boolean)));
  const unknown = names.filter((name) => !known.has(name) && !COLUMNS.has(name));
  return unknown.length ? `No query has ${unknown.map((name) => `“${name}”`).join(", ")}. Texts stand in quotes.` : "";
}

const haystacks = new WeakMap();

function searched(entry) {
  let text = haystacks.get(entry);
  if (text === undefined) {
    text = entry.rows
      .filter(Boolean)
      .map((row) => `${row.prompt} ${row.target} ${row.id}`)
      .join(" ")
      .toLowerCase();
    haystacks.set(entry, text);
  }
  return text;
}

function sorted(entries, sort, run) {
  const [, value, direction] = SORTS.get(sort) ?? SORTS.get("");
  if (value === null) return entries;
  const pairs = entries.map((entry) => [value(entry, run), entry]);
  pairs.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return direction * (typeof a === "number" && typeof b === "number" ? a - b : SAME.compare(String(a), String(b)));
  });
  return pairs.map(([, entry]) => entry);
}

/** Values of the field relation with their counts, most frequent first. */
export function relations(entries) {
  const counts = new Map();
  for (const entry of entries) {
    const relation = entry.rows.find(Boolean).fields.relation;
    if (relation === undefined) continue;
    counts.set(String(relation), (counts.get(String(relation)) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1] || SAME.compare(a[0], b[0]));
}
