// Texts of strangers on the page: what cannot be seen is made visible, matches are marked, long texts are cut.
import { h } from "./dom.js";

export const CUT = 2000; // Characters of a passage that are shown at first.

// Controls but tab and line feed, soft hyphens, marks and overrides of direction, fillers of no width (not the joiners,
// which scripts and emoji need), annotation and tag characters, halves of surrogate pairs.
const UNSEEN =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e007f}\ud800-\udfff]|\r(?!\n)/gu;
const MOST_BADGES = 2000; // Elements that a text may cost; beyond, unseen characters are shown as plain text.
const BLOCK = 5000; // Characters of a long text that are laid out together, and only when they come into sight.

const NO_SPACES = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;
const WORD = /[\p{L}\p{N}]/u;
const LONGEST_PHRASE = 300; // Longer ones are not looked for.
const MOST_PHRASES = 100;

/** "U+202E" of an unseen character. */
export function codePointName(character) {
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

/** One line of text with unseen characters named; for attributes and list rows. */
export function visible(text) {
  return text.replace(UNSEEN, (character) => `⟨${codePointName(character)}⟩`).replace(/\s+/g, " ");
}

/** Appends text to an element, unseen characters as badges, or where `isPlain` says so as text. */
export function appendVisible(host, text, isPlain = false) {
  const found = text.match(UNSEEN);
  if (!found) return host.append(document.createTextNode(text));
  if (isPlain || found.length > MOST_BADGES) {
    return host.append(document.createTextNode(text.replace(UNSEEN, (character) => `⟨${codePointName(character)}⟩`)));
  }
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match.index > end) host.append(document.createTextNode(text.slice(end, match.index)));
    host.append(h("span", { class: "unseen" }, codePointName(match[0])));
    end = match.index + match[0].length;
  }
  if (end < text.length) host.append(document.createTextNode(text.slice(end)));
}

/** The first `count` UTF-16 units of a text, or one fewer where that would halve a character. */
export function headOf(text, count) {
  if (text.length <= count) return text;
  const code = text.charCodeAt(count - 1);
  return text.slice(0, code >= 0xd800 && code <= 0xdbff ? count - 1 : count);
}

/**
 * A pattern that finds whole words and phrases, whatever their case and spacing; null where there is nothing to find.
 * In scripts that put no spaces between words, and with `isAnywhere`, parts of words too.
 */
export function patternOf(phrases, isAnywhere = false) {
  const sources = [...new Set(phrases.map((phrase) => phrase.trim()).filter((phrase) => phrase && phrase.length <= LONGEST_PHRASE))]
    .slice(0, MOST_PHRASES)
    .sort((a, b) => b.length - a.length)
    .map((phrase) => {
      const body = phrase.replace(/[\\^$.*+?()[\]{}|/]/gu, "\\$&").replace(/\s+/gu, "\\s+");
      if (isAnywhere) return body;
      const letters = [...phrase];
      return edge(letters[0], "(?<![\\p{L}\\p{N}])") + body + edge(letters.at(-1), "(?![\\p{L}\\p{N}])");
    });
  return sources.length ? new RegExp(sources.join("|"), "giu") : null;
}

function edge(letter, boundary) {
  return WORD.test(letter) && !NO_SPACES.test(letter) ? boundary : "";
}

/** Words and "quoted phrases" of what a person typed. */
export function phrasesOf(typed) {
  return [...typed.matchAll(/"([^"]+)"|(\S+)/gu)].map((match) => match[1] ?? match[2].replace(/"/g, ""));
}

/**
 * Where patterns match: [{start, end, kind}], sorted, without overlap; of two that overlap the earlier pattern wins.
 * `patterns`: [{kind, pattern}], most important first.
 */
export function matchesIn(text, patterns) {
  const taken = [];
  for (const { kind, pattern } of patterns) {
    if (!pattern) continue;
    const before = taken.slice();
    let next = 0; // The first of them that ends behind the match.
    for (const match of text.matchAll(pattern)) {
      const span = { start: match.index, end: match.index + match[0].length, kind };
      while (next < before.length && before[next].end <= span.start) next++;
      const isTaken = next < before.length && before[next].start < span.end;
      if (span.end > span.start && !isTaken) taken.push(span);
    }
    taken.sort((a, b) => a.start - b.start);
  }
  return taken;
}

/**
 * Token contributions of a text, in UTF-16 units: [{start, end, value}], sorted, without overlap. In the record they are
 * [start, end, value] in Unicode code points. What does not fit the text is left out.
 */
export function tokenSpans(text, tokens) {
  if (!Array.isArray(tokens) || !tokens.length) return [];
  const units = unitOffsets(text);
  const spans = [];
  for (const token of tokens) {
    if (!Array.isArray(token) || token.length < 3) continue;
    const [start, end, value] = token;
    if (!Number.isInteger(start) || !Number.isInteger(end) || start < 0 || end <= start) continue;
    if (typeof value !== "number" || !Number.isFinite(value) || end > units.count) continue;
    spans.push({ start: units.at(start), end: units.at(end), value });
  }
  spans.sort((a, b) => a.start - b.start);
  let end = 0;
  return spans.filter((span) => {
    const fits = span.start >= end;
    if (fits) end = span.end;
    return fits;
  });
}

/** Where in UTF-16 units a code point begins; texts of the basic plane alone cost nothing. */
function unitOffsets(text) {
  if (!/[\ud800-\udbff][\udc00-\udfff]/.test(text)) return { count: text.length, at: (place) => place };
  const offsets = [0];
  for (const character of text) offsets.push(offsets.at(-1) + character.length);
  return { count: offsets.length - 1, at: (place) => offsets[place] };
}

/** Pieces of a text between the borders of matches and tokens, and further ones: [{start, end, kind, token}]. */
export function pieces(length, matches, tokens, further = []) {
  const borders = new Set([0, length, ...further]);
  for (const span of [...matches, ...tokens]) {
    if (span.start < length) borders.add(span.start).add(Math.min(span.end, length));
  }
  const sorted = [...borders].sort((a, b) => a - b);
  const found = [];
  let m = 0;
  let t = 0;
  for (let i = 0; i + 1 < sorted.length; i++) {
    const [start, end] = [sorted[i], sorted[i + 1]];
    while (m < matches.length && matches[m].end <= start) m++;
    while (t < tokens.length && tokens[t].end <= start) t++;
    const match = m < matches.length && matches[m].start <= start ? matches[m] : null;
    const token = t < tokens.length && tokens[t].start <= start ? tokens[t] : null;
    found.push({ start, end, kind: match?.kind ?? null, token });
  }
  return found;
}

/** Where the blocks of a long text begin, but for the first: behind a blank where there is one near. */
function blockStarts(text) {
  const starts = [];
  if (text.length <= 2 * BLOCK) return starts;
  for (let at = 0; text.length - at > BLOCK; at = starts.at(-1)) {
    const block = headOf(text.slice(at, at + BLOCK + 1), BLOCK);
    const blank = block.slice(-200).search(/\s\S*$/u);
    starts.push(at + (blank < 0 ? block.length : Math.max(block.length - 200, 0) + blank + 1));
  }
  return starts;
}

/** Fills an element with a text, its matches marked and its tokens shaded. */
export function renderText(host, text, matches = [], tokens = []) {
  const largest = tokens.reduce((most, token) => Math.max(most, Math.abs(token.value)), 0);
  const starts = blockStarts(text);
  const isLong = starts.length > 0;
  let block = isLong ? h("span", { class: "text-block" }) : host;
  let next = 0;
  host.replaceChildren(...(isLong ? [block] : []));
  for (const piece of pieces(text.length, matches, tokens, starts)) {
    if (piece.start === starts[next]) {
      next++;
      block = h("span", { class: "text-block" });
      host.append(block);
    }
    let target = block;
    if (piece.token && largest > 0) {
      const share = piece.token.value / largest;
      target = h("span", { class: share < 0 ? "token against" : "token for", title: numberText(piece.token.value) });
      target.style.setProperty("--share", `${Math.round(Math.abs(share) * 60)}%`);
      block.append(target);
    }
    if (piece.kind) {
      const mark = h("mark", { class: `match-${piece.kind}` });
      target.append(mark);
      target = mark;
    }
    appendVisible(target, text.slice(piece.start, piece.end), isLong);
  }
}

/** A score or contribution as people read it: "0.4283", "-1.2e-7". */
export function numberText(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(2);
  return value.toFixed(4);
}

const NAME = /\p{Lu}[\p{L}\p{N}'’.-]*(?:\s+(?:(?:of|the|de|da|di|la|le|van|von|du|and|for)\s+){0,2}\p{Lu}[\p{L}\p{N}'’-]*)*/gu;
const OPENERS = new Set(
  ("a all an and as ask at by everybody everyone for from how in is it its many most nobody of on or our some that the their " +
    "there they this to was we were what when where which who whom whose why with").split(" "),
);

/** What a query is about: its fields subject or entity0 (and aliases), else the names in its prompt. */
export function subjectsOf(record) {
  const given = [record.subject, record.entity0, record.subject_aliases, record.entity0_alias].flat();
  const named = given.filter((value) => typeof value === "string" && value.trim());
  if (named.length) return named;
  const names = [];
  for (const match of (record.inputs_plaintext ?? "").slice(0, 5000).matchAll(NAME)) {
    const words = match[0].split(/\s+/u);
    while (words.length && OPENERS.has(words[0].toLowerCase())) words.shift();
    const name = words.join(" ").replace(/[.'’-]+$/u, "");
    if ([...name].length > 1) names.push(name);
  }
  return names;
}
