// What is known of every query without its record: the light rows of the list, their values and their metrics.
//
// A row: {id, set, prompt, target, n, m, best, worst, marks, fields}: id, query set, prompt and target (both cut); numbers
// of proponents and opponents; the first score of each; a character 0 or 1 for each proponent ("01…": whether it is
// correct) or null; the other fields that hold a text, a number or a truth value. trackstar/viewer/rows.py makes the same.

export const DEPTHS = [1, 3, 5, 10];

const CUTS = { prompt: 500, target: 200, field: 200 };
const LISTS = ["proponents", "proponent_ids", "proponent_scores", "opponents", "opponent_ids", "opponent_scores"];
const NOT_FIELDS = new Set([...LISTS, "example_id", "query_set", "inputs_plaintext", "targets_plaintext", "proponent_correct"]);

/** An error in a file, for people. */
export class DataError extends Error {}

/** The row of a record that `checked` let pass. */
export function rowOf(record) {
  const fields = {};
  for (const [name, value] of Object.entries(record)) {
    if (NOT_FIELDS.has(name)) continue;
    if (typeof value === "string") fields[name] = cut(value, CUTS.field);
    else if (typeof value === "boolean" || (typeof value === "number" && Number.isFinite(value))) fields[name] = value;
  }
  const marks = record.proponent_correct;
  return {
    id: record.example_id,
    set: record.query_set,
    prompt: cut(record.inputs_plaintext, CUTS.prompt),
    target: cut(record.targets_plaintext, CUTS.target),
    n: record.proponent_ids.length,
    m: record.opponent_ids.length,
    best: record.proponent_scores[0] ?? null,
    worst: record.opponent_scores[0] ?? null,
    marks: marks ? marks.map(Number).join("") : null,
    fields,
  };
}

/** The first `count` code points. */
function cut(text, count) {
  return text.length <= count ? text : [...text.slice(0, 2 * count)].slice(0, count).join("");
}

/**
 * A line's object with every list that the page reads, as trackstar/results.py would read it; a copy.
 * Throws DataError with the reason as a clause.
 */
export function checked(fields, position) {
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) throw new DataError("expected a JSON object");
  const record = { ...fields };
  for (const name of ["inputs_plaintext", "targets_plaintext"]) {
    if (!(name in record)) throw new DataError(`the field '${name}' is missing`);
    if (typeof record[name] !== "string") throw new DataError(`the field '${name}' must be a string`);
  }
  const id = record.example_id ?? position;
  if (typeof id === "object" || typeof id === "boolean") throw new DataError("'example_id' must be a string or a number");
  record.example_id = String(id);
  record.query_set = String(record.query_set ?? "");
  for (const end of ["proponent", "opponent"]) checkRanking(record, end);
  checkMarks(record);
  return record;
}

function checkRanking(record, end) {
  const [texts, ids, scores] = [`${end}s`, `${end}_ids`, `${end}_scores`].map((name) => {
    const values = record[name] ?? [];
    if (!Array.isArray(values)) throw new DataError(`the field '${name}' must be a list`);
    return values;
  });
  if (!scores.every((score) => typeof score === "number" && Number.isFinite(score))) {
    throw new DataError(`'${end}_scores' must hold numbers`);
  }
  if (!ids.every((id) => typeof id === "string" || typeof id === "number")) {
    throw new DataError(`'${end}_ids' must hold strings or numbers`);
  }
  const filled = texts.length ? texts : ids.map(() => "");
  if (filled.length !== ids.length || ids.length !== scores.length) {
    const counts = [filled, ids, scores].map((list) => list.length).join(", ");
    throw new DataError(`${end}s: a ranking needs as many texts as ids and scores: ${counts}`);
  }
  record[`${end}s`] = filled.map(String);
  record[`${end}_ids`] = ids.map(String);
  record[`${end}_scores`] = scores;
}

function checkMarks(record) {
  const marks = record.proponent_correct ?? null;
  if (marks === null) {
    delete record.proponent_correct;
    return;
  }
  if (!Array.isArray(marks) || !marks.every((mark) => typeof mark === "boolean")) {
    throw new DataError("'proponent_correct' must be a list of true and false");
  }
  if (marks.length !== record.proponent_ids.length) {
    throw new DataError(`${marks.length} marks in 'proponent_correct' for ${record.proponent_ids.length} proponents`);
  }
}

/** Whether a query counts in the metrics: it has marks, and its fact is stated somewhere in the corpus. */
export function isJudged(row) {
  return row.marks !== null && !(row.fields.has_trex_sentence === false && !row.marks.includes("1"));
}

/** Rank, from 1, of the first correct proponent; null where none is, or where that is not known. */
export function firstRank(row) {
  const place = row.marks === null ? -1 : row.marks.indexOf("1");
  return place < 0 ? null : place + 1;
}

/** 1 / the rank of the first correct proponent, 0 where none is; null where the query is not judged. */
export function reciprocalRank(row) {
  if (!isJudged(row)) return null;
  const rank = firstRank(row);
  return rank === null ? 0 : 1 / rank;
}

/**
 * Means over the judged ones of some rows, as trackstar/evaluation/metrics.py defines them: {judged, values}; values maps
 * names ("MRR", "Recall@10", "Precision@10") to numbers, or is empty where no row is judged.
 */
export function metricsOf(rows, depths = DEPTHS) {
  let judged = 0;
  let ranks = 0;
  const hits = depths.map(() => 0);
  const shares = depths.map(() => 0);
  for (const row of rows) {
    if (!isJudged(row)) continue;
    judged++;
    ranks += reciprocalRank(row);
    depths.forEach((depth, place) => {
      const correct = countOnes(row.marks, depth);
      hits[place] += correct > 0;
      shares[place] += correct / depth;
    });
  }
  const values = new Map();
  if (judged) {
    values.set("MRR", ranks / judged);
    depths.forEach((depth, place) => values.set(`Recall@${depth}`, hits[place] / judged));
    depths.forEach((depth, place) => values.set(`Precision@${depth}`, shares[place] / judged));
  }
  return { judged, values };
}

function countOnes(marks, depth) {
  let count = 0;
  for (let place = 0; place < depth && place < marks.length; place++) count += marks[place] === "1";
  return count;
}

/** What filters and sorting may ask of a row, beside its fields: name → [description, function of the row]. */
export const COLUMNS = new Map([
  ["id", ["the query's example_id", (row) => row.id]],
  ["set", ["its query_set", (row) => row.set]],
  ["prompt", ["its prompt (the first 500 characters)", (row) => row.prompt]],
  ["target", ["its target (the first 200 characters)", (row) => row.target]],
  ["correct", ["whether any proponent is correct; null: not known", (row) => (row.marks === null ? null : row.marks.includes("1"))]],
  ["rank", ["rank of the first correct proponent; null: none", firstRank]],
  ["num_correct", ["correct proponents", (row) => (row.marks === null ? null : countOnes(row.marks, row.marks.length))]],
  ["score", ["the first proponent's score", (row) => row.best]],
  ["opponent_score", ["the first opponent's score", (row) => row.worst]],
  ["proponents", ["number of proponents", (row) => row.n]],
  ["opponents", ["number of opponents", (row) => row.m]],
]);

/** A row's value by name: one of COLUMNS, or a field of its record; null where it has none. */
export function valueOf(row, name) {
  if (row === null) return null;
  const column = COLUMNS.get(name);
  if (column) return column[1](row);
  return Object.hasOwn(row.fields, name) ? row.fields[name] : null;
}

/** Names of the fields of some rows, in the order of their first occurrence. */
export function fieldNames(rows) {
  const names = new Set();
  for (const row of rows) for (const name of Object.keys(row.fields)) names.add(name);
  return [...names];
}

/** Shard, position and passage of an id that the index made up: "shards/a.jsonl:120#2"; null for any other id. */
export function placeOf(id) {
  const found = /^(.+):(\d+)(?:#(\d+))?$/su.exec(id);
  return found && { shard: found[1], position: Number(found[2]), passage: found[3] === undefined ? null : Number(found[3]) };
}

/**
 * The queries of several runs, matched: [{key, rows, numbers}], rows and numbers one a run, null where a run lacks the
 * query. Two rows are the same query if prompt, target and id agree, or else prompt and target alone.
 */
export function matched(runs) {
  const entries = [];
  const byId = new Map();
  const byText = new Map();
  runs.forEach((run, place) => {
    const used = new Set();
    run.rows.forEach((row, number) => {
      const text = JSON.stringify([row.prompt, row.target]);
      const same = JSON.stringify([row.id, text]);
      let entry = [byId.get(same), ...(place ? (byText.get(text) ?? []) : [])].find((found) => found && !used.has(found));
      if (!entry) {
        entry = { key: "", rows: runs.map(() => null), numbers: runs.map(() => null) };
        entries.push(entry);
        if (!byId.has(same)) byId.set(same, entry);
        if (!byText.has(text)) byText.set(text, []);
        byText.get(text).push(entry);
      }
      used.add(entry);
      entry.rows[place] = row;
      entry.numbers[place] = number;
    });
  });
  const keys = new Map();
  for (const entry of entries) {
    const id = entry.rows.find(Boolean).id;
    const times = (keys.get(id) ?? 0) + 1;
    keys.set(id, times);
    entry.key = times === 1 ? id : `${id}~${times}`;
  }
  return entries;
}
