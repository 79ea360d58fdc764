"""The live panel in a browser: trace, progress, cancel, history, completions, token shading; keyboard, names, contrast."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.running import QUERY, Gated, Running, running
from tests.viewer.conftest import NARROW, WIDE, Opener, browser, opener, playwright  # noqa: F401
from tests.viewer.test_access import _violations
from trackstar.tracing import Tracer


def url(server: Running) -> str:
    return f"http://127.0.0.1:{server.port}/"


def ask(page: Page, prompt: str = QUERY["prompt"], target: str = QUERY["target"], top_k: int = 5) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("What the model said").fill(target)
    page.locator("#live-top-k").fill(str(top_k))
    page.get_by_role("button", name="Trace", exact=True).click()


@pytest.fixture
def own(tracer: Tracer) -> Iterator[Running]:
    """A server without a history."""
    with running(tracer) as started:
        yield started


def test_a_trace_is_shown_as_any_result(opener: Opener, own: Running) -> None:  # noqa: F811
    page = opener(url(own))
    ask(page)
    expect(page.locator(".passage")).to_have_count(5)
    expect(page.locator("#query-title")).to_contain_text(QUERY["prompt"])
    (trace,) = own.get("/traces")["traces"]
    record = own.get(f"/traces/{trace['id']}")["result"]
    assert page.locator(".passage-text").all_inner_texts() == record["proponents"]
    assert page.locator(".passage .score").all_inner_texts() == [f"{score:.4f}" for score in record["proponent_scores"]]
    expect(page.locator("#runs")).to_have_text("live")
    for place, passage in enumerate(page.locator(".passage").all()):
        position = f" · position {record['proponent_positions'][place]:,}"
        name = record["proponent_shards"][place].rpartition("/")[2]
        assert name + position in passage.locator(".origin").last.inner_text()
    expect(page.locator(".live-progress")).to_be_hidden()
    expect(page.locator("#toast")).to_contain_text("Traced in")


def test_the_model_completes(opener: Opener, own: Running, tracer: Tracer) -> None:  # noqa: F811
    page = opener(url(own))
    page.get_by_label("Prompt", exact=True).fill("Rome is a city")
    page.get_by_role("button", name="Complete").click()
    target = page.get_by_label("What the model said")
    expect(target).to_be_focused()
    assert target.input_value() == tracer.complete("Rome is a city", 16).replace("\r\n", "\n")


def test_progress_and_cancelling(opener: Opener, gated: Gated) -> None:  # noqa: F811
    with running(gated) as server:
        page = opener(url(server))
        ask(page)
        bar = page.get_by_role("progressbar", name="Progress of the trace")
        expect(bar).to_be_visible()
        gated.step(2)
        expect(page.locator(".live-progress .hint")).to_contain_text("a second")
        expect(page.locator(".live-progress .hint")).to_contain_text("left")
        assert 0 < bar.evaluate("bar => bar.value") < 1
        assert _violations(page) == []
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#toast")).to_have_text("The trace was cancelled")
        expect(page.locator(".live-progress")).to_be_hidden()
        page.get_by_text("History").click()
        expect(page.locator(".live-item")).to_contain_text("cancelled")
        gated.open()
        ask(page)
        expect(page.locator(".passage")).to_have_count(5)


def test_the_history_brings_results_back(opener: Opener, own: Running) -> None:  # noqa: F811
    ids = [own.ask(target=target) for target in (" Paris", " Rome")]
    for trace_id in ids:
        own.ended(trace_id)
    page = opener(url(own))
    page.get_by_text("History").click()
    items = page.locator(".live-item")
    expect(items).to_have_count(2)
    expect(items.first).to_contain_text("Rome")
    items.nth(1).click()
    expect(page.locator("#query-title")).to_contain_text("Paris")
    assert page.get_by_label("What the model said").input_value() == " Paris"
    items.first.click()
    expect(page.locator("#query-title")).to_contain_text("Rome")
    items.nth(1).click()  # a second time: no second query
    expect(page.locator("#query-title")).to_contain_text("Paris")
    expect(page.locator("#count")).to_have_text("2 queries")


def test_tokens_are_shaded_on_request(opener: Opener, own: Running) -> None:  # noqa: F811
    page = opener(url(own))
    ask(page)
    expect(page.locator(".passage")).to_have_count(5)
    texts = page.locator(".passage-text").all_inner_texts()
    assert page.locator(".passage .token").count() == 0
    page.get_by_label("Explain the first").fill("2")
    page.get_by_role("button", name="Shade tokens").click()
    rows = page.locator(".live-layers tbody tr")
    expect(rows).to_have_count(2)
    (trace,) = own.get("/traces")["traces"]
    asked = {"ranks": [1, 2], "end": "proponents"}
    found = own.call("POST", f"/api/v1/traces/{trace['id']}/explanations", asked).json["explanations"]
    for row, explained in zip(rows.all(), found, strict=True):
        assert row.locator(".live-shaded").text_content() == QUERY["target"]
        of_target = [
            value for start, _, value in explained["query"]["target_segments"] if start >= len(QUERY["prompt"])
        ]
        assert sum(of_target) == pytest.approx(explained["score"], abs=1e-4)  # the prompt's tokens are not predicted
        titles = [token.get_attribute("title") for token in row.locator(".token").all()]
        assert [float(title or "nan") for title in titles] == pytest.approx(of_target, abs=6e-5)
        kinds = ["for" if value >= 0 else "against" for value in of_target]
        assert [f"token {kind}" for kind in kinds] == [t.get_attribute("class") for t in row.locator(".token").all()]
        scores = [float(cell) for cell in row.locator("td").all_inner_texts()[:2]]
        assert scores == pytest.approx([explained["index_score"], explained["score"]], abs=6e-5)
        layers = sorted(explained["layers"], key=lambda layer: -abs(layer["contribution"]))
        expect(row.locator("td").last).to_contain_text(f"{layers[0]['kind']} {layers[0]['layer']}: ")
    for place in range(5):
        shaded = page.locator(".passage").nth(place).locator(".token").count()
        assert (shaded > 0) == (place < 2)
    assert page.locator(".passage-text").all_inner_texts() == texts
    expect(page.locator("#count")).to_have_text("1 query")


def test_an_index_of_the_mlps_alone_is_explained_by_these(opener: Opener, mlp_tracer: Tracer) -> None:  # noqa: F811
    with running(mlp_tracer) as server:
        page = opener(url(server))
        ask(page)
        page.get_by_role("button", name="Shade tokens").click()
        rows = page.locator(".live-layers tbody tr")
        expect(rows).to_have_count(5)
        for row in rows.all():
            expect(row.locator("td").last).to_contain_text("mlp")
            expect(row.locator("td").last).not_to_contain_text("attention")
        assert page.locator(".passage .token").count() > 5


def test_errors_are_said(opener: Opener, own: Running) -> None:  # noqa: F811
    page = opener(url(own))
    ask(page, target="  ")
    expect(page.locator("#live-error")).to_contain_text("the target is empty")
    ask(page, prompt="city " * 3000)
    expect(page.locator("#live-error")).to_contain_text("Shorten them by")
    assert _violations(page) == []
    ask(page)
    expect(page.locator(".passage")).to_have_count(5)
    expect(page.locator("#live-error")).to_be_hidden()
    complaints = [problem for problem in opener.problems if "422" not in problem]  # Chromium notes each such answer
    assert len(opener.problems) - len(complaints) == 2
    opener.problems[:] = complaints


def test_texts_stay_texts(opener: Opener, own: Running) -> None:  # noqa: F811
    page = opener(url(own))
    evil = "<img src=x onerror=window.hacked=1>"
    ask(page, evil, f" {evil}", 1)
    expect(page.locator("#query-title")).to_contain_text(evil)
    page.get_by_text("History").click()
    expect(page.locator(".live-item")).to_contain_text(evil)
    assert page.evaluate("window.hacked") is None


def test_keyboard_alone(opener: Opener, own: Running) -> None:  # noqa: F811
    page = opener(url(own))
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("seven green j?")  # single keys do nothing here
    page.keyboard.press("Tab")
    page.keyboard.type(" old river")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#query-title")).to_contain_text("seven green j?")
    page.locator("#live-prompt").focus()
    for name in ("live-target", "Complete", "live-top-k", "live-opponents", "Trace"):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        assert focused == name


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_look(opener: Opener, own: Running, scheme: Any, size: Any) -> None:  # noqa: F811
    page = opener(url(own), color_scheme=scheme, viewport=size)
    assert _violations(page) == []
    ask(page)
    expect(page.locator(".passage")).to_have_count(5)
    if size == NARROW:
        page.get_by_role("button", name="← Queries").click()
    page.get_by_role("button", name="Shade tokens").click()
    expect(page.locator(".live-layers tbody tr")).to_have_count(5)
    assert _violations(page) == []
    if size == NARROW:
        page.get_by_role("button", name="← Queries").click()
    page.get_by_text("History").click()
    assert _violations(page) == []
