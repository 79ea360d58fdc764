"""The fact-tracing benchmark: its dense arithmetic against the encoder's, and the whole of it at its small size."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fact_tracing import __main__ as command
from benchmarks.fact_tracing import settings, sources
from benchmarks.fact_tracing.gradients import Features, Gradients
from benchmarks.fact_tracing.methods import Method, Ranked, dense_scores
from tests.encoders import make_encoder
from tests.tiny_models import tiny_model, tiny_tokenizer
from trackstar.encoder import precondition_and_normalise
from trackstar.models import prepare_model
from trackstar.preconditioner import mix, mixing_weight
from trackstar.results import Query

TEXTS = [
    "The capital of France is Paris.",
    "Rome is a city in Italy.",
    "A river runs.",
    "The capital of Italy is Rome.",
] * 4
QUERIES = [Query("0", "The capital of France is", " Paris"), Query("1", "Rome is in", " Italy")]


@pytest.fixture(scope="module")
def gradients() -> Gradients:
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tiny_tokenizer()))
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    return Gradients(make_encoder(prepare_model(model, tiny_tokenizer())), texts, QUERIES)


@pytest.mark.parametrize("normalisation", ["vector", "block"])
@pytest.mark.parametrize("preconditioner", ["none", "train", "eval", "mixed"])
def test_dense_scores_are_the_encoders_cosines(gradients: Gradients, preconditioner: str, normalisation: str) -> None:
    train, evaluation = gradients.train, gradients.evaluation
    chosen = {
        "none": None,
        "train": train,
        "eval": evaluation,
        "mixed": mix(train, evaluation, mixing_weight(train, evaluation)),
    }[preconditioner]
    root = None if chosen is None else dataclasses.replace(chosen, damping=0.3).inverse_root
    documents, _ = precondition_and_normalise(gradients.documents, root, normalisation)
    queries, _ = precondition_and_normalise(gradients.queries, root, normalisation)
    method = Method(Features("none", 6), preconditioner, normalisation=normalisation, damping=0.3)
    [scores] = dense_scores([method], gradients).values()
    torch.testing.assert_close(torch.from_numpy(scores), queries @ documents.T, rtol=0, atol=2e-5)


def test_dense_scores_without_unit_norm_are_inner_products(gradients: Gradients) -> None:
    root = gradients.train.inverse_root
    documents = torch.einsum("nbd,bde->nbe", gradients.documents, root).flatten(1)
    queries = torch.einsum("nbd,bde->nbe", gradients.queries, root).flatten(1)
    [scores] = dense_scores([Method(Features("none", 6), "train", unit_norm=False)], gradients).values()
    torch.testing.assert_close(torch.from_numpy(scores), queries @ documents.T, rtol=1e-4, atol=1e-4)


def test_methods_scored_together_are_scored_as_each_alone(gradients: Gradients) -> None:
    features = Features("none", 6)
    methods = [
        Method(features, preconditioner, unit, normalisation, damping)
        for damping in (0.1, 0.5)
        for preconditioner in ("mixed", "none", "train")
        for unit, normalisation in ((True, "vector"), (False, "vector"), (True, "block"))
    ]
    together = dense_scores(methods, gradients)
    assert list(together) == methods
    for method, scores in together.items():
        np.testing.assert_array_equal(scores, dense_scores([method], gradients)[method])


def test_rankings_are_by_score_and_then_by_id() -> None:
    scores = np.array([[0.5, 0.9, 0.5, 0.5, 0.1]], np.float32)
    ids = ["d", "e", "a", "c", "b"]
    [result] = Ranked.of(scores, ids, 3).results(QUERIES[:1], ids, list("vwxyz"), "set")
    assert list(result.proponents.ids) == ["e", "a", "c"]
    assert list(result.proponents.texts) == ["w", "x", "y"]


def test_rankings_without_scores_of_zero_and_from_their_file(tmp_path: Path) -> None:
    ranked = Ranked.of(np.array([[0.0, 0.9, 0.0, 0.5]], np.float32), ["d", "e", "a", "c"], 3, positive_only=True)
    ranked.save(tmp_path / "ranked.npz")
    [result] = (
        Ranked.load(tmp_path / "ranked.npz").some([0]).results(QUERIES[:1], ["d", "e", "a", "c"], list("vwxy"), "")
    )
    assert list(result.proponents.ids) == ["e", "c"]
    assert list(result.proponents.scores) == pytest.approx([0.9, 0.5])
    assert [path.name for path in tmp_path.iterdir()] == ["ranked.npz"]


def test_rows_cover_the_ablation() -> None:
    rows = settings.ablation(settings.SIZES["standard"])
    assert len({row.name for row in rows}) == len(rows)
    middle = [
        r
        for r in rows
        if r.features.side == 32 and r.normalisation == "vector" and r.damping == 0.1 and r.mixing is None
    ]
    combinations = {(r.features.moments, r.preconditioner, r.unit_norm) for r in middle}
    assert len(combinations) == 2 * 4 * 2
    assert len(middle) == len(combinations) * 3
    assert set(settings.LEFT_OUT) - {settings.BM25} <= set(settings.principal(settings.SIZES["standard"]))


def _written(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the one that says how long things took."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "seconds.json")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(sources.missing()), reason=sources.missing())
def test_the_small_size_runs_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--small",
        "--datasets",
        "hard",
        "--folder",
        str(tmp_path / "work"),
        "--results",
        str(tmp_path / "results"),
    ]
    assert command.main(words) == 0
    found = json.loads((tmp_path / "results" / "fact_tracing_small.json").read_text())["datasets"]["hard"]
    rows = {row["name"]: row for row in found["rows"]}
    assert {row["seeds"] for row in rows.values()} == {1, 2}
    means = {name: row["everything"]["MRR"]["mean"] for name, row in rows.items()}
    assert means["BM25"] > 5 * means["random"]
    assert set(found["retrained"]["lds"]) == {*settings.principal(settings.SIZES["small"]), "BM25", "random"}
    assert set(found["retrained"]["lds_of_models"]) == set(settings.principal(settings.SIZES["small"]))
    assert set(found["retrained"]["effects"]) == {*settings.LEFT_OUT, "random documents"}
    assert found["tail_patch"]["gold"]["estimates"]["Tail-patch@1"]["mean"] > 0
    table = (tmp_path / "results" / "fact_tracing_small.md").read_text()
    assert all(f"| {name} |" in table for name in rows)
    before = _written(tmp_path / "work")
    capsys.readouterr()
    assert command.main(words) == 0
    assert _written(tmp_path / "work") == before
    again = json.loads((tmp_path / "results" / "fact_tracing_small.json").read_text())["datasets"]["hard"]
    assert again == found
    assert "(4 were there)" in capsys.readouterr().err


@pytest.mark.skipif(bool(sources.missing()), reason=sources.missing())
def test_trex_without_its_files_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--small", "--datasets", "trex", "--folder", str(tmp_path)]) == 1
    assert "--trex_facts" in capsys.readouterr().err
