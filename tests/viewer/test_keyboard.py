"""Everything can be done with the keyboard alone, and one sees where one is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.viewer import made

View = Callable[..., Page]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.write(tmp_path_factory.mktemp("keys") / "r.jsonl", made.lines(200, depth=30))


def _focused(page: Page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.className")


def _is_outlined(page: Page) -> bool:
    return page.evaluate(
        """() => {
            const active = document.activeElement;
            const shown = active.type === "file" ? active.parentElement : active;
            const style = getComputedStyle(shown);
            return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
        }"""
    )


def test_tab_goes_through_the_page_once_and_is_always_visible(view: View, results: str) -> None:
    page = view(run=results)
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        seen.append(_focused(page))
        assert _is_outlined(page), seen[-1]
    assert len(seen) < 40
    wanted = ["skip", "picker", "search", "sort", "query-row-0", "tab-proponents"]
    assert [name for name in seen if name in wanted] == wanted
    assert sum(name.startswith("query-row") for name in seen) == 1  # One row is in the tab order,
    assert sum("passage" in name.split() for name in seen) == 1  # and one passage.


def test_the_skip_link_leads_to_the_query(view: View, results: str) -> None:
    page = view(run=results)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#query-title")).to_be_focused()
    expect(page.locator("#query-title")).to_contain_text("Question 0:")


def test_arrows_move_in_the_list(view: View, results: str) -> None:
    page = view(run=results)
    page.locator('.query-row[tabindex="0"]').focus()
    for key, number in [
        ("ArrowDown", 1),
        ("ArrowDown", 2),
        ("ArrowUp", 1),
        ("End", 199),
        ("ArrowDown", 199),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        assert _focused(page) == f"query-row-{number}"
        expect(page.locator("#query-title")).to_contain_text(f"Question {number}:")
        expect(page.locator('.query-row[aria-selected="true"]')).to_have_attribute("aria-posinset", str(number + 1))
        expect(page.locator(f"#query-row-{number}")).to_be_in_viewport()
    page.keyboard.press("PageDown")
    assert int(_focused(page).removeprefix("query-row-")) > 2


def test_the_focused_row_survives_scrolling(view: View, results: str) -> None:
    page = view(run=results)
    page.locator('.query-row[tabindex="0"]').focus()
    page.locator(".list-box").evaluate("box => { box.scrollTop = box.scrollHeight; }")
    expect(page.locator("#query-row-199")).to_be_visible()
    assert _focused(page) == "query-row-0"
    page.keyboard.press("ArrowDown")
    assert _focused(page) == "query-row-1"


def test_enter_reads_escape_returns(view: View, results: str) -> None:
    page = view(run=results)
    page.locator('.query-row[tabindex="0"]').focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#query-title")).to_be_focused()
    page.keyboard.press("Escape")
    assert _focused(page) == "query-row-1"


def test_single_keys(view: View, results: str) -> None:
    page = view(run=results)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(page.locator("#query-title")).to_contain_text("Question 1:")
    page.keyboard.press("o")
    expect(page.get_by_role("tab", name="Opponents")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("o")
    page.keyboard.press("r")
    expect(page.locator("#raw")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#raw")).to_be_hidden()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("jokr")
    assert page.locator("#search").input_value() == "jokr"


def test_single_keys_can_be_turned_off(view: View, results: str) -> None:
    page = view(run=results)
    page.keyboard.press("?")
    page.locator("#keys-on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("o")
    expect(page.locator("#query-title")).to_contain_text("Question 0:")
    expect(page.get_by_role("tab", name="Proponents")).to_have_attribute("aria-selected", "true")


def test_passages(view: View, results: str) -> None:
    page = view(run=results)
    expect(page.locator(".passage")).to_have_count(20)
    page.keyboard.press("p")
    expect(page.locator(".passage").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".passage").nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator(".passage").nth(19)).to_be_focused()
    page.get_by_role("button", name="Show 10 more of 30").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".passage")).to_have_count(30)
    expect(page.locator(".passage").nth(20)).to_be_focused()


def test_tabs_turn_with_arrows(view: View, results: str) -> None:
    page = view(run=results)
    page.get_by_role("tab", name="Proponents").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Opponents")).to_be_focused()
    expect(page.locator(".passage-text")).to_have_count(3)


def test_selected_words_are_marked(view: View, tmp_path: Path) -> None:
    line = made.minimal(proponents=["one two three two"], proponent_ids=["a"], proponent_scores=[1])
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    page.locator(".passage-text").evaluate(
        """element => {
            const range = document.createRange();
            range.setStart(element.firstChild, 4);
            range.setEnd(element.firstChild, 7);
            getSelection().removeAllRanges();
            getSelection().addRange(range);
        }"""
    )
    page.keyboard.press("h")
    expect(page.locator("mark.match-words")).to_have_text(["two", "two"])
