"""The page on results of the paper's size: 5,415 queries with 100 proponents each, in a real browser.

    python -m benchmarks.page [--queries N] [--proponents N] [--rounds N]

Marks: the first view, from asking for the address to the list, the metrics and the first query's passages on the screen, within
1 s; a filter within 0.2 s of the last key, the pause of 0.06 s that waits for more keys included. Needs Chromium
(Debian: apt install chromium) and playwright (the extra `dev`).
"""

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.common import machine, markdown_table, write_results
from trackstar.viewer import listening
from trackstar.viewer.app import view_app
from trackstar.viewer.export import write_page
from trackstar.viewer.rows import Run, open_run

FIRST_VIEW, FILTER = 1.0, 0.2
PASSAGE_WORDS = 60
IN_PAGE = 10
"""Proponents of each query that the exported page holds."""

# Resolves in the frame after the one in which all of the first view is there.
SHOWN = """() => new Promise(resolve => {
    const isThere = () => document.body.dataset.ready && document.querySelectorAll(".query-row").length > 5
        && document.querySelectorAll(".passage").length >= 10 && document.querySelector("#metrics table");
    const look = () => requestAnimationFrame(isThere() ? () => setTimeout(resolve) : look);
    look();
})"""
# Seconds from an event to the frame that shows its effect.
TYPED = """([id, text]) => new Promise(resolve => {
    const field = document.getElementById(id);
    document.getElementById("more").open = true;
    new MutationObserver((_, observer) => {
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => resolve((performance.now() - start) / 1000)));
    }).observe(document.getElementById("count"), {childList: true, characterData: true, subtree: true});
    field.value = text;
    const start = performance.now();
    field.dispatchEvent(new Event("input", {bubbles: true}));
})"""
STEPPED = """() => new Promise(resolve => {
    new MutationObserver((_, observer) => {
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => resolve((performance.now() - start) / 1000)));
    }).observe(document.getElementById("detail"), {childList: true});
    const start = performance.now();
    document.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
})"""
SCROLLED = """() => new Promise(resolve => {
    const box = document.querySelector(".list-box");
    const times = [];
    let last = performance.now();
    const step = now => {
        times.push(now - last);
        last = now;
        box.scrollTop += 2000;
        if (times.length < 60) requestAnimationFrame(step);
        else resolve(Math.max(...times.slice(2)) / 1000);
    };
    requestAnimationFrame(step);
})"""


def same(text: str) -> Callable[[int], str]:
    """The same text in every round."""
    return lambda number: text


# Name → where to search, the field, and what is typed there; words in passages differ, since those of before are remembered.
FILTERS: dict[str, tuple[str, str, Callable[[int], str]]] = {
    "search of two words": ("", "search", same("question 53")),
    "expression over three fields": (
        "",
        "filter",
        same('relation = "P3" and (rank > 1 or not correct) and frequency < 9000'),
    ),
    "expression that holds for all": ("", "filter", same('prompt ~ "question" or target ~ "x"')),
    "search in passages, of a rare word": ("passages", "search", lambda number: f"needle{number}x"),
    "search in passages, of a frequent word": ("passages", "search", lambda number: VOCABULARY[20 + number]),
    "search in passages, of a word that is nowhere": ("passages", "search", lambda number: f"nowhere{number}"),
}


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=5415, help="queries of the made file")
    parser.add_argument("--proponents", type=int, default=100, help="proponents of each")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured; the median counts")
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no Chromium on this machine (Debian, Ubuntu: apt install chromium)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="trackstar-bench-") as name:
        found = measure(Path(name), browser, args.queries, args.proponents, args.rounds)
    rows = [
        [f"the file: {args.queries:,} queries × {args.proponents} proponents", f"{found['file_bytes'] / 1e6:,.0f} MB"],
        [
            "reading it, when the server starts, and making its passages ready for the search",
            f"{found['open_seconds']:.1f} s",
        ],
        ["memory of the server, over an empty one", f"{found['server_bytes'] / 1e6:,.0f} MB"],
        ["the rows as sent, compressed", f"{found['index_bytes'] / 1e6:.2f} MB"],
        [f"first view (mark {FIRST_VIEW:.1f} s)", f"{found['first_view']:.2f} s"],
        *([f"{name} (mark {FILTER:.1f} s)", f"{found[name]:.2f} s"] for name in FILTERS),
        ["next query: record fetched and shown", f"{found['step']:.2f} s"],
        ["slowest frame while the list scrolls", f"{found['scroll']:.3f} s"],
        [f"exported page with {IN_PAGE} proponents a query", f"{found['page_bytes'] / 1e6:.0f} MB"],
        ["exported page: first view from disk", f"{found['page_first_view']:.2f} s"],
        ["exported page: search in its passages", f"{found['page_search']:.2f} s"],
    ]
    table = markdown_table(["", "measured"], rows)
    print(table)
    head = "# The page\n\n`python -m benchmarks.page` on " + ", ".join(machine().values())
    write_results("page", {"machine": machine(), **found}, f"{head}\n\n{table}")
    met = found["first_view"] <= FIRST_VIEW and all(found[name] <= FILTER for name in FILTERS)
    return 0 if met else 1


def measure(folder: Path, browser_path: str, queries: int, proponents: int, rounds: int) -> dict[str, float]:
    """Makes the file, serves it, looks at it, exports it, looks again."""
    results = folder / "results.jsonl"
    make_results(results, queries, proponents, rounds)
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    run = open_run("made", str(results), searches_passages=True)
    found: dict[str, float] = {"file_bytes": results.stat().st_size, "open_seconds": time.perf_counter() - start}
    with sync_playwright() as playwright, served(run) as url:
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=browser_path, args=args)
        found["first_view"] = median(lambda _: first_view(browser, url), rounds)
        found["server_bytes"] = psutil.Process().memory_info().rss - before
        for name, (where, field, text) in FILTERS.items():
            page = opened(browser, f"{url}#where={where}")
            found[name] = median(partial(typed, page, field, text), rounds)
            page.context.close()
        page = opened(browser, url)
        found["index_bytes"] = page.evaluate(
            "performance.getEntriesByName(new URL('api/v1/results', location.href).href)[0].encodedBodySize"
        )
        found["step"] = median(lambda _: page.evaluate(STEPPED), rounds)
        found["scroll"] = median(lambda _: page.evaluate(SCROLLED), rounds)
        exported = folder / "page.html"
        found["page_bytes"] = write_page(str(exported), [run], IN_PAGE).num_bytes
        found["page_first_view"] = median(lambda _: first_view(browser, exported.as_uri()), rounds)
        page = opened(browser, f"{exported.as_uri()}#where=passages")
        found["page_search"] = median(partial(typed, page, "search", lambda number: f"nowhere{number}"), rounds)
        browser.close()
    run.close()
    return found


def opened(browser: Browser, address: str) -> Page:
    """A page with its first view, in a browser that has never been there."""
    page = fresh(browser)
    page.goto(address)
    page.evaluate(SHOWN)
    return page


def first_view(browser: Browser, address: str) -> float:
    """Seconds from asking for an address to its first view."""
    page = fresh(browser)
    start = time.perf_counter()
    page.goto(address)
    page.evaluate(SHOWN)
    seconds = time.perf_counter() - start
    page.context.close()
    return seconds


def fresh(browser: Browser) -> Page:
    """An empty page, and nothing kept of any other."""
    return browser.new_context(viewport={"width": 1280, "height": 800}).new_page()


def typed(page: Page, field: str, text: Callable[[int], str], number: int) -> float:
    """Seconds from the last key in a field to the list that it leaves; the field is empty again afterwards."""
    seconds = page.evaluate(TYPED, [field, text(number)])
    page.evaluate(TYPED, [field, ""])
    return float(seconds)


def median(once: Callable[[int], float], rounds: int) -> float:
    """The median of some measurements, each of which is given its number."""
    return statistics.median(once(number) for number in range(rounds))


@contextmanager
def served(run: Run) -> Iterator[str]:
    """The view server in a thread."""
    listener = listening.bind("127.0.0.1", 0)
    app = view_app([run], only_local=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listening.url_of(listener, "127.0.0.1")
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        listener.close()


def words_of(chance: random.Random, count: int) -> list[str]:
    """Made-up words, the letters about as frequent as in English."""
    letters = "eeeeettttaaaoooiiinnnssshhhrrrddllcuumwfgypbvkxjqz"
    return list(dict.fromkeys("".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(2 * count)))[
        :count
    ]


VOCABULARY = words_of(random.Random(1), 20_000)
"""The most frequent first."""


def make_results(path: Path, queries: int, proponents: int, needles: int) -> None:
    """Results of made-up passages, no two alike; the same each time.

    Args:
        path: Where to.
        queries: Lines.
        proponents: Of each.
        needles: Words "needle0x" and so on, each of which stands in every thousandth query, in one passage.
    """
    chance = random.Random(0)
    summed = list(
        itertools.accumulate(1 / rank for rank in range(1, len(VOCABULARY) + 1))
    )  # as frequent as words are: Zipf
    with path.open("w") as file:
        for number in range(queries):
            words = chance.choices(VOCABULARY, cum_weights=summed, k=proponents * PASSAGE_WORDS)
            for needle in range(needles):
                if number % 1000 == needle:
                    words[chance.randrange(len(words))] = f"needle{needle}x"
            starts = range(0, len(words), PASSAGE_WORDS)
            asked = chance.choices(VOCABULARY, k=3)
            line = {
                "example_id": f"trex_{number}",
                "query_set": "made",
                "inputs_plaintext": f"Question {number}: the {asked[0]} of the {asked[1]} is",
                "targets_plaintext": asked[2],
                "proponents": [" ".join(words[start : start + PASSAGE_WORDS]) for start in starts],
                "proponent_ids": [f"c4_{number}_{place}" for place in range(proponents)],
                "proponent_scores": sorted((chance.random() for _ in starts), reverse=True),
                "fact_id": f"f{number}",
                "relation": f"P{number % 40}",
                "frequency": number * 3,
                "proponent_correct": [chance.random() < 0.05 for _ in starts],
            }
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
