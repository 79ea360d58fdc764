"""The page in a browser: list, search, filters, metrics, passages, links, files, records, selections."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.viewer import made
from tests.viewer.conftest import NARROW, Opener
from trackstar.evaluation.metrics import fact_metrics
from trackstar.viewer.export import write_page
from trackstar.viewer.rows import open_run

View = Callable[..., Page]
COUNT = 300


@pytest.fixture(scope="module")
def lines() -> list[made.Line]:
    return made.lines(COUNT)


@pytest.fixture(scope="module")
def results(lines: list[made.Line], tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.write(tmp_path_factory.mktemp("results") / "r.jsonl", lines)


def _count(page: Page) -> str:
    return page.locator("#count").inner_text()


def _metrics(page: Page) -> dict[str, list[str]]:
    rows = page.locator("#metrics tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def _expected(lines: list[made.Line]) -> dict[str, list[str]]:
    values = fact_metrics([line["proponent_correct"] for line in lines], (1, 3, 5, 10))
    return {"judged": [str(len(lines))], **{name: [f"{column.mean():.3f}"] for name, column in values.items()}}


def _filter(page: Page, expression: str) -> None:
    if not page.locator("#filter").is_visible():
        page.locator("#more > summary").click()
    page.locator("#filter").fill(expression)


def _wait_until(page: Page, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(10)


def _order(page: Page) -> list[str]:
    """Prompts of the first rows."""
    return page.locator(".query-row .row-prompt").all_inner_texts()[:8]


def test_the_list_shows_all_queries_and_few_elements(view: View, results: str, lines: list[made.Line]) -> None:
    page = view(run=results)
    expect(page.locator("#count")).to_have_text("300 queries")
    assert page.locator(".query-row").count() < 40
    assert _order(page) == [line["inputs_plaintext"] for line in lines[:8]]
    page.locator(".list-box").evaluate("box => box.scrollTop = box.scrollHeight")
    expect(page.locator(".query-row").last).to_contain_text("Question 299")
    assert page.locator(".query-row").count() < 40
    assert page.locator(".query-row").last.get_attribute("aria-posinset") == "300"


def test_the_first_query_is_shown_with_its_ranking(view: View, results: str, lines: list[made.Line]) -> None:
    page = view(run=results)
    first = lines[0]
    expect(page.locator("#query-title")).to_have_text("Question 0: the capital of Norway is → Oslo")
    passages = page.locator(".passage")
    expect(passages).to_have_count(12)
    assert page.locator(".passage-text").all_inner_texts() == first["proponents"]
    assert page.locator(".passage .score").all_inner_texts() == [f"{score:.4f}" for score in first["proponent_scores"]]
    verdicts = ["✓ correct" if mark else "✗ not correct" for mark in first["proponent_correct"]]
    assert page.locator(".passage .verdict").all_inner_texts() == verdicts
    for place, example_id in enumerate(first["proponent_ids"]):
        found = re.fullmatch(r"(.+):(\d+)#(\d)", example_id)
        origin = f"{found[1]} · position {int(found[2]):,}, passage {found[3]}" if found else example_id
        assert passages.nth(place).locator(".origin").inner_text() == origin
    page.get_by_role("tab", name="Opponents (3)").click()
    expect(page.locator(".passage-text")).to_have_text(first["opponents"])
    assert page.locator(".passage .score").all_inner_texts() == ["-0.3000", "-0.2000", "-0.1000"]


def test_shards_and_positions_stand_beside_ids(view: View, tmp_path: Path) -> None:
    line = made.minimal(
        proponents=["a", "b", "c"],
        proponent_ids=["c4_1", "s/part-0.jsonl:70#1", "c4_3"],
        proponent_scores=[3, 2, 1],
        proponent_shards=["s/part-1.jsonl", "s/part-0.jsonl", None],
        proponent_positions=[12_345, 70, "x"],
        opponents=["d"],
        opponent_ids=["o"],
        opponent_scores=[-1],
        opponent_shards=["s/part-2.jsonl"],
    )
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    origins = [passage.locator(".origin").all_inner_texts() for passage in page.locator(".passage").all()]
    assert origins == [
        ["c4_1", "part-1.jsonl · position 12,345"],
        ["s/part-0.jsonl · position 70, passage 1"],
        ["c4_3"],
    ]
    expect(page.locator(".extra")).to_have_count(0)
    page.get_by_role("tab", name="Opponents").click()
    expect(page.locator(".passage .origin")).to_have_text(["o", "part-2.jsonl"])


def test_search_finds_prompts_targets_and_ids(view: View, results: str) -> None:
    page = view(run=results)
    search = page.get_by_role("searchbox")
    search.fill('peru  "QUESTION 1:"')
    expect(page.locator("#count")).to_have_text("1 of 300 queries")
    search.fill("q299")
    expect(page.locator("#count")).to_have_text("1 of 300 queries")
    search.fill("no such thing")
    expect(page.locator("#count")).to_have_text("0 of 300 queries")
    expect(page.locator(".list-empty")).to_have_text("No query matches.")
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#count")).to_have_text("300 queries")
    assert search.input_value() == ""


def _with(lines: list[made.Line], *words: str) -> list[made.Line]:
    """Lines that hold every one of the words, in a passage or else in prompt, target or id."""
    own = ("inputs_plaintext", "targets_plaintext", "example_id")

    def holds(line: made.Line, word: str) -> bool:
        texts = [*line["proponents"], *line["opponents"], " ".join(line[name] for name in own)]
        return any(word in text.lower() for text in texts)

    return [line for line in lines if all(holds(line, word) for word in words)]


@pytest.fixture(params=["served", "dropped", "exported"])
def anywhere(request: pytest.FixtureRequest, opener: Opener, results: str, tmp_path: Path) -> Page:
    """The page on the same results, wherever they come from."""
    if request.param == "served":
        return opener(opener.serve(run=results))
    if request.param == "dropped":
        page = opener(opener.serve())
        page.locator("#picker").set_input_files(results)
        return page
    write_page(str(tmp_path / "page.html"), [open_run("run", results)])
    return opener((tmp_path / "page.html").as_uri())


def test_passages_are_searched_where_that_is_asked_for(anywhere: Page, lines: list[made.Line]) -> None:
    page = anywhere
    expect(page.locator("#count")).to_have_text("300 queries")
    page.get_by_role("searchbox").fill('"PASSAGE 37 says" norway')
    expect(page.locator("#count")).to_have_text("0 of 300 queries")
    page.get_by_label("Where to search").select_option("passages")
    kept = _with(lines, "passage 37 says", "norway")
    assert 0 < len(kept) < COUNT
    expect(page.locator("#count")).to_have_text(f"{len(kept)} of 300 queries")
    expect(page.locator("#searching")).to_have_text("")
    assert _order(page) == [line["inputs_plaintext"] for line in kept[:8]]
    assert _metrics(page) == _expected(kept)
    page.get_by_role("searchbox").fill('"passage 37 says" opponent q29')  # a proponent, an opponent and an id
    kept = _with(lines, "passage 37 says", "opponent", "q29")
    assert kept
    expect(page.locator("#count")).to_have_text(f"{len(kept)} of 300 queries")
    page.get_by_role("searchbox").fill("no such thing")
    expect(page.locator("#count")).to_have_text("0 of 300 queries")
    page.get_by_role("searchbox").fill('"')  # about to become a phrase
    expect(page.locator("#count")).to_have_text("300 queries")
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#count")).to_have_text("300 queries")
    expect(page.get_by_label("Where to search")).to_have_value("")


def test_what_was_found_in_passages_is_marked_and_led_to(opener: Opener, tmp_path: Path) -> None:
    line = made.line(0, depth=40)
    line["proponents"] = [f"Passage {n}" + (" with a NEEDLE's eye" if n in (2, 33) else "") for n in range(40)]
    page = opener(
        opener.serve(run=made.write(tmp_path / "r.jsonl", [line, made.line(1)])) + "#search=needle&where=passages"
    )
    expect(page.locator("#count")).to_have_text("1 of 2 queries")
    expect(page.get_by_label("Where to search")).to_have_value("passages")
    expect(page.locator(".found")).to_contain_text("Words searched for in 2 of 40:")
    assert page.locator(".passage mark.match-words").all_inner_texts() == ["NEEDLE"]
    expect(page.locator(".passage")).to_have_count(20)
    page.get_by_role("button", name="To passage 34").click()
    expect(page.locator(".passage").nth(33)).to_be_focused()
    assert page.locator(".passage mark.match-words").all_inner_texts() == ["NEEDLE"] * 2
    page.get_by_role("tab", name="Opponents").click()
    expect(page.locator(".column")).to_contain_text("The words searched for are in none of these passages.")


def test_what_is_typed_last_is_what_is_shown(view: View, results: str, lines: list[made.Line]) -> None:
    """Answers that come late, and those of words that nobody asks for any more, change nothing."""
    page = view("#where=passages", run=results)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/search", hold)
    search = page.get_by_role("searchbox")
    search.fill("passage 3")
    expect(page.locator("#searching")).to_have_text("Searching the passages…")
    expect(page.locator("#count")).to_have_text("300 queries")
    search.fill('"passage 37 says"')
    _wait_until(page, lambda: len(held) == 2)
    held[1].continue_()
    kept = _with(lines, "passage 37 says")
    expect(page.locator("#count")).to_have_text(f"{len(kept)} of 300 queries")
    held[0].continue_()
    page.unroute("**/search")
    search.fill("oslo")
    expect(page.locator("#count")).to_have_text(f"{len(_with(lines, 'oslo'))} of 300 queries")


def test_a_search_that_fails_is_said(opener: Opener, results: str) -> None:
    page = opener(opener.serve(run=results))
    page.get_by_label("Where to search").select_option("passages")
    page.route("**/search", lambda route: route.abort())
    page.get_by_role("searchbox").fill("norway")
    expect(page.locator("#toast")).to_have_text("The server does not answer. Is it still running?")
    expect(page.get_by_label("Where to search")).to_have_value("")
    expect(page.locator("#count")).to_have_text(re.compile(r"^\d+ of 300 queries"))
    opener.problems[:] = [text for text in opener.problems if "net::ERR_FAILED" not in text]


def test_files_and_servers_find_the_same(view: View, tmp_path: Path) -> None:
    """Upper and lower case of every script are one to both."""
    texts = [
        *made.HOSTILE_TEXTS,
        "STRA\u00dfE \u0130stanbul",
        "\u039f\u0394\u039f\u03a3 \u03c3\u03c2",
        "\u01c5 \ufb03",
        "\U00010400",
    ]
    path = made.write(
        tmp_path / "r.jsonl", [made.minimal(proponents=[t], proponent_ids=["a"], proponent_scores=[1]) for t in texts]
    )
    words = [
        "stra\u00dfe",
        "i\u0307stanbul",
        "\u03bf\u03b4\u03bf\u03c2",
        "\u03c3",
        "\u01c6",
        "\ufb03",
        "\U00010428",
        "<",
        "\\",
        ".",
        "script",
    ]
    page = view(run=path)
    served, dropped = page.evaluate(
        """async words => {
            const { FileRun, ServerRun } = await import("./sources.js");
            const server = new ServerRun({name: "s", source: "s", rows: []}, 0);
            const bytes = await (await server.lines([...Array(18).keys()])).arrayBuffer();
            const file = await FileRun.open(new File([bytes], "r.jsonl"), "r", () => {});
            const found = await Promise.all([server, file].map(run => run.withWords(words, () => {})));
            return found.map(sets => sets.map(set => [...set]));
        }""",
        words,
    )
    assert len(texts) == 18
    assert dropped == served
    assert sum(bool(numbers) for numbers in served) >= 9


EXPRESSIONS: list[tuple[str, Callable[[made.Line], bool]]] = [
    ('relation = "P3"', lambda line: line["relation"] == "P3"),
    ("frequency >= 600 and not answered", lambda line: line["frequency"] >= 600 and not line["answered"]),
    ("8b_confidence > .5 or answered = true", lambda line: line["8b_confidence"] > 0.5 or line["answered"]),
    ("rank <= 3", lambda line: any(line["proponent_correct"][:3])),
    ("rank = null", lambda line: not any(line["proponent_correct"])),
    (
        "num_correct >= 2 and score < 0.85",
        lambda line: sum(line["proponent_correct"]) >= 2 and line["proponent_scores"][0] < 0.85,
    ),
    (
        'prompt ~ "EGYPT" and (relation = "P0" or relation = "P1")',
        lambda line: "Egypt" in line["inputs_plaintext"] and line["relation"] in ("P0", "P1"),
    ),
    ("not (correct or answered)", lambda line: not any(line["proponent_correct"]) and not line["answered"]),
]


@pytest.mark.parametrize(("expression", "holds"), EXPRESSIONS)
def test_metrics_follow_the_filter(
    view: View, results: str, lines: list[made.Line], expression: str, holds: Callable[[made.Line], bool]
) -> None:
    page = view(run=results)
    assert _metrics(page) == _expected(lines)
    _filter(page, expression)
    kept = [line for line in lines if holds(line)]
    assert 0 < len(kept) < COUNT
    expect(page.locator("#count")).to_have_text(f"{len(kept)} of 300 queries")
    assert _metrics(page) == _expected(kept)
    assert _order(page) == [line["inputs_plaintext"] for line in kept[:8]]


def test_filters_by_field(view: View, results: str, lines: list[made.Line]) -> None:
    page = view(run=results)
    page.locator("#more > summary").click()
    page.locator("#relation").select_option("P2")
    page.locator("#min").fill("0.8")
    page.locator("#max").fill("0.88")
    page.locator("#correct").select_option("none")
    kept = [
        line
        for line in lines
        if line["relation"] == "P2"
        and 0.8 <= line["proponent_scores"][0] <= 0.88
        and not any(line["proponent_correct"])
    ]
    assert kept
    expect(page.locator("#count")).to_have_text(f"{len(kept)} of 300 queries")
    page.locator("#min").fill("low")
    expect(page.locator("#filter-error")).to_have_text("“low” is not a number.")


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("relation =", "at character 11, expected a field, a number or a text in quotes"),
        ("(rank > 1", "at character 10, expected )"),
        ('"open', 'at character 1, " is not closed'),
        ("rank; alert(1)", "at character 5, unexpected ;"),
        ("relatoin = 1", "No query has “relatoin”"),
        ("relation = P3", "No query has “P3”. Texts stand in quotes."),
    ],
)
def test_errors_in_expressions_say_where(view: View, results: str, expression: str, error: str) -> None:
    page = view(run=results)
    _filter(page, expression)
    expect(page.locator("#filter-error")).to_contain_text(error)
    expect(page.locator("#filter")).to_have_attribute("aria-invalid", "true")
    if "No query" not in error:
        assert _count(page) == "300 queries"  # The other filters still hold.


def test_orders(view: View, results: str, lines: list[made.Line]) -> None:
    page = view(run=results)
    page.locator("#sort").select_option("score")
    best = sorted(lines, key=lambda line: -line["proponent_scores"][0])
    expect(page.locator(".query-row .row-prompt").first).to_have_text(best[0]["inputs_plaintext"])
    assert _order(page) == [line["inputs_plaintext"] for line in best[:8]]
    page.locator("#sort").select_option("rank-down")
    without = [line for line in lines if not any(line["proponent_correct"])]
    expect(page.locator(".query-row .row-prompt").first).to_have_text(without[0]["inputs_plaintext"])


def test_a_link_restores_the_view(opener: Opener, results: str) -> None:
    url = opener.serve(run=results)
    page = opener(url)
    page.get_by_role("searchbox").fill("norway")
    page.locator("#sort").select_option("score-up")
    _filter(page, "frequency > 30")
    expect(page.locator("#count")).to_have_text(re.compile("^3[0-9] of 300"))
    page.locator(".query-row").nth(2).click()
    page.get_by_role("tab", name="Opponents").click()
    page.get_by_label("Words to mark").fill("opponent")
    page.get_by_label("Words to mark").press("Enter")
    expect(page.locator("mark.match-words")).to_have_count(3)
    title = page.locator("#query-title").inner_text()
    again = opener(page.url)
    expect(again.locator("#query-title")).to_have_text(title)
    assert _order(again) == _order(page)
    assert _count(again) == _count(page)
    assert again.locator("#filter").input_value() == "frequency > 30"
    expect(again.locator("mark.match-words")).to_have_count(3)
    assert again.get_by_role("tab", name="Opponents").get_attribute("aria-selected") == "true"


def test_the_back_button_returns_to_the_query_before(view: View, results: str) -> None:
    page = view(run=results)
    page.locator(".query-row").nth(1).click()
    page.locator(".query-row").nth(3).click()
    expect(page.locator("#query-title")).to_contain_text("Question 3:")
    page.go_back()
    expect(page.locator("#query-title")).to_contain_text("Question 1:")


def test_matches_are_marked(view: View, tmp_path: Path) -> None:
    texts = ["In OSLO, not Oslofjord: Norway's Oslo.", "Nothing of it.", "the norway of 東京都"]
    line = made.minimal(proponents=texts, proponent_ids=list("abc"), proponent_scores=[3, 2, 1])
    page = view("#words=nothing+%22of+it%22", run=made.write(tmp_path / "r.jsonl", [line]))
    assert page.locator(".passage mark.match-target").all_inner_texts() == ["OSLO", "Oslo"]
    assert page.locator(".passage mark.match-subject").all_inner_texts() == ["Norway", "norway"]
    assert page.locator(".passage mark.match-words").all_inner_texts() == ["Nothing", "of it"]
    assert page.locator(".passage-text").all_inner_texts() == texts


def test_tokens_are_shaded_and_show_their_numbers(view: View, tmp_path: Path) -> None:
    text = "\U0001f600 Oslo is big"
    tokens = [[[0, 1, -0.25], [2, 6, 1.5], [6, 9, 0.0], [9, 99, 7.0]], "not a list"]
    line = made.minimal(
        proponents=[text, "plain"], proponent_ids=["a", "b"], proponent_scores=[1, 0.5], proponent_tokens=tokens
    )
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    shaded = page.locator(".passage .token")
    assert shaded.all_inner_texts() == ["\U0001f600", "Oslo", " is"]
    assert [token.get_attribute("title") for token in shaded.all()] == ["-0.2500", "1.5000", "0.0000"]
    colours = [token.evaluate("e => getComputedStyle(e).backgroundColor") for token in shaded.all()]
    assert len(set(colours)) == 3
    assert page.locator(".token mark.match-target").inner_text() == "Oslo"
    assert page.locator(".passage-text").all_inner_texts() == [text, "plain"]


def test_long_texts_are_cut_until_asked_for(view: View, tmp_path: Path) -> None:
    text = "x" * 1_999 + "\U0001f600" + " y" * 500_000 + " Oslo"
    line = made.minimal(proponents=[text], proponent_ids=["a"], proponent_scores=[1], note=text)
    page = view(run=made.write(tmp_path / "r.jsonl", [line]))
    assert page.locator(".passage-text").inner_text() == "x" * 1_999 + "…"
    assert page.evaluate("document.body.innerText.length") < 10_000
    page.get_by_role("button", name="Show all (1,002,006 characters; 1 match further on)").click()
    expect(page.locator(".passage mark.match-target")).to_have_text("Oslo")
    assert page.locator(".passage-text").text_content() == text


def test_every_optional_field_may_be_missing(view: View, tmp_path: Path) -> None:
    lines = [
        made.minimal(),
        made.minimal(inputs_plaintext="", example_id=17),
        made.minimal(proponent_ids=["a"], proponent_scores=[1.0]),
    ]
    page = view(run=made.write(tmp_path / "r.jsonl", lines))
    expect(page.locator("#count")).to_have_text("3 queries")
    expect(page.locator(".column")).to_contain_text("This file has no proponents of this query.")
    expect(page.locator("#metrics")).to_contain_text("None of these queries says which proponents are correct")
    page.locator(".query-row").nth(1).click()
    expect(page.locator("#query-title")).to_have_text(" → Oslo")
    page.locator(".query-row").nth(2).click()
    expect(page.locator(".passage-text")).to_have_text("These results were written without texts.")


def test_each_optional_field_may_be_missing(view: View, tmp_path: Path) -> None:
    """One after the other, of a record that has them all; a ranking's ids, scores and texts come and go together."""
    full = {**made.line(0), "proponent_tokens": [[[0, 7, 0.5]]] * 12}
    lines = []
    for name in full:
        end = next((end for end in ("proponent", "opponent") if name in (f"{end}_ids", f"{end}_scores")), None)
        gone = {name} if end is None else {f"{end}s", f"{end}_ids", f"{end}_scores", f"{end}_correct"}
        if name not in ("inputs_plaintext", "targets_plaintext"):
            lines.append({other: value for other, value in full.items() if other not in gone})
    assert len(lines) == len(full) - 2 == 16
    path = made.write(tmp_path / "r.jsonl", lines)
    page = view(served=path)
    page.locator("#picker").set_input_files(path)  # and read by the page itself
    expect(page.locator("#runs .chip")).to_have_text(["served", "r"])
    expect(page.locator("#count")).to_have_text("16 queries")
    for line in lines:
        count = len(line.get("proponent_ids", []))
        expect(page.locator(".column").first.locator(".passage")).to_have_count(count)
        expect(page.locator(".column").last.locator(".passage")).to_have_count(count)
        expect(page.locator("#detail [role=alert]")).to_have_count(0)
        page.get_by_role("tab", name="Opponents").click()
        expect(page.locator(".passage")).to_have_count(2 * len(line.get("opponent_ids", [])))
        page.keyboard.press("o")
        page.keyboard.press("j")


def test_the_record_is_shown_as_it_stands_in_the_file(view: View, results: str, lines: list[made.Line]) -> None:
    page = view(run=results)
    page.get_by_role("button", name="Record").click()
    assert json.loads(page.locator("#raw pre").inner_text()) == lines[0]
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#raw")).not_to_be_visible()


def test_the_selection_is_saved_as_the_file_has_it(
    view: View, results: str, lines: list[made.Line], tmp_path: Path
) -> None:
    page = view(run=results)
    _filter(page, 'relation = "P4" and rank = 1')
    kept = [line for line in lines if line["relation"] == "P4" and line["proponent_correct"][0]]
    expect(page.locator("#count")).to_have_text(f"{len(kept)} of 300 queries")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save selection").click()
    assert download.value.suggested_filename == "run-selection.jsonl"
    download.value.save_as(tmp_path / "saved.jsonl")
    assert [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()] == kept


def test_files_are_opened_beside(view: View, results: str, lines: list[made.Line], tmp_path: Path) -> None:
    page = view()
    expect(page.locator("#detail")).to_contain_text("Drop results files on this page")
    page.locator("#picker").set_input_files(results)
    expect(page.locator("#count")).to_have_text("300 queries")
    assert _metrics(page) == _expected(lines)
    assert page.locator(".passage-text").all_inner_texts() == lines[0]["proponents"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save selection").click()
    download.value.save_as(tmp_path / "saved.jsonl")
    assert (tmp_path / "saved.jsonl").read_bytes() == Path(results).read_bytes()
    page.locator("#picker").set_input_files(results)
    expect(page.locator("#runs .chip")).to_have_text(["r", "r 2"])


def test_files_are_dropped_on_the_page(view: View, lines: list[made.Line]) -> None:
    page = view()
    text = "".join(json.dumps(line) + "\n" for line in lines[:5])
    page.evaluate(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([text], "dropped.jsonl"));
            window.dispatchEvent(new DragEvent("dragover", {dataTransfer: data, cancelable: true}));
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
        }""",
        text,
    )
    expect(page.locator("#count")).to_have_text("5 queries")
    expect(page.locator("#drop")).not_to_be_visible()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"inputs_plaintext": "a"}\n', "bad.jsonl, line 1: the field 'targets_plaintext' is missing"),
        (json.dumps(made.line(0)).encode() + b"\n\n{broken\n", "bad.jsonl, line 3: not JSON"),
        (b"\n \n", "bad.jsonl: no results in this file"),
        (b'{"inputs_plaintext": "\xe9"}\n', "bad.jsonl, line 1: not UTF-8"),
        (json.dumps({**made.line(0), "proponent_ids": ["x"]}).encode(), "line 1: proponents: a ranking needs as many"),
    ],
)
def test_files_that_are_no_results_say_why(view: View, content: bytes, message: str) -> None:
    page = view()
    page.locator("#picker").set_input_files({"name": "bad.jsonl", "mimeType": "", "buffer": content})
    expect(page.locator("#toast")).to_contain_text(message)
    expect(page.locator("#runs .chip")).to_have_count(0)


def test_a_dropped_file_makes_the_same_rows_as_the_server(view: View, tmp_path: Path) -> None:
    hard = [
        *made.lines(20),
        *made.hostile(),
        made.minimal(),
        made.minimal(
            inputs_plaintext="\U0001f600" * 600, targets_plaintext="x" * 300, note="\u6f22" * 250, proponents=None
        ),
        made.minimal(proponent_ids=[1, "2"], proponent_scores=[1, -1], has_trex_sentence=False, flag=None, f=1.5),
    ]
    path = Path(made.write(tmp_path / "hard.jsonl", hard))
    path.write_bytes(
        path.read_bytes() + b'{"inputs_plaintext": "p", "targets_plaintext": "t", "big": 12345678901234567, "n": NaN}\n'
    )
    page = view(hard=str(path))
    page.locator("#picker").set_input_files(str(path))
    expect(page.locator("#runs .chip")).to_have_count(2)
    served, dropped = page.evaluate(
        """async () => {
            const { FileRun } = await import("./sources.js");
            const served = (await (await fetch("api/v1/results")).json()).runs[0].rows;
            const bytes = await (await fetch("api/v1/results/0/lines", {
                method: "POST", body: JSON.stringify({numbers: served.map((_, n) => n)}),
            })).blob();
            const run = await FileRun.open(new File([bytes], "hard.jsonl"), "hard", () => {});
            return [served, run.rows];
        }"""
    )
    assert len(served) == len(hard) + 1
    assert dropped == served


def test_an_exported_page_opens_from_disk(opener: Opener, results: str, lines: list[made.Line], tmp_path: Path) -> None:
    run = open_run("run", results)
    write_page(str(tmp_path / "page.html"), [run], max_proponents=5)
    page = opener((tmp_path / "page.html").as_uri())
    expect(page.locator("#count")).to_have_text("300 queries")
    assert _metrics(page) == _expected(lines)
    assert page.locator(".passage-text").all_inner_texts() == lines[0]["proponents"][:5]
    expect(page.locator(".column")).to_contain_text("7 more are in the results file, not in this page.")
    page.locator(".query-row").nth(4).click()
    expect(page.locator("#query-title")).to_contain_text("Question 4:")
    again = opener(page.url)
    expect(again.locator("#query-title")).to_contain_text("Question 4:")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save selection").click()
    download.value.save_as(tmp_path / "saved.jsonl")
    saved = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()]
    assert [record["proponent_ids"] for record in saved] == [line["proponent_ids"][:5] for line in lines]
    page.locator("#picker").set_input_files(results)
    expect(page.locator("#runs .chip")).to_have_count(2)


def test_on_a_phone_list_and_query_take_turns(view: View, results: str) -> None:
    page = view(run=results, context={"viewport": NARROW, "has_touch": True, "is_mobile": True})
    expect(page.locator(".main")).not_to_be_visible()
    page.locator(".query-row").nth(2).tap()
    expect(page.locator("#query-title")).to_contain_text("Question 2:")
    expect(page.locator(".side")).not_to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.get_by_role("button", name="← Queries").tap()
    expect(page.locator(".side")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_a_server_that_is_gone_is_said(opener: Opener, results: str) -> None:
    page = opener(opener.serve(run=results))
    page.route("**/api/v1/results/0/9", lambda route: route.abort())
    page.locator(".query-row").nth(9).click()
    expect(page.locator("#detail [role=alert]")).to_have_text("The server does not answer. Is it still running?")
    page.unroute("**/api/v1/results/0/9")
    page.locator(".query-row").nth(8).click()
    page.locator(".query-row").nth(9).click()
    expect(page.locator("#query-title")).to_contain_text("Question 9:")
    opener.problems[:] = [text for text in opener.problems if "net::ERR_FAILED" not in text]


def test_the_theme_is_kept(view: View, results: str) -> None:
    page = view(run=results, context={"color_scheme": "light"})
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme: auto").click()
    assert page.evaluate(background) == light
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(background) == dark


def test_help_names_keys_and_fields(view: View, results: str) -> None:
    page = view(run=results)
    page.get_by_role("button", name="Help").click()
    expect(page.locator("#help")).to_contain_text("8b_confidence")
    expect(page.locator("#help")).to_contain_text("rank of the first correct proponent")
    page.keyboard.press("Escape")
    expect(page.locator("#help")).not_to_be_visible()
