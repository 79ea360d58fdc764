"""Whole runs in this process: grouping, order, summaries, and what cannot be measured."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import tiny_tokenizer
from tests.trackstar.evaluation.trained import CAPITALS, PROMPT, UNRELATED, fact, train_on_facts
from trackstar.corpus import Record
from trackstar.errors import TrackStarError
from trackstar.evaluation.metrics import read_tail_patches
from trackstar.evaluation.tail_patch import TailPatch, TailPatchSettings
from trackstar.evaluation.tail_patch_plan import Plan, chunks, make_plan
from trackstar.evaluation.tail_patch_run import TailPatches, measure, write
from trackstar.evaluation.tail_patch_tasks import run_here
from trackstar.models import load_model, prepare_model
from trackstar.results import Query, Ranking, Result

COUNTRIES = list(CAPITALS)
RATE = 3e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_facts(tmp_path_factory.mktemp("facts"))


@pytest.fixture(scope="module")
def patch(checkpoint: Path) -> TailPatch:
    return TailPatch(load_model(str(checkpoint)), str(checkpoint))


def result(country: str, documents: dict[str, str], target: str | None = None) -> Result:
    query = Query(
        country, PROMPT.format(country), CAPITALS[country] if target is None else target, {"fact_id": country}
    )
    ranking = Ranking(list(documents.values()), list(documents), [1.0 / rank for rank in range(1, len(documents) + 1)])
    return Result(query, "capitals", ranking)


def good_results() -> list[Result]:
    """Each query: its own fact, its neighbour's, and one text that all share."""
    neighbours = [*COUNTRIES[1:], COUNTRIES[0]]
    return [
        result(country, {f"d-{country}": fact(country), f"d-{other}": fact(other), "shared": UNRELATED[0]})
        for country, other in zip(COUNTRIES, neighbours, strict=True)
    ]


def test_a_distinct_proponent_is_stepped_once_for_all_its_queries() -> None:
    plan = make_plan(good_results(), 10)
    assert (plan.num_pairs, len(plan.groups)) == (24, 9)
    shared = next(i for i, group in enumerate(plan.groups) if group.document and group.document.example_id == "shared")
    assert plan.places[shared] == tuple((number, 3) for number in range(8))
    assert len(make_plan(good_results(), 1).groups) == 8
    # The same id with another text is another document: a passage cut otherwise.
    other = result("France", {"shared": UNRELATED[1]})
    assert len(make_plan([*good_results()[1:], other], 3).groups) == 10
    groups = plan.groups * 100
    assert [group for part in chunks(groups) for group in part] == list(groups)


def test_each_line_is_what_its_pair_alone_gives(patch: TailPatch) -> None:
    results = good_results()
    patches = measure(make_plan(results, 3), run_here(patch), RATE, 0)
    rows, rejects = patches.rows()
    assert not rejects and len(rows) == 24
    assert [(row["example_id"], row["rank"]) for row in rows] == [(c, rank) for c in COUNTRIES for rank in (1, 2, 3)]
    for row in rows:
        source = next(r for r in results if r.query.example_id == row["example_id"])
        position = list(source.proponents.ids).index(row["proponent_id"])
        assert position == row["rank"] - 1
        document, _ = patch.document(source.proponents.texts[position])
        query = patch.query(source.query.prompt, source.query.target)
        alone = patch.measure(document, [query], RATE)
        assert row["before"] == pytest.approx(alone.before[0], abs=1e-6)
        assert row["after"] == pytest.approx(alone.after[0][0], abs=1e-6)
        assert row["change"] == row["after"] - row["before"]
        drift = patch.measure(None, [query], RATE)
        assert row["drift"] == pytest.approx(drift.after[0][0] - drift.before[0], abs=1e-6)
        assert (row["step"], row["learning_rate"], row["query_set"]) == ("adamw", RATE, "capitals")
    # Queries in the other order: the same numbers, by other batches.
    turned, _ = measure(make_plan(results[::-1], 3), run_here(patch), RATE, 0).rows()
    by_pair = {(row["example_id"], row["rank"]): row for row in turned}
    for row in rows:
        assert by_pair[row["example_id"], row["rank"]]["change"] == pytest.approx(row["change"], abs=1e-6)


def mean_of(patches: TailPatches, k: int) -> float:
    rows, _ = patches.rows()
    by_query: dict[str, list[float]] = {}
    for row in rows:
        if row["rank"] <= k:
            by_query.setdefault(row["example_id"], []).append(row["change"])
    means = [sum(values) / len(values) for values in by_query.values()]
    return 100 * sum(means) / len(means)


def test_the_summary_is_the_mean_over_the_top_k_and_over_queries(patch: TailPatch) -> None:
    results = good_results()
    results[0] = result("France", {"d-France": fact("France")})  # fewer than k: the mean of what there is
    patches = measure(make_plan(results, 3), run_here(patch), RATE, 0)
    lines = patches.summary()
    assert "adamw step at learning rate 0.0003" in lines[0]
    for k in (1, 3):
        assert f"top {k:<4} {mean_of(patches, k):+.3f}  [" in lines[0]
    assert "(8 queries)" in lines[0] and "top 5" not in lines[0]
    assert "momentum and weight decay alone" in lines[1]
    assert len(lines) == 2


def test_the_file_is_read_by_evaluate(patch: TailPatch, tmp_path: Path) -> None:
    patches = measure(make_plan(good_results(), 3), run_here(patch), RATE, 0)
    uri = str(tmp_path / "patches.jsonl")
    (tmp_path / "patches.rejects.jsonl").write_text("of an earlier run")
    assert write(uri, patches) is None
    assert [path.name for path in tmp_path.iterdir()] == ["patches.jsonl"]
    read = read_tail_patches(uri)
    assert {query: sorted(ranks) for query, ranks in read.items()} == {country: [1, 2, 3] for country in COUNTRIES}
    rows, _ = patches.rows()
    assert read["Peru"][2].change == next(
        row["change"] for row in rows if (row["example_id"], row["rank"]) == ("Peru", 2)
    )


def test_what_cannot_be_measured_is_counted_and_named_and_in_no_mean(patch: TailPatch, tmp_path: Path) -> None:
    results = good_results()
    results[1] = result("Italy", {})
    results[2] = result("Spain", {"short": "a", "d-Spain": fact("Spain")})
    results[3] = result("Norway", {"d-Norway": fact("Norway")}, target="  ")
    results[4] = result("Egypt", {"long": "old river " * 200})
    patches = measure(make_plan(results, 3), run_here(patch), RATE, 0)
    rows, rejects = patches.rows()
    assert [(r["example_id"], r["rank"], r["proponent_id"]) for r in rejects] == [
        ("Spain", 1, "short"),
        ("Norway", 1, "d-Norway"),
    ]
    assert "proponent: 1 token(s)" in rejects[0]["reason"] and "query: the target is empty" in rejects[1]["reason"]
    text = "\n".join(patches.summary())
    assert "1 of 8 queries have no proponents and are left out: Italy" in text
    assert f"2 of {patches.plan.num_pairs} pairs could not be measured" in text
    assert "query Spain, rank 1: proponent: 1 token(s)" in text
    assert "1 of 16 pairs have a proponent that was cut" in text
    # Spain's first proponent is missing, so Spain has no mean over its top 1 or 3; Norway and Italy have none at all.
    assert "(5 queries)" in text and "(8 queries)" not in text
    beside = write(str(tmp_path / "p.jsonl"), patches)
    assert beside == str(tmp_path / "p.rejects.jsonl")
    assert [json.loads(line) for line in Path(beside).read_text().splitlines()] == rejects
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == len(rows) == 14


def test_probabilities_that_are_not_numbers(checkpoint: Path) -> None:
    """One token's embedding is broken: the step on the document that has it leads nowhere, all others are sound."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = tiny_tokenizer()
    [token] = tokenizer("~")["input_ids"]
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    broken = TailPatch(prepare_model(model, tokenizer), None, TailPatchSettings(step="sgd"))
    results = good_results()
    results[0] = result("France", {"broken": "The capital ~ of", "d-France": fact("France")})
    results[1] = result("Italy", {"d-Italy": fact("Italy"), "broken": "The capital ~ of"})
    patches = measure(make_plan(results, 3), run_here(broken), 1e-3, 4)
    _, rejects = patches.rows()
    assert [(r["example_id"], r["rank"]) for r in rejects] == [("France", 1), ("Italy", 2)]
    assert {r["reason"] for r in rejects} == {"the target's probability is not a number after the step"}
    text = "\n".join(patches.summary())
    assert "warning: 2 of 22 pairs could not be measured" in text and "nan" not in text
    assert "top 1    " in text and "(7 queries)" in text and "(6 queries)" in text
    all_broken = [result(country, {"broken": "The capital ~ of"}) for country in COUNTRIES]
    with pytest.raises(TrackStarError, match=r"none of the 8 pairs could be measured.*not a number after the step"):
        measure(make_plan(all_broken, 3), run_here(broken), 1e-3, 0)
    with pytest.raises(TrackStarError, match="no learning rate can be judged: none of 8 pairs can be measured"):
        measure(make_plan(all_broken, 3), run_here(broken), "auto", 64)


def test_plans_of_bad_results() -> None:
    with pytest.raises(TrackStarError, match="the results hold no query"):
        make_plan([], 10)
    with pytest.raises(TrackStarError, match="none of the 2 queries has a proponent"):
        make_plan([result("France", {}), result("Italy", {})], 10)
    with pytest.raises(TrackStarError, match="hold query 'France' twice"):
        make_plan([result("France", {"a": "b c"}), result("France", {"a": "b c"})], 10)
    twice = Result(Query("q", "a", "b"), "", Ranking(["x y", "x y"], ["d", "d"], [2.0, 1.0]))
    with pytest.raises(TrackStarError, match="query 'q' lists proponent 'd' twice"):
        make_plan([twice], 10)


def without_texts(results: list[Result]) -> Plan:
    return make_plan(
        [dataclasses.replace(r, proponents=dataclasses.replace(r.proponents, texts=[""] * 3)) for r in results], 3
    )


def test_missing_texts_are_an_error_or_looked_up(patch: TailPatch) -> None:
    plan = without_texts(good_results())
    with pytest.raises(TrackStarError, match=r"9 of 9 proponents have no text.*'d-France'.*--stores_text.*--corpus"):
        plan.check_texts()
    found = {f"d-{country}": Record(f"d-{country}", "s", 0, fact(country), None) for country in COUNTRIES}
    found["d-Peru"] = Record("d-Peru", "s", 0, None, tuple(patch.tokenization.tokenizer(fact("Peru"))["input_ids"]))
    filled = plan.with_documents(found)
    assert filled.without_text == ["shared"]
    rows, rejects = measure(filled, run_here(patch), RATE, 0).rows()
    assert len(rows) == 16
    assert {(r["proponent_id"], r["rank"]) for r in rejects} == {("shared", 3)}
    assert "not in the corpus" in rejects[0]["reason"]
    expected, _ = measure(make_plan(good_results(), 3), run_here(patch), RATE, 0).rows()
    by_pair = {(row["example_id"], row["rank"]): row["change"] for row in expected}
    for row in rows:
        assert row["change"] == pytest.approx(by_pair[row["example_id"], row["rank"]], abs=1e-6)


def test_the_sample_is_of_first_proponents_spread_over_the_queries() -> None:
    plan = make_plan(good_results(), 3)
    everything = plan.sample(64)
    assert [group.queries[0].target for group in everything] == list(CAPITALS.values())
    for group, country in zip(everything, COUNTRIES, strict=True):
        assert group.document is not None and group.document.text == fact(country) and len(group.queries) == 1
    assert plan.sample(4) == everything[::2]
    assert plan.sample(64) == make_plan(good_results(), 1).sample(64)
