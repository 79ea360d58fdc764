// The live panel of `trackstar serve`: asks the server (docs/api.md) for completions, traces and explanations.
//
// What it needs of the page, the third argument of mountLive:
//   showRecord(record, name)  shows a record as a query of the run of that name and selects it; where that run holds a record
//                             of the same example_id already, this one takes its place (a trace that is opened again, or whose
//                             tokens were explained meanwhile: record.proponent_tokens, record.opponent_tokens)
//   announce(text)            says something at the foot of the page, and to screen readers
import { grouped, h } from "./dom.js";
import { numberText, renderText, tokenSpans, visible } from "./text.js";

const API = "api/v1";
const RUN = "live";
const ENDED = new Set(["done", "failed", "cancelled"]);
const KEPT = 50; // Records that the panel remembers.
const POLL = 1000; // Milliseconds between two questions where the server sends no events.
const HISTORY_POLL = 4000; // The same for the history while one of its traces has not ended.
const MOST_FAILURES = 3; // Attempts to get events before the panel asks by itself.
const LAYERS_SHOWN = 4;

/** Fills the panel; `info` is what api/v1/info says. */
export async function mountLive(host, info, page) {
  const panel = new LivePanel(host, info, page);
  await panel.refreshHistory();
}

/** An error that the server tells, or that it does not answer. */
class ApiError extends Error {}

/** What the server answers to one request, as an object. */
async function ask(method, path, body = undefined) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(`${API}/${path}`, options);
  } catch {
    throw new ApiError("The server does not answer. Is it still running?");
  }
  const found = await response.json().catch(() => null);
  if (response.ok && found) return found;
  const { message, hint } = found?.error ?? {};
  throw new ApiError(message ? [message, hint].filter(Boolean).join(". ") : `The server answered ${response.status}.`);
}

class LivePanel {
  constructor(host, info, page) {
    this.page = page;
    this.limits = info.limits ?? {};
    this.records = new Map(); // id → record, the last that were shown
    this.followed = null; // {id, stop()}
    this.shown = null; // id of the trace whose result was shown last
    this.historyTimer = 0;
    host.replaceChildren(
      h("link", { rel: "stylesheet", href: "live.css" }),
      this.makeForm(info),
      this.makeProgress(),
      this.makeExplain(),
      this.makeHistory(),
    );
  }

  makeForm(info) {
    this.prompt = h("textarea", { id: "live-prompt", class: "field", rows: 2, dir: "auto", spellcheck: "false" });
    this.target = h("textarea", { id: "live-target", class: "field", rows: 2, dir: "auto", spellcheck: "false" });
    this.topK = h("input", {
      id: "live-top-k",
      class: "field number",
      type: "number",
      min: 1,
      max: this.limits.max_top_k ?? 1000,
      value: 20,
      inputmode: "numeric",
    });
    this.opponents = h("input", { id: "live-opponents", type: "checkbox" });
    this.completeButton = h("button", { class: "button", type: "button", onclick: () => this.complete() }, "Complete");
    this.traceButton = h("button", { class: "button live-go", type: "submit" }, "Trace");
    this.error = h("p", { id: "live-error", class: "error", role: "alert" });
    const form = h(
      "form",
      { class: "live-form", "aria-labelledby": "live-title", onsubmit: (event) => this.submit(event) },
      h("h2", { id: "live-title" }, "Trace"),
      h("p", { class: "hint" }, `${grouped(info.rows ?? 0)} examples, version ${info.snapshot ?? "?"} of the index`),
      h("label", { for: "live-prompt" }, "Prompt"),
      this.prompt,
      h("label", { for: "live-target" }, "What the model said"),
      this.target,
      h(
        "div",
        { class: "live-row" },
        this.completeButton,
        h("label", { for: "live-top-k" }, "Proponents"),
        this.topK,
        h("label", {}, this.opponents, " opponents, too"),
        this.traceButton,
      ),
      this.error,
    );
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      form.requestSubmit();
    });
    return form;
  }

  makeProgress() {
    this.bar = h("progress", { max: 1, value: 0, "aria-label": "Progress of the trace" });
    this.barText = h("p", { class: "hint" });
    this.cancelButton = h("button", { class: "button", type: "button", onclick: () => this.cancel() }, "Cancel");
    this.progress = h("div", { class: "live-progress", hidden: true }, this.bar, this.barText, this.cancelButton);
    return this.progress;
  }

  makeExplain() {
    const most = this.limits.max_ranks ?? 20;
    this.explainCount = h("input", { id: "live-ranks", class: "field number", type: "number", min: 1, max: most, value: Math.min(5, most) });
    this.explainEnd = h(
      "select",
      { class: "field", "aria-label": "End of the ranking to explain" },
      h("option", { value: "proponents" }, "proponents"),
      h("option", { value: "opponents" }, "opponents"),
    );
    this.explainButton = h("button", { class: "button", type: "submit" }, "Shade tokens");
    this.layers = h("div", { class: "live-layers" });
    this.explainError = h("p", { class: "error", role: "alert" });
    this.explainBox = h(
      "form",
      { class: "live-explain", "aria-label": "Explain scores", hidden: true, onsubmit: (event) => this.explain(event) },
      h(
        "div",
        { class: "live-row" },
        h("label", { for: "live-ranks" }, "Explain the first"),
        this.explainCount,
        this.explainEnd,
        this.explainButton,
      ),
      this.explainError,
      this.layers,
    );
    return this.explainBox;
  }

  makeHistory() {
    this.historyList = h("ol", { class: "live-history", "aria-label": "Traces, the newest first" });
    this.historyBox = h("details", { hidden: true }, h("summary", {}, "History"), this.historyList);
    this.historyBox.addEventListener("toggle", () => this.historyBox.open && this.refreshHistory());
    return this.historyBox;
  }

  // Asking.

  async complete() {
    this.tell("");
    this.completeButton.disabled = true;
    this.completeButton.textContent = "Completing…";
    try {
      const tokens = Math.min(16, this.limits.max_new_tokens ?? 16);
      const found = await ask("POST", "completions", { prompt: this.prompt.value, max_new_tokens: tokens });
      this.target.value = found.completion;
      this.target.focus();
      this.page.announce(found.completion ? "The model's completion is in the field" : "The model ends its text here");
    } catch (error) {
      this.tell(error.message);
    } finally {
      this.completeButton.disabled = false;
      this.completeButton.textContent = "Complete";
    }
  }

  async submit(event) {
    event.preventDefault();
    this.tell("");
    const query = {
      prompt: this.prompt.value,
      target: this.target.value,
      top_k: Number.parseInt(this.topK.value, 10) || 20,
      opponents: this.opponents.checked,
    };
    this.traceButton.disabled = true;
    try {
      const trace = await ask("POST", "traces", query);
      this.page.announce("The trace has begun");
      this.follow(trace);
    } catch (error) {
      this.tell(error.message);
    } finally {
      this.traceButton.disabled = false;
    }
    await this.refreshHistory();
  }

  async cancel() {
    if (!this.followed) return;
    this.cancelButton.disabled = true;
    try {
      await ask("DELETE", `traces/${this.followed.id}`);
    } catch (error) {
      this.tell(error.message);
    }
  }

  // Following.

  /** Shows how a trace goes on, and its result when it is there. */
  follow(trace) {
    this.followed?.stop();
    this.followed = this.watch(trace.id);
    this.cancelButton.disabled = false;
    this.showProgress(trace);
  }

  /** Listens to a trace's events; where there are none, asks again and again. */
  watch(id) {
    let stopped = false;
    let timer = 0;
    const source = new EventSource(`${API}/traces/${id}/events`);
    const stop = () => {
      stopped = true;
      clearTimeout(timer);
      source.close();
    };
    const poll = async () => {
      if (stopped) return;
      try {
        const trace = await ask("GET", `traces/${id}`);
        if (stopped) return;
        this.tell("");
        if (ENDED.has(trace.state)) return this.ended(trace);
        this.showProgress(trace);
      } catch (error) {
        if (stopped) return;
        this.tell(error.message);
      }
      timer = setTimeout(poll, POLL);
    };
    let failures = 0; // The browser tries again by itself, for ever.
    source.addEventListener("progress", (event) => {
      failures = 0;
      this.showProgress(JSON.parse(event.data));
    });
    source.addEventListener("end", (event) => {
      source.close();
      this.ended(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      failures++;
      if (stopped || (source.readyState !== EventSource.CLOSED && failures < MOST_FAILURES)) return;
      source.close();
      poll();
    });
    return { id, stop };
  }

  showProgress(trace) {
    const { progress } = trace;
    this.progress.hidden = false;
    if (trace.state === "queued") this.bar.removeAttribute("value");
    else this.bar.value = progress.fraction;
    this.barText.textContent = trace.cancelling ? "Cancelling…" : progressText(trace);
  }

  async ended(trace) {
    this.followed?.stop();
    this.followed = null;
    this.progress.hidden = true;
    if (trace.state === "done") {
      await this.open(trace.id);
      this.page.announce(`Traced in ${duration(trace.seconds ?? 0)}`);
    } else if (trace.state === "cancelled") {
      this.page.announce("The trace was cancelled");
    } else {
      this.tell(trace.error?.message ?? "The trace failed.");
    }
    await this.refreshHistory();
  }

  // Results.

  /** Shows the result of a trace that is done, or goes on following one that is not. */
  async open(id) {
    this.tell("");
    try {
      let record = this.records.get(id);
      if (!record) {
        const trace = await ask("GET", `traces/${id}`);
        if (!ENDED.has(trace.state)) return this.follow(trace);
        if (!trace.result) return this.tell(trace.error?.message ?? `The trace was ${trace.state}.`);
        record = trace.result;
      }
      this.prompt.value = record.inputs_plaintext;
      this.target.value = record.targets_plaintext;
      this.show(id, record);
    } catch (error) {
      this.tell(error.message);
    }
  }

  show(id, record) {
    this.records.delete(id);
    this.records.set(id, record);
    if (this.records.size > KEPT) this.records.delete(this.records.keys().next().value);
    if (this.shown !== id) this.layers.replaceChildren();
    this.shown = id;
    this.explainError.textContent = "";
    this.explainBox.hidden = !record.proponents.some(Boolean);
    this.page.showRecord(record, RUN);
  }

  /** Shades the tokens of the first passages, and says which layers their scores come from. */
  async explain(event) {
    event.preventDefault();
    const id = this.shown;
    const end = this.explainEnd.value;
    const record = this.records.get(id);
    const count = Math.min(Number.parseInt(this.explainCount.value, 10) || 1, record[end].length);
    this.explainError.textContent = "";
    if (!count) {
      this.explainError.textContent = `This trace has no ${end}.`;
      return;
    }
    this.explainButton.disabled = true;
    this.explainButton.textContent = "Explaining…";
    try {
      const ranks = Array.from({ length: count }, (_, place) => place + 1);
      const found = await ask("POST", `traces/${id}/explanations`, { ranks, end });
      const name = `${end.slice(0, -1)}_tokens`;
      const tokens = record[name] ?? record[end].map(() => null);
      for (const { rank, document } of found.explanations) {
        tokens[rank - 1] = document.text === record[end][rank - 1] ? document.segments : null;
      }
      const explained = { ...record, [name]: tokens };
      this.records.set(id, explained);
      if (this.shown !== id) return; // Something else was opened meanwhile.
      this.show(id, explained);
      this.layers.replaceChildren(layerTable(found.explanations, end));
      this.page.announce(`Explained the first ${count} ${end}`);
    } catch (error) {
      this.explainError.textContent = error.message;
    } finally {
      this.explainButton.disabled = false;
      this.explainButton.textContent = "Shade tokens";
    }
  }

  // History.

  async refreshHistory() {
    clearTimeout(this.historyTimer);
    let traces;
    try {
      traces = (await ask("GET", "traces")).traces;
    } catch (error) {
      return this.tell(error.message);
    }
    const focused = this.historyList.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    this.historyBox.hidden = !traces.length;
    this.historyList.replaceChildren(...traces.map((trace) => this.historyItem(trace)));
    if (focused) this.historyList.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
    if (traces.some((trace) => !ENDED.has(trace.state))) {
      this.historyTimer = setTimeout(() => this.refreshHistory(), HISTORY_POLL);
    }
  }

  historyItem(trace) {
    const label = [visible(trace.prompt).slice(0, 200), " → ", visible(trace.target).slice(0, 80)];
    const button = h(
      "button",
      { class: "live-item", type: "button", "data-id": trace.id, onclick: () => this.open(trace.id) },
      h("bdi", { class: "live-query" }, ...label),
      h("span", { class: trace.state === "failed" ? "error" : "hint" }, stateText(trace)),
    );
    return h("li", {}, button);
  }

  tell(text) {
    if (this.error.textContent !== text) this.error.textContent = text; // Said again, it would be read out again.
  }
}

/** "42 %, 1,234 examples, 560 a second, 0:03 left". */
function progressText(trace) {
  const { stage, fraction, rows, rows_per_second: rate, seconds_left: left } = trace.progress;
  if (trace.state === "queued") return trace.before ? `Waiting; ${grouped(trace.before)} before this one` : "Waiting";
  if (stage !== "scanning") return stage === "reading" ? "Reading the texts" : "Encoding the query";
  const parts = [`${Math.floor(100 * fraction)} %`, `${grouped(rows)} examples`];
  if (rate !== null) parts.push(`${grouped(Math.round(rate))} a second`);
  if (left !== null) parts.push(`${duration(left)} left`);
  return parts.join(", ");
}

function stateText(trace) {
  if (trace.state === "done") return `done in ${duration(trace.seconds ?? 0)}`;
  if (trace.state === "running") return `${Math.floor(100 * trace.progress.fraction)} %`;
  return trace.state;
}

/** "0.4 s", "0:48", "3:05:00". */
function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** The query's target, its tokens shaded by what the loss of each contributes. */
function shadedTarget({ text, spans, first_target: first, target_segments: segments }) {
  const cell = h("td", { class: "live-shaded", dir: "auto" });
  if (!segments.length) return h("td", {}, "–");
  const from = spans[first][0]; // In code points, as segments are.
  const target = [...text].slice(from).join("");
  const moved = segments.filter(([start]) => start >= from).map(([start, end, value]) => [start - from, end - from, value]);
  renderText(cell, target, [], tokenSpans(target, moved));
  return cell;
}

/** Which tokens of the target, and which layers, contribute most to each explained score; beside it the index's own. */
function layerTable(explanations, end) {
  const rows = explanations.map(({ rank, index_score: stored, score, layers, query }) => {
    const most = [...layers].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution)).slice(0, LAYERS_SHOWN);
    const cells = most.map(({ layer, kind, contribution }) => `${kind} ${layer}: ${numberText(contribution)}`).join(", ");
    const scores = [stored, score].map((value) => h("td", {}, numberText(value)));
    return h("tr", {}, h("th", { scope: "row" }, String(rank)), scores, shadedTarget(query), h("td", {}, cells));
  });
  const head = ["rank", "score", "unrounded", "what the model said", "largest layers"].map((name) => h("th", { scope: "col" }, name));
  const caption = `Where the scores of the ${end} come from; unrounded: computed again from the texts`;
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Contributions of the target's tokens and of layers" },
    h("table", {}, h("caption", { class: "hint" }, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)),
  );
}
