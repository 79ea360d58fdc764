"""Several runs side by side: matched by query, what they share marked, metrics of each over the same queries."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.viewer import made
from tests.viewer.conftest import NARROW
from trackstar.evaluation.metrics import fact_metrics

View = Callable[..., Page]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("two")
    shuffled = made.lines(60, seed=1)[::-1]
    return {
        "ours": made.write(folder / "a.jsonl", made.lines(60)),
        "theirs": made.write(folder / "b.jsonl", shuffled[:50]),  # It lacks queries 0 to 9.
    }


def _columns(page: Page) -> list[list[str]]:
    return [column.locator(".passage-text").all_inner_texts() for column in page.locator(".column").all()]


def test_rankings_of_one_query_stand_side_by_side(view: View, two: dict[str, str]) -> None:
    page = view("#query=q12", **two)
    expect(page.locator(".column")).to_have_count(2)
    ours, theirs = made.line(12), made.line(12, seed=1)
    assert _columns(page) == [ours["proponents"], theirs["proponents"]]
    boxes = [column.bounding_box() for column in page.locator(".column").all()]
    assert boxes[0] and boxes[1]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_what_both_have_is_marked(view: View, two: dict[str, str]) -> None:
    page = view("#query=q12", **two)
    ours, theirs = made.line(12)["proponent_ids"], made.line(12, seed=1)["proponent_ids"]
    common = [example_id for example_id in ours if example_id in theirs]
    assert common
    first, second = page.locator(".column").all()
    chips = [f"also theirs #{theirs.index(example_id) + 1}" for example_id in common]
    assert first.locator(".passage .chip").all_inner_texts() == chips
    assert first.locator(".passage.common").count() == second.locator(".passage.common").count() == len(common)
    top = len(set(ours[:10]) & set(theirs[:10]))
    expect(first.locator("p.hint")).to_have_text(
        f"{len(common)} in common with theirs; {top} among the first 10 of both"
    )
    first.locator(".passage .chip").last.click()
    place = theirs.index(common[-1])
    expect(second.locator(".passage").nth(place)).to_be_focused()


def test_a_query_that_a_run_lacks(view: View, two: dict[str, str]) -> None:
    page = view("#query=q3", **two)
    expect(page.locator(".column").nth(1)).to_contain_text("This run has no such query.")
    expect(page.locator("#count")).to_have_text("60 queries")


def test_metrics_of_each_run_and_filters_across_runs(view: View, two: dict[str, str]) -> None:
    page = view("#filter=rank%401+%3C+rank%402", **two)
    ours = {line["example_id"]: line["proponent_correct"] for line in made.lines(60)}
    theirs = {line["example_id"]: line["proponent_correct"] for line in made.lines(60, seed=1)[10:]}
    better = [
        query
        for query, marks in ours.items()
        if True in marks and True in theirs.get(query, []) and marks.index(True) < theirs[query].index(True)
    ]
    assert better
    expect(page.locator("#count")).to_have_text(f"{len(better)} of 60 queries")
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in page.locator("#metrics tbody tr").all()
    }
    expected = [fact_metrics([of[query] for query in better], (1, 3, 5, 10)) for of in (ours, theirs)]
    for name in expected[0]:
        assert rows[name] == [f"{values[name].mean():.3f}" for values in expected], name
    page.get_by_role("button", name="Reset").click()
    judged = page.locator("#metrics tbody tr").first.locator("td")
    expect(judged).to_have_text(["60", "50"])


def test_the_order_by_difference(view: View, two: dict[str, str]) -> None:
    page = view("#sort=worse", **two)

    def gain(query: int) -> float:
        ranks = [line["proponent_correct"] for line in (made.line(query), made.line(query, seed=1))]
        ours, theirs = (1 / (marks.index(True) + 1) if True in marks else 0.0 for marks in ranks)
        return theirs - ours

    expected = sorted(range(10, 60), key=lambda query: -gain(query))
    shown = page.locator(".query-row .row-prompt").all_inner_texts()[:6]
    assert shown == [made.line(query)["inputs_plaintext"] for query in expected[:6]]


def test_runs_are_hidden_and_shown(view: View, two: dict[str, str]) -> None:
    page = view("#query=q12", **two)
    page.get_by_role("button", name="theirs", exact=True).click()
    expect(page.locator(".column")).to_have_count(1)
    assert "hidden=2" in page.url
    page.get_by_role("button", name="ours", exact=True).click()
    expect(page.locator("#detail")).to_contain_text("All files are hidden")
    page.go_back()
    expect(page.locator(".column")).to_have_count(1)


def test_other_queries_of_the_same_number_are_not_mixed_up(view: View, tmp_path: Path) -> None:
    """Files without ids count their lines: line 0 of one need not be line 0 of the other."""
    ask = [made.minimal(inputs_plaintext=f"Is {n}?", proponent_ids=[f"p{n}"], proponent_scores=[1.0]) for n in range(3)]
    page = view(one=made.write(tmp_path / "a.jsonl", ask), other=made.write(tmp_path / "b.jsonl", [ask[2], ask[0]]))
    expect(page.locator("#count")).to_have_text("3 queries")
    page.locator(".query-row").nth(2).click()
    expect(page.locator("#query-title")).to_contain_text("Is 2?")
    assert page.locator(".column .origin").all_inner_texts() == ["p2", "p2"]


def test_on_a_phone_columns_stand_below_each_other(view: View, two: dict[str, str]) -> None:
    page = view("#query=q12", context={"viewport": NARROW}, **two)
    page.locator(".query-row").first.click()
    expect(page.locator(".column")).to_have_count(2)
    first, second = (column.bounding_box() for column in page.locator(".column").all())
    assert first and second
    assert second["y"] >= first["y"] + first["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
