// Elements from data: text goes in as text nodes only, never as markup.

/**
 * An element. Attributes whose value is a function are listeners ("onclick"); null, undefined and false leave one out.
 * Children are nodes, strings, numbers, lists of these, or null.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined).map(asNode));
  return element;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/** The element of that id, which the page has. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** A whole number with thousands apart. */
export function grouped(count) {
  return count.toLocaleString("en-US");
}

/** Calls `action` when nothing has called for it for `milliseconds`. */
export function settled(action, milliseconds) {
  let timer = 0;
  return (...words) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...words), milliseconds);
  };
}
