"""The sample: documents to score and others to fit on, the same in every run; what is recommended of measured rows."""

import json
from pathlib import Path

import pytest

from tests.encoders import make_encoder
from tests.tiny_models import tiny_model, tiny_tokenizer
from trackstar.corpus import WorkItem, expand, plan, read
from trackstar.errors import TrackStarError
from trackstar.evaluation.intervals import Estimate
from trackstar.fitting import sampled_examples
from trackstar.models import WeightInfo, prepare_model
from trackstar.results import Query
from trackstar.tokenization import Tokenization
from trackstar.tuning.candidates import Family, at_most
from trackstar.tuning.plan import Settings, default_sizes, make_plan
from trackstar.tuning.run import SPEARMAN, Row, recommend
from trackstar.tuning.sample import as_task, choose_queries, draw, tokenization


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[WorkItem]:
    """Two shards: 120 documents, of which two cannot be used, and some are longer than the model's context."""
    folder = tmp_path_factory.mktemp("corpus")
    for shard in range(2):
        texts = [f"Rome is a city in Italy, number {shard * 60 + n}." + " It is old." * (n % 9) for n in range(60)]
        texts[7] = "a"
        lines = [json.dumps({"id": f"{shard}-{n}", "text": text}) + "\n" for n, text in enumerate(texts)]
        (folder / f"{shard}.jsonl").write_text("".join(lines))
    return plan(expand([str(folder / "*.jsonl")]), 1000)


@pytest.fixture(scope="module")
def to_examples() -> Tokenization:
    return tokenization(ENCODER.loaded, ENCODER.spec)


def _encoder():
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tiny_tokenizer()))
    return make_encoder(prepare_model(model, tiny_tokenizer()), max_length=40, layout="weights")


ENCODER = _encoder()


def test_scored_and_fitted_are_apart_and_the_same_in_every_run(
    items: list[WorkItem], to_examples: Tokenization
) -> None:
    found = draw(items, to_examples, 30, 50, seed=3)
    assert (len(found.scored), len(found.fitted)) == (30, 50)
    ids = [example.example_id for example in (*found.scored, *found.fitted)]
    assert len(set(ids)) == 80
    assert found == draw(items, to_examples, 30, 50, seed=3)
    assert found != draw(items, to_examples, 30, 50, seed=4)
    assert {example_id.split("-")[0] for example_id in ids} == {"0", "1"}


def test_a_small_corpus_is_shared_and_bad_records_are_counted(items: list[WorkItem], to_examples: Tokenization) -> None:
    found = draw(items, to_examples, None, None, seed=0)
    assert (len(found.scored), len(found.fitted), found.unusable) == (59, 59, 2)
    found = draw(items, to_examples, 100, None, seed=0)
    assert (len(found.scored), len(found.fitted)) == (100, 18)


@pytest.mark.parametrize(("sample", "fit"), [(118, None), (119, None), (5000, None), (60, 59), (None, 118)])
def test_more_than_there_is(
    items: list[WorkItem], to_examples: Tokenization, sample: int | None, fit: int | None
) -> None:
    with pytest.raises(TrackStarError, match=r"11\d usable ones were found"):
        draw(items, to_examples, sample, fit, seed=0)


def test_an_empty_corpus(to_examples: Tokenization) -> None:
    with pytest.raises(TrackStarError, match="corpus is empty"):
        draw([], to_examples, None, None, seed=0)


def test_a_task_holds_the_examples(items: list[WorkItem], to_examples: Tokenization, tmp_path: Path) -> None:
    fitted = draw(items, to_examples, 30, 50, seed=3).fitted
    task = as_task(fitted, tmp_path)
    again = list(sampled_examples(ENCODER, task))
    assert [(e.example_id, e.input_ids, e.first_target) for e in again] == [
        (e.example_id, e.input_ids, 1) for e in fitted
    ]
    assert any(len(example.input_ids) == 40 for example in fitted)  # cut once, and not again
    assert sum(1 for item in items for _ in read(item)) == 120


def test_queries_are_evenly_spaced(to_examples: Tokenization) -> None:
    queries = [Query(str(n), "The capital of Italy is", " Rome") for n in range(10)]
    assert [example.example_id for example in choose_queries(queries, 4, to_examples)] == ["0", "2", "5", "7"]
    assert len(choose_queries(queries, 99, to_examples)) == 10
    with pytest.raises(TrackStarError, match="query 'x': no token"):
        choose_queries([Query("x", "", "a")], 4, to_examples)


def row(name: str, num_bytes: int, quality: float | None, speed: float = 1.0) -> Row:
    family = Family(storage="sign", normalisation=name)
    candidate = at_most(family, ENCODER.spec, ENCODER.loaded.weights, num_bytes)
    assert candidate is not None
    return Row(candidate, {SPEARMAN: Estimate(quality, quality, quality, 3)}, speed)


def test_of_about_equally_good_rows_the_smallest_is_recommended() -> None:
    rows = [row("block", 30, 0.5), row("block", 60, 0.799), row("block", 120, 0.8), row("block", 400, 0.99)]
    assert recommend(rows, 200) is rows[1]
    assert recommend(rows, 1000) is rows[3]
    assert recommend(rows, 30) is rows[0]
    quick = row("vector", 60, 0.797, speed=2.0)
    assert recommend([*rows, quick], 200) is quick
    nothing = row("vector", 30, None)
    assert recommend([nothing, rows[0]], 30) is rows[0]
    with pytest.raises(TrackStarError, match="no encoding is so small"):
        recommend(rows, 2)


def test_a_plan_holds_the_budget_and_says_what_it_leaves_out() -> None:
    settings = Settings(400, default_sizes(400), memory_bytes=1 << 20)
    plan = make_plan(ENCODER.loaded.weights, ENCODER.spec, settings, 5, num_fitted=40)
    assert default_sizes(400) == (100, 200, 400, 800)
    sizes = {candidate.num_bytes for candidate in plan.candidates}
    assert max(sizes) <= 800
    assert any(size > 200 for size in sizes if size <= 400)
    assert len({candidate.spec for candidate in plan.candidates}) == len(plan.candidates)
    grouped = [candidate for group in plan.groups for candidate in group.candidates]
    assert sorted(map(id, grouped)) == sorted(map(id, plan.candidates))
    with_r = [c for c in plan.candidates if c.family.preconditioner == "train"]
    assert with_r
    assert max(c.spec.block_dimension for c in with_r) <= 40
    assert any("40 documents to be fitted on" in line for line in plan.left_out)


def test_a_budget_below_the_smallest_encoding() -> None:
    weights = [
        WeightInfo(f"model.layers.{layer}.{kind}.{name}.weight", "", 8, 8, False, kind, layer)
        for layer in range(9)
        for kind, name in (("attention", "in"), ("attention", "out"), ("mlp", "up"))
    ]
    with pytest.raises(TrackStarError, match=r"no encoding is so small\. One bit for each of 9 blocks takes 2 bytes"):
        make_plan(weights, ENCODER.spec, Settings(1, (1,)), 5, 40)
    assert make_plan(weights, ENCODER.spec, Settings(2, (2,)), 5, 40).candidates


def test_a_budget_beyond_this_machine() -> None:
    weights = [ENCODER.loaded.weights[0].__class__("w.0.x", "", 1 << 20, 1 << 20, False, "mlp", 0)]
    with pytest.raises(TrackStarError, match=r"are available: lower --budget"):
        make_plan(weights, ENCODER.spec, Settings(1 << 40, (1 << 40,), memory_bytes=1 << 62), 5, 40)
