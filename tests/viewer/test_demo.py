"""Every feature on real results, in every look: tests/viewer/demo holds some of those that `make demo` writes.

What it holds: every 93rd query with its first proponents and opponents under both methods, marked by the demo's annotations;
TrackStar's with shards and positions. With TRACKSTAR_DEMO naming the folder of a demo, its index is asked live, too.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.running import running
from tests.viewer.conftest import NARROW, WIDE, Opener
from tests.viewer.made import Line
from tests.viewer.test_access import LOOKS, _violations
from tests.viewer.test_page import _metrics, _with
from trackstar.evaluation.metrics import fact_metrics
from trackstar.viewer.export import write_page
from trackstar.viewer.rows import open_run

FILES = {
    "TrackStar": Path(__file__).parent / "demo" / "trackstar.jsonl",
    "dot product": Path(__file__).parent / "demo" / "dot_product.jsonl",
}


@pytest.fixture(scope="module")
def ours() -> list[Line]:
    return [json.loads(line) for line in FILES["TrackStar"].read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def theirs() -> list[Line]:
    return [json.loads(line) for line in FILES["dot product"].read_text(encoding="utf-8").splitlines()]


@dataclasses.dataclass
class Look:
    """A page with both methods' results, on a wide or a narrow screen, light or dark."""

    page: Page
    scheme: Any
    size: dict[str, int]
    opener: Opener
    screenshots: Path | None

    def is_sound(self) -> None:
        """Nothing that axe minds, and nothing that has to be scrolled sideways."""
        assert _violations(self.page) == []
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.size["width"]

    def again(self) -> Page:
        """The address, opened by somebody else."""
        return self.opener(self.page.url, color_scheme=self.scheme, viewport=self.size)

    def to_list(self) -> None:
        """On a narrow screen, away from the query."""
        back = self.page.get_by_role("button", name="← Queries")
        if back.is_visible():
            back.click()
        expect(self.page.locator("#search")).to_be_visible()

    def picture(self, name: str) -> None:
        """For the documents."""
        if self.screenshots:
            self.page.screenshot(path=self.screenshots / f"{name}-{self.scheme}-{self.size['width']}.png")


def _look_id(look: tuple[str, dict[str, int]]) -> str:
    return f"{look[0]}-{look[1]['width']}"


@pytest.fixture(params=LOOKS, ids=_look_id)
def look(request: pytest.FixtureRequest, opener: Opener, screenshots: Path | None) -> Look:
    scheme, size = request.param
    url = opener.serve(**{name: str(path) for name, path in FILES.items()})
    return Look(opener(url, color_scheme=scheme, viewport=size), scheme, size, opener, screenshots)


def _count(page: Page, kept: list[Line], lines: list[Line]) -> None:
    assert len(kept) < len(lines)
    expect(page.locator("#count")).to_have_text(f"{len(kept)} of {len(lines)} queries")


def _expected(runs: list[list[Line]]) -> dict[str, list[str]]:
    metrics = [fact_metrics([line["proponent_correct"] for line in lines], (1, 3, 5, 10)) for lines in runs]
    rows = {name: [f"{of[name].mean():.3f}" for of in metrics] for name in metrics[0]}
    return {"judged": [str(len(lines)) for lines in runs], **rows}


def test_search_filters_and_metrics(look: Look, ours: list[Line], theirs: list[Line]) -> None:
    page = look.page
    expect(page.locator("#count")).to_have_text(f"{len(ours)} queries")
    look.is_sound()
    phrase = ours[0]["proponents"][1].rstrip(".").lower()
    page.locator("#search").fill(f'"{phrase}"')
    _count(page, [], ours)
    page.get_by_label("Where to search").select_option("passages")
    found = {line["example_id"] for line in [*_with(ours, phrase), *_with(theirs, phrase)]}
    assert found
    _count(page, [line for line in ours if line["example_id"] in found], ours)
    page.get_by_role("button", name="Reset").click()
    page.locator("#more > summary").click()
    relations = [line["relation"] for line in ours]
    relation = max(set(relations), key=relations.count)
    page.locator("#relation").select_option(relation)
    kept = [line for line in ours if line["relation"] == relation]
    _count(page, kept, ours)
    page.locator("#filter").fill("rank <= 3 and answered")
    _count(page, [line for line in kept if any(line["proponent_correct"][:3]) and line["answered"]], ours)
    look.is_sound()
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#count")).to_have_text(f"{len(ours)} queries")
    if not page.locator("#metrics").is_visible():
        page.locator("#metrics-box > summary").click()
    assert _metrics(page) == _expected([ours, theirs])
    look.is_sound()


def _open_best(look: Look, ours: list[Line]) -> Line:
    """Opens the query with the highest score, by way of the order."""
    look.page.locator("#sort").select_option("score")
    best = max(ours, key=lambda line: line["proponent_scores"][0])
    expect(look.page.locator(".query-row .row-prompt").first).to_have_text(best["inputs_plaintext"])
    look.page.locator(".query-row").first.click()
    expect(look.page.locator("#query-title")).to_contain_text(best["inputs_plaintext"])
    return best


def test_both_rankings_side_by_side(look: Look, ours: list[Line], theirs: list[Line]) -> None:
    page, best = look.page, _open_best(look, ours)
    other = next(line for line in theirs if line["example_id"] == best["example_id"])
    expect(page.locator(".column")).to_have_count(2)
    for column, line in zip(page.locator(".column").all(), (best, other), strict=True):
        assert column.locator(".passage-text").all_inner_texts() == line["proponents"]
        assert column.locator(".score").all_inner_texts() == [f"{score:.4f}" for score in line["proponent_scores"]]
        verdicts = ["✓ correct" if mark else "✗ not correct" for mark in line["proponent_correct"]]
        assert column.locator(".verdict").all_inner_texts() == verdicts
        common = len(set(best["proponent_ids"]) & set(other["proponent_ids"]))
        expect(column.locator(".passage .chip")).to_have_count(common)
    origin = page.locator(".column").first.locator(".passage").first.locator(".origin").last
    expect(origin).to_have_text(f"{best['proponent_shards'][0]} · position {best['proponent_positions'][0]:,}")
    assert page.locator("mark.match-target").count() > 0
    look.is_sound()
    look.picture("page")


def test_record_words_and_opponents(look: Look, ours: list[Line]) -> None:
    page, best = look.page, _open_best(look, ours)
    page.get_by_role("button", name="dot product", exact=True).click()
    expect(page.locator(".column")).to_have_count(1)
    page.keyboard.press("r")
    assert json.loads(page.locator("#raw pre").inner_text()) == best
    look.is_sound()
    page.keyboard.press("Escape")
    word = best["proponents"][0].split()[0].strip(",.")
    page.get_by_label("Words to mark").fill(word)
    page.get_by_label("Words to mark").press("Enter")
    expect(page.locator(".passage-text").first).to_have_text(best["proponents"][0])
    assert word in "".join(page.locator(".passage").first.locator("mark").all_inner_texts())
    page.get_by_role("tab", name="Opponents").click()
    expect(page.locator(".passage-text")).to_have_text(best["opponents"])
    look.is_sound()


def test_link_selection_and_keys(look: Look, ours: list[Line], tmp_path: Path) -> None:
    page, best = look.page, _open_best(look, ours)
    page.get_by_role("button", name="dot product", exact=True).click()
    page.get_by_role("tab", name="Opponents").click()
    expect(page.locator(".passage-text")).to_have_text(best["opponents"])
    again = look.again()
    expect(again.locator("#query-title")).to_contain_text(best["inputs_plaintext"])
    expect(again.locator(".column")).to_have_count(1)
    assert again.locator(".passage-text").all_text_contents() == best["opponents"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save selection").click()
    download.value.save_as(tmp_path / "saved.jsonl")
    saved = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text(encoding="utf-8").splitlines()]
    assert saved == sorted(ours, key=lambda line: -line["proponent_scores"][0])
    second = saved[1]
    page.keyboard.press("o")
    page.keyboard.press("j")
    expect(page.locator("#query-title")).to_contain_text(second["inputs_plaintext"])
    expect(page.locator(".passage-text")).to_have_text(second["proponents"])
    look.to_list()
    look.is_sound()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_exported_and_dropped(opener: Opener, ours: list[Line], theirs: list[Line], tmp_path: Path, size: Any) -> None:
    run = open_run("TrackStar", str(FILES["TrackStar"]))
    write_page(str(tmp_path / "page.html"), [run])
    page = opener((tmp_path / "page.html").as_uri(), viewport=size)
    expect(page.locator("#count")).to_have_text(f"{len(ours)} queries")
    page.locator("#picker").set_input_files(str(FILES["dot product"]))
    expect(page.locator("#runs .chip")).to_have_text(["TrackStar", "dot_product"])
    page.locator(".query-row").nth(1).click()
    for column, lines in zip(page.locator(".column").all(), (ours, theirs), strict=True):
        assert column.locator(".passage-text").all_inner_texts() == lines[1]["proponents"]
    assert _violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


@pytest.mark.skipif("TRACKSTAR_DEMO" not in os.environ, reason="TRACKSTAR_DEMO names no folder that `make demo` wrote")
@pytest.mark.parametrize("of", LOOKS, ids=_look_id)
def test_live(opener: Opener, of: tuple[Any, dict[str, int]], screenshots: Path | None) -> None:
    from trackstar.tracing import open_index  # torch: only where it is used

    folder = Path(os.environ["TRACKSTAR_DEMO"])
    [checkpoint] = [path.parent for path in folder.glob("*/config.json")]
    with running(open_index(str(folder / "index_trackstar"), str(checkpoint), "cpu")) as server:
        page = opener(f"http://127.0.0.1:{server.port}/", color_scheme=of[0], viewport=of[1])
        page.get_by_label("Prompt", exact=True).fill("The capital of Norway is")
        page.get_by_label("What the model said").fill("Oslo")
        page.get_by_role("button", name="Trace", exact=True).click()
        expect(page.locator(".passage")).to_have_count(20)
        look = Look(page, *of, opener, screenshots)
        look.to_list()
        page.get_by_role("button", name="Shade tokens").click()
        expect(page.locator(".live-layers tbody tr")).to_have_count(5)
        assert page.locator(".passage .token").count() > 5
        look.is_sound()
        look.picture("shaded")
        look.to_list()
        look.picture("live")
