// What the address holds after its #: all that is needed to see the same view again.

/** Names in the address, and what they are where it does not say. */
export const DEFAULTS = Object.freeze({
  search: "", // words in prompt, target or id
  filter: "", // an expression of filter.js
  correct: "", // one of CORRECT in controls.js
  relation: "",
  min: "", // of the first score
  max: "",
  sort: "", // a name of SORTS in controls.js
  query: "", // key of the selected entry
  run: "1", // the run whose values count in the list, from 1
  hidden: "", // runs that are not shown, "2,3"
  end: "proponents",
  words: "", // highlighted words
});

/** The view that an address's fragment describes. */
export function readFragment(fragment) {
  const words = new URLSearchParams(fragment.replace(/^#/, ""));
  const view = Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, words.get(name) ?? DEFAULTS[name]]));
  if (view.end !== "opponents") view.end = DEFAULTS.end;
  return view;
}

/** The fragment of a view, with what differs from the defaults. */
export function fragmentOf(view) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) if (view[name] !== value) words.set(name, view[name]);
  return words.toString();
}

/** Puts the view into the address; with `isStep`, the browser's back button returns to the view before. */
export function writeFragment(view, isStep) {
  const fragment = fragmentOf(view);
  if (fragment === location.hash.replace(/^#/, "")) return;
  const address = fragment ? `#${fragment}` : location.pathname + location.search;
  try {
    history[isStep ? "pushState" : "replaceState"](null, "", address);
  } catch {
    location.hash = fragment; // Browsers that refuse history to pages from disk.
  }
}
