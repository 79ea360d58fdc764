// Searching in passages: asks each run which of its records have a word in one of them, and remembers what was found.

const KEPT_WORDS = 200; // Of each run; more than one search can have.

/** Where the words of a search stand, as far as the runs have said so. */
export class PassageSearch {
  /** `onFound()`: all that was asked for last is known; `onError(error)`; `onProgress(share)` while a file is read for it. */
  constructor({ onFound, onError, onProgress }) {
    this.actions = { onFound, onError, onProgress };
    this.known = new WeakMap(); // run → word → Set of numbers of records
    this.asked = null; // What is looked for: {words, runs}.
  }

  /** Of each word the Sets of record numbers, one a run: Map; null where they are looked for first, and told by `onFound`. */
  found(words, runs) {
    const missing = runs.map((run) => words.filter((word) => !this.of(run).has(word)));
    if (missing.every((list) => !list.length)) {
      this.asked = null;
      return new Map(words.map((word) => [word, runs.map((run) => this.of(run).get(word))]));
    }
    const same = this.asked && this.asked.runs === runs && JSON.stringify(this.asked.words) === JSON.stringify(words);
    if (!same) this.look({ words, runs }, missing);
    return null;
  }

  /** Forgets what was found in a run, which has other records now. */
  forget(run) {
    this.known.delete(run);
  }

  of(run) {
    if (!this.known.has(run)) this.known.set(run, new Map());
    return this.known.get(run);
  }

  async look(asked, missing) {
    this.asked = asked;
    const asking = asked.runs.map((run, place) => missing[place].length && this.ask(run, missing[place]));
    const error = await Promise.all(asking).then(() => null, (reason) => reason);
    if (this.asked !== asked) return; // Something else is wanted by now.
    this.asked = null;
    if (error) this.actions.onError(error);
    else this.actions.onFound();
  }

  async ask(run, words) {
    const found = await run.withWords(words, this.actions.onProgress);
    const known = this.of(run);
    words.forEach((word, place) => known.set(word, found[place]));
    for (const word of [...known.keys()].slice(0, Math.max(0, known.size - KEPT_WORDS))) known.delete(word);
  }
}
