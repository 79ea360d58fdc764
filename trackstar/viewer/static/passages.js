// One end of one run's ranking: its passages, a part of them at a time.
import { grouped, h } from "./dom.js";
import { placeOf } from "./rows.js";
import { CUT, headOf, matchesIn, numberText, renderText, tokenSpans } from "./text.js";

const AT_FIRST = 20; // Passages shown at first, and with each "show more".

/**
 * A column of passages.
 *
 * ranking: {texts, ids, scores, marks, origins, tokens, extras, total}: lists of equal length; marks, tokens may be null; origins
 * hold {shard, position}, of any kind where they are not known; extras is a list of [name, list]; total counts those of the file,
 * of which the page may hold a part.
 * others: [{name, ranks: id → rank from 1, jump(rank)}] of the other runs that are shown.
 */
export function passageList(ranking, { label, patterns, others }) {
  const list = h("ol", { class: "passages", "aria-label": label });
  const more = h("button", { class: "button more", type: "button", onclick: () => grow(ranking.ids.length, true) });
  const rest = ranking.total - ranking.ids.length;
  const note = rest > 0 ? h("p", { class: "hint" }, `${grouped(rest)} more are in the results file, not in this page.`) : null;

  function grow(most, moveFocus = false) {
    const from = list.childElementCount;
    const end = Math.min(ranking.ids.length, Math.max(most, 0), from + AT_FIRST);
    for (let place = from; place < end; place++) list.append(passage(ranking, place, patterns, others));
    const left = ranking.ids.length - list.childElementCount;
    more.hidden = left === 0;
    more.textContent = `Show ${grouped(Math.min(AT_FIRST, left))} more of ${grouped(ranking.ids.length)}`;
    if (from === 0 && list.firstElementChild) list.firstElementChild.tabIndex = 0;
    if (moveFocus && from < list.childElementCount) moveTo(list, list.children[from]);
  }

  /** Brings the passage of a rank into sight and focuses it. */
  function jump(rank) {
    while (list.childElementCount < rank && list.childElementCount < ranking.ids.length) grow(ranking.ids.length);
    const target = list.children[rank - 1];
    if (target) moveTo(list, target);
  }

  list.addEventListener("keydown", (event) => onKey(event, list));
  grow(AT_FIRST);
  const empty = ranking.ids.length ? null : h("p", { class: "hint" }, `This file has no ${label} of this query.`);
  return { element: h("div", {}, empty, list, more, note), jump };
}

function onKey(event, list) {
  if (!event.target.classList.contains("passage") || event.altKey || event.ctrlKey || event.metaKey) return;
  const item = event.target;
  const targets = {
    ArrowDown: item.nextElementSibling,
    ArrowUp: item.previousElementSibling,
    Home: list.firstElementChild,
    End: list.lastElementChild,
  };
  if (!(event.key in targets)) return;
  event.preventDefault();
  if (targets[event.key]) moveTo(list, targets[event.key]);
}

/** Focuses a passage; it is the one in the tab order from then on. */
function moveTo(list, target) {
  for (const item of list.children) item.tabIndex = item === target ? 0 : -1;
  target.focus();
  target.scrollIntoView({ block: "nearest" });
}

function passage(ranking, place, patterns, others) {
  const text = ranking.texts[place];
  const mark = ranking.marks ? (ranking.marks[place] ?? null) : null;
  const common = others.filter((other) => other.ranks.has(ranking.ids[place]));
  const body = h("p", { class: "passage-text", dir: "auto" });
  const button = h("button", { class: "link", type: "button", hidden: true });
  if (text) fillText(body, button, text, patterns, ranking.tokens?.[place]);
  else body.append(h("span", { class: "hint" }, "These results were written without texts."));
  return h(
    "li",
    {
      class: `passage${mark === true ? " right" : mark === false ? " wrong" : ""}${common.length ? " common" : ""}`,
      tabindex: -1,
      "data-rank": place + 1,
    },
    h(
      "div",
      { class: "passage-head" },
      h("span", { class: "rank" }, `${place + 1}`),
      h("span", { class: "score", title: String(ranking.scores[place]) }, numberText(ranking.scores[place])),
      mark === null ? null : h("span", { class: mark ? "verdict right" : "verdict wrong" }, mark ? "✓ correct" : "✗ not correct"),
      origin(ranking.ids[place], ranking.origins[place]),
      ...ranking.extras.map(([name, values]) => h("span", { class: "extra" }, `${name} ${shown(values[place])}`)),
      ...common.map((other) =>
        h(
          "button",
          { class: "chip", type: "button", onclick: () => other.jump(other.ranks.get(ranking.ids[place])) },
          `also ${other.name} #${other.ranks.get(ranking.ids[place])}`,
        ),
      ),
    ),
    body,
    button,
  );
}

/** The text, cut where it is long; the button shows all of it. */
function fillText(body, button, text, patterns, tokens) {
  const spans = tokenSpans(text, tokens);
  const head = headOf(text, CUT);
  renderText(body, head, matchesIn(head, patterns), spans);
  if (head.length === text.length) return;
  const further = matchesIn(text.slice(head.length), patterns).length;
  body.append("…");
  button.hidden = false;
  const matches = further ? `; ${grouped(further)} ${further === 1 ? "match" : "matches"} further on` : "";
  button.textContent = `Show all (${grouped(text.length)} characters${matches})`;
  button.addEventListener("click", () => {
    renderText(body, text, matchesIn(text, patterns), spans);
    button.hidden = true;
    body.closest(".passage")?.focus();
  });
}

/** An example's id, and its shard and position where the record has them; an id that the index made up is shard and position. */
function origin(id, { shard, position }) {
  const place = placeOf(id);
  if (place) {
    const passage = place.passage === null ? "" : `, passage ${place.passage}`;
    const title = "an example without an id of its own: its shard and position";
    return h("span", { class: "origin", title }, h("bdi", {}, place.shard), ` · position ${grouped(place.position)}${passage}`);
  }
  const own = h("bdi", { class: "origin", title: "the example's id" }, id);
  if (typeof shard !== "string") return own;
  const at = Number.isSafeInteger(position) ? ` · position ${grouped(position)}` : "";
  return [own, h("span", { class: "origin", title: `its shard, ${shard}, and where in it the record lies` }, h("bdi", {}, shard.replace(/^.*\//s, "")), at)];
}

function shown(value) {
  if (Number.isSafeInteger(value)) return grouped(value);
  return typeof value === "number" ? numberText(value) : String(value).slice(0, 100);
}
