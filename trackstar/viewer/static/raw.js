// Records as they stand in the file: shown, and saved.
import { byId, grouped, h } from "./dom.js";
import { headOf, renderText } from "./text.js";

const RAW_SHOWN = 200_000; // Characters of a record that are shown at first.
const REVOKED_AFTER = 60_000; // Milliseconds that a download may take to begin.

/** Shows a run's record in the dialog. */
export async function showRecordOf(run, number) {
  const pretty = indented(await (await run.lines([number])).text());
  const dialog = byId("raw");
  const body = h("pre", { class: "raw", tabindex: 0, dir: "ltr", role: "region", "aria-label": "The record" });
  const all = h("button", { class: "link", type: "button" }, `Show all (${grouped(pretty.length)} characters)`);
  const show = (limit) => {
    renderText(body, escaped(headOf(pretty, limit)));
    all.hidden = pretty.length <= limit;
  };
  all.addEventListener("click", () => show(Infinity));
  show(RAW_SHOWN);
  dialog.replaceChildren(
    h("h2", { id: "raw-title" }, h("bdi", {}, run.name), `, record ${grouped(number + 1)}`),
    body,
    h("p", {}, all, " ", h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Close")),
  );
  dialog.showModal();
}

/** Offers bytes as a download. */
export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), REVOKED_AFTER);
}

/** A line of JSON over several lines; one that the browser cannot read stays as it is. */
function indented(line) {
  try {
    return JSON.stringify(JSON.parse(line), null, 2);
  } catch {
    return line;
  }
}

/** JSON with what cannot be seen written as escapes. */
function escaped(json) {
  return json.replace(
    /[\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/gu,
    (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}
