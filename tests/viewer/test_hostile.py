"""Texts that want to be markup, code, or invisible: they are shown, and nothing else comes of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.viewer import made
from tests.viewer.conftest import Opener
from trackstar.viewer.export import write_page
from trackstar.viewer.rows import open_run

View = Callable[..., Page]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.write(tmp_path_factory.mktemp("hostile") / "r.jsonl", made.hostile())


def _walk(page: Page) -> None:
    """Looks at every query, its record and its opponents, searches, filters and sorts."""
    for number in range(len(made.HOSTILE_TEXTS)):
        page.keyboard.press("j") if number else None
        expect(page.locator(".passage")).to_have_count(len(made.HOSTILE_TEXTS) + 1)
    page.keyboard.press("r")
    expect(page.locator("#raw")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#more > summary").click()
    for text in made.HOSTILE_TEXTS[:8]:
        page.locator("#search").fill(text)
        page.locator("#filter").fill(f"relation = `{text}`")
        page.locator("#filter").fill(text)
    page.locator("#search").fill("")
    page.locator("#filter").fill("")
    for option in page.locator("#sort option").all():
        page.locator("#sort").select_option(option.get_attribute("value"))
    page.get_by_role("button", name="Help").click()
    page.keyboard.press("Escape")


def _assert_untouched(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("({}).polluted") is None
    assert page.locator("img, iframe, svg, object, b").count() == 0
    assert page.locator("body script").count() <= 2


def test_served(view: View, results: str) -> None:
    page = view(**{"run": results})
    _walk(page)
    _assert_untouched(page)


def test_exported(opener: Opener, results: str, tmp_path: Path) -> None:
    run = open_run("</title><script>window.hacked = 9</script>", results)
    write_page(str(tmp_path / "page.html"), [run])
    page = opener((tmp_path / "page.html").as_uri())
    _walk(page)
    _assert_untouched(page)


def test_picked(view: View, results: str) -> None:
    page = view()
    file = {"name": "<img src=x onerror=window.hacked=1>.jsonl", "mimeType": "", "buffer": Path(results).read_bytes()}
    page.locator("#picker").set_input_files(file)
    _walk(page)
    _assert_untouched(page)


def test_a_fragment_cannot_inject(opener: Opener, results: str) -> None:
    url = opener.serve(run=results)
    for value in ("<img src=x onerror=window.hacked=1>", "javascript:alert(1)", "__proto__", "%00%ff", "a" * 5000):
        page = opener(
            f"{url}#query={value}&sort={value}&run={value}&hidden={value}&end={value}&words={value}&filter={value}"
        )
        _assert_untouched(page)


def test_what_cannot_be_seen_is_named(view: View, tmp_path: Path) -> None:
    text = "a\u202eb\u0000c\u200bd\ud800e\u00adf \U0001f468\u200d\U0001f469 g\ufeff"
    line = made.minimal(proponents=[text], proponent_ids=["x\u202ey"], proponent_scores=[1])
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    names = ["U+202E", "U+0000", "U+200B", "U+D800", "U+00AD", "U+FEFF"]
    assert page.locator(".passage .unseen").all_inner_texts() == names
    shown = page.locator(".passage-text").text_content() or ""
    assert shown == "aU+202EbU+0000cU+200BdU+D800eU+00ADf \U0001f468\u200d\U0001f469 gU+FEFF"


def test_directions_keep_to_themselves(view: View, tmp_path: Path) -> None:
    texts = ["\u05e9\u05dc\u05d5\u05dd (a) 1", "plain"]
    line = made.minimal(proponents=texts, proponent_ids=["\u05d0:1", "b"], proponent_scores=[1, 0.5])
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    first, second = page.locator(".passage-text").all()
    direction = "element => [getComputedStyle(element).direction, getComputedStyle(element).unicodeBidi]"
    assert first.evaluate(direction) == ["rtl", "isolate"]
    assert second.evaluate(direction)[0] == "ltr"
    head = page.locator(".passage-head").first
    boxes = [head.locator(css).bounding_box() for css in (".rank", ".score", ".origin")]
    places = [box["x"] for box in boxes if box]
    assert places == sorted(places)
    assert len(places) == 3


def test_stacked_marks_stay_in_their_passage(view: View, tmp_path: Path) -> None:
    texts = ["a" + "\u0301" * 2000, "next"]
    line = made.minimal(proponents=texts, proponent_ids=["a", "b"], proponent_scores=[1, 0.5])
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    assert page.locator(".passage").first.evaluate("e => getComputedStyle(e).overflowX") == "clip"
    box = page.locator(".passage").first.bounding_box()
    assert box and box["height"] < 300


LARGE = {
    "zeros": "\u0000" * 400_000,
    "overrides": "\u202e \u0301" * 200_000,
    "matches": "Oslo " * 100_000,
    "lines": "\n" * 300_000,
    "one word": "x" * 1_000_000,
}


@pytest.mark.parametrize("kind", LARGE)  # Not the text, which would be the test's name.
def test_large_texts_of_one_kind_are_quick(view: View, tmp_path: Path, kind: str) -> None:
    text = LARGE[kind]
    line = made.minimal(proponents=[text], proponent_ids=["a"], proponent_scores=[1], inputs_plaintext=text)
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    milliseconds = page.evaluate(
        """async () => {
            const start = performance.now();
            document.querySelector(".passage .link").click();
            document.querySelector(".passage-text").getBoundingClientRect();
            return performance.now() - start;
        }"""
    )
    assert milliseconds < 8_000  # A hang, not a slow machine, is what this is about.
