// Files that a person picks, or drops on the page.
import { byId } from "./dom.js";
import { FileRun } from "./sources.js";

/** Calls `onFiles` with the files that are picked or dropped. */
export function acceptFiles(onFiles) {
  byId("picker").addEventListener("change", (event) => {
    onFiles([...event.target.files]);
    event.target.value = "";
  });
  const veil = byId("drop");
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) veil.hidden = true;
  });
  window.addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    onFiles([...event.dataTransfer.files]);
  });
}

/** The runs in some files, all of them or none; throws DataError. `known`: runs whose names are taken. */
export async function runsOf(files, known, announce) {
  const opened = [];
  for (const file of files) {
    const name = unusedName(file.name.replace(/\.(jsonl|ndjson|json)$/i, ""), [...known, ...opened]);
    opened.push(await FileRun.open(file, name, (share) => announce(`Reading ${file.name}: ${Math.floor(100 * share)} %`)));
  }
  return opened;
}

function unusedName(name, runs) {
  const used = new Set(runs.map((run) => run.name));
  if (!used.has(name)) return name;
  let number = 2;
  while (used.has(`${name} ${number}`)) number++;
  return `${name} ${number}`;
}
