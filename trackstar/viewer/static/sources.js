// Where runs come from: the page itself (an export), the server that sent it, a file of this computer, or the live panel.
//
// A run: {name, source, rows, record(number), lines(numbers)}: rows as in rows.js; record gives a promise of a checked
// record; lines a promise of a Blob of JSONL, the records as they stand in the file.
import { DataError, checked, rowOf } from "./rows.js";

const KEPT = 50; // Records of a run that are kept in memory.

/** The data of an export: {format, runs: [{name, source, rows, records}]}; null where the page is none. */
export function exportedData() {
  const element = document.getElementById("trackstar-data");
  return element ? JSON.parse(element.textContent) : (window.TRACKSTAR_DATA ?? null);
}

/** A run whose records the page holds. */
export class HeldRun {
  constructor({ name, source, rows, records }) {
    Object.assign(this, { name, source, rows, records });
  }

  async record(number) {
    return checked(this.records[number], number);
  }

  async lines(numbers) {
    return new Blob(numbers.map((number) => JSON.stringify(this.records[number]) + "\n"));
  }

  /** Adds a record, or puts it in the place of the one with its example_id; returns its number. */
  put(record) {
    const row = rowOf(checked(record, this.records.length));
    const known = this.rows.findIndex((other) => other.id === row.id);
    const number = known < 0 ? this.records.length : known;
    this.records[number] = record;
    this.rows[number] = row;
    return number;
  }
}

/** A run that the server holds. */
export class ServerRun {
  constructor({ name, source, rows }, place) {
    Object.assign(this, { name, source, rows, place });
    this.kept = new Kept((number) => answer(`api/v1/results/${place}/${number}`).then((found) => found.json()));
  }

  async record(number) {
    return checked(await this.kept.get(number), number);
  }

  async lines(numbers) {
    const body = JSON.stringify({ numbers });
    const headers = { "Content-Type": "application/json" };
    return (await answer(`api/v1/results/${this.place}/lines`, { method: "POST", body, headers })).blob();
  }
}

async function answer(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new DataError("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  throw new DataError(found.error?.message ?? found.error ?? `The server answered ${response.status} to ${path}.`);
}

/** What the server has: {info, runs}; nothing where there is no server. */
export async function serverData() {
  if (location.protocol === "file:") return { info: {}, runs: [] };
  const info = await answer("api/v1/info").then((found) => found.json());
  const found = await fetch("api/v1/results");
  if (found.status === 404) return { info, runs: [] };
  if (!found.ok) throw new DataError(`The server answered ${found.status} to api/v1/results.`);
  const data = await found.json();
  return { info, runs: data.runs.map((run, place) => new ServerRun(run, place)) };
}

/** A run in a file that was picked or dropped: one pass finds where each line is; records are read again when asked for. */
export class FileRun {
  constructor(file, name) {
    Object.assign(this, { file, name, source: file.name, rows: [], spans: [] });
    this.kept = new Kept((number) => this.text(number).then((text) => parsedLine(text)));
  }

  /** Reads all lines; `onProgress` gets the share that is read. Throws DataError naming file and line. */
  static async open(file, name, onProgress) {
    const run = new FileRun(file, name);
    for await (const { text, start, end, line } of linesOf(file, onProgress)) {
      if (!text.trim()) continue;
      try {
        run.rows.push(rowOf(checked(parsedLine(text), run.rows.length)));
      } catch (error) {
        throw new DataError(`${file.name}, line ${line}: ${error.message}`);
      }
      run.spans.push([start, end]);
    }
    if (!run.rows.length) throw new DataError(`${file.name}: no results in this file`);
    return run;
  }

  text(number) {
    return this.file.slice(...this.spans[number]).text();
  }

  async record(number) {
    return checked(await this.kept.get(number), number);
  }

  async lines(numbers) {
    return new Blob(numbers.flatMap((number) => [this.file.slice(...this.spans[number]), "\n"]));
  }
}

/** Lines of a file with their place in bytes: {text, start, end, line}. */
async function* linesOf(file, onProgress) {
  const reader = file.stream().getReader();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const decoded = (parts, line) => {
    try {
      const all = parts.map((part, place) => decoder.decode(part, { stream: place + 1 < parts.length }));
      return all.join("");
    } catch {
      throw new DataError(`${file.name}, line ${line}: not UTF-8`);
    }
  };
  let parts = [];
  let [start, offset, line] = [0, 0, 1];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    let from = 0;
    for (let at = value.indexOf(10); at >= 0; at = value.indexOf(10, from)) {
      parts.push(value.subarray(from, at));
      yield { text: decoded(parts, line), start, end: offset + at, line };
      parts = [];
      from = at + 1;
      start = offset + from;
      line++;
    }
    if (from < value.length) parts.push(value.slice(from));
    offset += value.length;
    onProgress(file.size ? offset / file.size : 1);
  }
  if (parts.length) yield { text: decoded(parts, line), start, end: offset, line };
}

/** A line's object. Whole numbers that a double cannot hold, as ids are, become texts; NaN and Infinity become null. */
export function parsedLine(text) {
  try {
    return JSON.parse(/[:,[\s]-?\d{16}/.test(text) ? text.replace(TOKENS, exactNumber) : text);
  } catch (error) {
    const lenient = text.replace(TOKENS, (token) => (UNKNOWN.has(token) ? "null" : exactNumber(token)));
    try {
      return JSON.parse(lenient);
    } catch {
      throw new DataError(`not JSON (${error.message})`);
    }
  }
}

// Strings are taken whole, so that nothing in them is changed.
const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|(?<![\d.eE+-])-?\d{16,}(?![\d.eE])|-?Infinity|NaN/gs;
const UNKNOWN = new Set(["NaN", "Infinity", "-Infinity"]);

function exactNumber(token) {
  return token[0] === '"' || UNKNOWN.has(token) || Number.isSafeInteger(Number(token)) ? token : `"${token}"`;
}

/** The values asked for last, by number. */
class Kept {
  constructor(load) {
    this.load = load;
    this.values = new Map();
  }

  get(number) {
    const value = this.values.get(number) ?? this.load(number);
    this.values.delete(number);
    this.values.set(number, value);
    value.catch(() => this.values.delete(number)); // Asked again, it is tried again.
    if (this.values.size > KEPT) this.values.delete(this.values.keys().next().value);
    return value;
  }
}
