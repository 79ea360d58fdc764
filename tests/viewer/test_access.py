"""Names, roles and contrast, by axe, in every look of the page."""

import importlib.resources
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.viewer import made
from tests.viewer.conftest import NARROW, WIDE

View = Callable[..., Page]
AXE = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")


def _violations(page: Page) -> list[str]:
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']} ({violation['help']}): {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def _lines() -> list[made.Line]:
    lines = made.lines(40, depth=25)
    for line in lines:
        line["proponent_tokens"] = [[[0, 7, 0.5], [8, 10, -0.5]] for _ in line["proponents"]]
        line["proponents"][0] += " \u202e " + "long " * 600
    return lines


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("access")
    return {
        "ours": made.write(folder / "a.jsonl", _lines()),
        "theirs": made.write(folder / "b.jsonl", made.lines(38, seed=1)),
    }


LOOKS = [(scheme, size) for scheme in ("light", "dark") for size in (WIDE, NARROW)]


@pytest.mark.parametrize(
    ("scheme", "size"), LOOKS, ids=lambda value: str(value if isinstance(value, str) else value["width"])
)
def test_every_look(view: View, two: dict[str, str], scheme: Any, size: Any) -> None:
    page = view("#words=says&filter=score+%3E+0.2", context={"color_scheme": scheme, "viewport": size}, **two)
    expect(page.locator("#count")).to_contain_text("queries")
    assert _violations(page) == []
    page.locator(".query-row").first.click()
    expect(page.locator(".passage").first).to_be_visible()
    assert _violations(page) == []
    page.keyboard.press("?")
    assert _violations(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    expect(page.locator("#raw")).to_be_visible()
    assert _violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_empty_and_failed(view: View, scheme: Any) -> None:
    page = view(context={"color_scheme": scheme})
    assert _violations(page) == []
    page.locator("#picker").set_input_files({"name": "bad.jsonl", "mimeType": "", "buffer": b"{"})
    expect(page.locator("#toast")).to_contain_text("not JSON")
    assert _violations(page) == []


def test_axe_finds_what_is_wrong(view: View) -> None:
    """The checks above can fail."""
    page = view()
    page.evaluate("document.querySelector('#search').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#search').removeAttribute('placeholder')")
    page.evaluate("document.querySelector('#help-open').style.color = '#bbb'")
    found = " ".join(_violations(page))
    assert "label" in found
    assert "color-contrast" in found


def test_larger_letters_do_not_break_the_list(view: View, two: dict[str, str]) -> None:
    page = view(**two)
    page.evaluate("document.documentElement.style.fontSize = '32px'")
    page.evaluate("dispatchEvent(new Event('resize'))")
    expect(page.locator(".query-row").first).to_be_visible()
    page.locator(".list-box").evaluate("box => { box.scrollTop = 1; }")
    boxes = [row.bounding_box() for row in page.locator(".query-row").all()[:3]]
    tops = [box["y"] for box in boxes if box]
    heights = [box["height"] for box in boxes if box]
    assert tops[1] - tops[0] >= heights[0] - 1


def test_nothing_moves_for_those_who_ask(view: View, two: dict[str, str]) -> None:
    page = view(context={"reduced_motion": "reduce"}, **two)
    assert page.locator(".main").evaluate("element => getComputedStyle(element).scrollBehavior") == "auto"
