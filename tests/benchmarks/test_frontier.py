"""The benchmark of influence per byte: its rows, and the whole of it at its small size."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.fact_tracing import sources
from benchmarks.fact_tracing.settings import SIZES as FACTS
from benchmarks.frontier import __main__ as command
from benchmarks.frontier import reuse
from benchmarks.frontier.measured import REFERENCES, own_reference, spaced
from benchmarks.frontier.rows import (
    KEYS,
    PAPER,
    Choice,
    file_name,
    model_rows,
    paper_name,
    papers,
    patched,
    principal,
    rows,
    unique,
)
from benchmarks.frontier.settings import DAMPING, GAUSSIAN, KB, SIZES, STORAGES, WHITENED, Size, questions
from tests.encoders import make_encoder
from tests.tiny_models import tiny_model
from trackstar.errors import TrackStarError
from trackstar.models import prepare_model
from trackstar.small_models import checkpoint_identity
from trackstar.tuning.candidates import Family

LOADED = prepare_model(tiny_model("llama"))
TEMPLATE = dataclasses.replace(
    make_encoder(LOADED, layout="weights").spec, projection="whitened", whitening_damping=DAMPING
)


def test_rows_ask_the_questions_within_their_bytes() -> None:
    size = SIZES["standard"]
    found = rows(LOADED, TEMPLATE, size)
    assert all(len({file_name(c) for c in row.candidates}) == len(row.candidates) for row in found)
    assert max(row.num_bytes for row in found) <= 128 * KB
    stored = {(row.family.projection, row.family.storage) for row in found}
    assert stored >= {(p, s) for p in ("gaussian", "whitened") for s in ("bfloat16", "int8", "sign")}
    assert {row.family.preconditioner for row in found} == {"none", "train", "mixed"}
    for row in found:
        assert len(row.candidates) == len({c.spec.projection_seed for c in row.candidates})
        if row.family.preconditioner != "none":
            assert row.candidates[0].spec.block_dimension <= size.r_dimension
    small = [row for row in found if row.num_bytes <= size.one_seed_above * KB and row.family.layout == "weights"]
    assert {len(row.candidates) for row in small} <= {1, 3}
    assert {row.family.attributed for row in found} == {"all", "outputs", "attention", "mlp"}
    chosen = principal(LOADED, TEMPLATE, size)
    assert {row.family.attributed for row in chosen.values()} == {"all", "outputs", "attention", "mlp"}
    assert chosen[paper_name(size)].family.has_papers_layout
    some = patched(LOADED, TEMPLATE, size)
    assert paper_name(size) in some
    assert some.items() < chosen.items()
    assert unique(model_rows(LOADED, TEMPLATE, size))


def test_rows_are_chosen() -> None:
    size = SIZES["standard"]
    everything = rows(LOADED, TEMPLATE, size)
    assert rows(LOADED, TEMPLATE, size, Choice(KEYS, STORAGES, None, 10**9, 3)) == everything
    choice = Choice(("whitened", "paper"), ("sign", "bfloat16"), (1, 2, 128), 20_000, 1)
    found = rows(LOADED, TEMPLATE, size, choice)
    title = next(question.title for question in questions() if question.key == "whitened")
    assert {(row.question, row.family.storage) for row in found} == {
        (title, "sign"),
        (title, "bfloat16"),
        (PAPER.title, "bfloat16"),
    }
    for row in found:
        assert len(row.candidates) == 1
        assert row.candidates[0].spec.dimension <= 20_000
        assert row.num_bytes <= (2 * KB if row.question == title and row.family.storage == "bfloat16" else 128 * KB)
    chosen = {file_name(c) for c in unique(found)}
    assert chosen < {file_name(c) for c in unique(everything)}
    expected = {
        file_name(row.candidates[0])
        for row in everything
        if row.question in (title, PAPER.title)
        and row.family.storage in ("sign", "bfloat16")
        and row.candidates[0].spec.dimension <= 20_000
    }
    assert chosen <= expected
    paper = papers(everything)
    assert paper is not None
    assert paper.num_bytes == max(row.num_bytes for row in everything if row.question == PAPER.title)
    assert papers(rows(LOADED, TEMPLATE, size, Choice(("whitened",)))) is None


def test_file_names_say_everything_that_differs() -> None:
    named = {}
    for row in rows(LOADED, TEMPLATE, SIZES["standard"]):
        for candidate in row.candidates:
            parts = dataclasses.asdict(candidate.family), candidate.spec
            assert named.setdefault(file_name(candidate), parts) == parts


def test_what_a_family_tends_to() -> None:
    assert own_reference(WHITENED) == "whitened, block"
    assert own_reference(dataclasses.replace(GAUSSIAN, storage="sign")) == "V, block"
    assert own_reference(Family(moments="exact", layout="blocks", normalisation="vector")) == "V, vector"
    for other in (
        Family(moments="exact", layout="blocks"),
        dataclasses.replace(WHITENED, moments="factored"),
        dataclasses.replace(WHITENED, exponents=(-0.5, 0.0)),
        dataclasses.replace(WHITENED, preconditioner="train"),
    ):
        assert own_reference(other) is None
    assert {own_reference(family) for family in (WHITENED, GAUSSIAN)} <= {", ".join(r) for r in REFERENCES}
    assert spaced(10, 3) == [0, 3, 6]
    assert spaced(3, 10) == spaced(3, None) == [0, 1, 2]


def _written(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and "seconds" not in path.name)
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_reported_command_names_no_folder_of_this_machine() -> None:
    words = ["--small", "--folder", "a", "--reuse=b", "--results", "c", "--rows", "paper"]
    assert command._without_folders(words) == ["--small", "--rows", "paper"]


def test_only_the_model_that_is_wanted_is_reused(tmp_path: Path) -> None:
    settings = FACTS["small"].model
    with pytest.raises(TrackStarError, match="no model is here"):
        reuse.check_model(tmp_path, ["a b"], settings)
    (tmp_path / "training.json").write_text(json.dumps({"identity": checkpoint_identity(["a b"], settings)}))
    reuse.check_model(tmp_path, ["a b"], settings)
    for texts, other in ((["a c"], settings), (["a b"], dataclasses.replace(settings, seed=1))):
        with pytest.raises(TrackStarError, match="another corpus or training"):
            reuse.check_model(tmp_path, texts, other)
    with pytest.raises(TrackStarError, match="no trained model here"):
        reuse.copy_work(tmp_path, tmp_path / "ours", ["easy"], print)


def _less(size: Size) -> Size:
    """The same rows on fewer documents and models that are trained less."""
    facts = size.facts
    truth = dataclasses.replace(
        facts.truth, facts=30, passages=5, queries=8, model=dataclasses.replace(facts.truth.model, steps=20)
    )
    model = dataclasses.replace(facts.model, steps=40)
    smaller = dataclasses.replace(facts, facts=40, passages=20, model=model, patch_queries=6, truth=truth)
    models = {name: dataclasses.replace(settings, steps=10) for name, settings in size.models.items()}
    return dataclasses.replace(size, facts=smaller, models=models, exact_queries=6)


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(sources.missing()), reason=sources.missing())
def test_the_small_size_runs_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", _less(SIZES["small"]))
    words = [
        "--small",
        "--corpora",
        "easy",
        "--folder",
        str(tmp_path / "work"),
        "--results",
        str(tmp_path / "results"),
    ]
    assert command.main(words) == 0
    found = json.loads((tmp_path / "results" / "frontier_small.json").read_text())["parts"]["easy"]
    for row in found["rows"]:
        assert row["bytes"] <= 0.5 * KB or row["layout"] == "blocks"
        assert 0 <= row["metrics"]["MRR"]["mean"] <= 1
        assert set(row["agreement"]) == {", ".join(reference) for reference in REFERENCES}
    own = {
        (row["name"], row["bytes"]): row["agreement"][row["own_reference"]]["spearman"]["mean"]
        for row in found["rows"]
        if row["own_reference"]
    }
    by_size = [[value for (n, _), value in sorted(own.items()) if n == name] for name in {n for n, _ in own}]
    grows = [values[-1] > values[0] for values in by_size if len(values) > 1]
    assert len(grows) > 4
    assert sum(grows) > 0.7 * len(grows)
    assert set(found["lds"]) > set(found["tail_patch"]) - {"gold"} > {"BM25", "random", paper_name(SIZES["small"])}
    for name, of_row in found["lds"].items():
        assert -1 <= of_row["one model"]["lds"]["mean"] <= 1
        assert (of_row["one model"]["difference"] is None) == (name == paper_name(SIZES["small"]))
        assert ("averaged" in of_row) == (name not in ("BM25", "random"))
    text = (tmp_path / "results" / "frontier_small.md").read_text()
    assert all(f"| {row['name']} | {row['bytes']:,} |" in text for row in found["rows"])
    assert (tmp_path / "results" / "frontier_small.png").read_bytes().startswith(b"\x89PNG")
    before = _written(tmp_path / "work")
    assert command.main(words) == 0
    assert _written(tmp_path / "work") == before
    again = json.loads((tmp_path / "results" / "frontier_small.json").read_text())["parts"]["easy"]
    assert again == found
    _chosen_rows_of_copied_models(tmp_path, found)
    assert _written(tmp_path / "work") == before
    assert command.main([*words, "--models", "tiny"]) == 0
    models = json.loads((tmp_path / "results" / "frontier_models_small.json").read_text())["parts"]
    assert list(models) == ["easy, tiny"]


def _chosen_rows_of_copied_models(folder: Path, found: dict) -> None:
    """A few rows in another folder, with the first one's models and retrainings: the same figures, and nothing is trained."""
    choice = ["--rows", "whitened", "paper", "--storages", "sign", "bfloat16", "--kilobytes", "0.5", "--seeds", "1"]
    where = ["--folder", str(folder / "other"), "--results", str(folder / "chosen"), "--reuse", str(folder / "work")]
    assert command.main(["--small", "--corpora", "easy", *choice, *where, "--no_exact", "--no_tail_patch"]) == 0
    part = json.loads((folder / "chosen" / "frontier_small.json").read_text())["parts"]["easy"]
    assert part["tail_patch"] is None
    assert part["lds"] == found["lds"]
    rows_of = {(row["question"], row["name"], row["bytes"]): row for row in found["rows"]}
    assert {row["storage"] for row in part["rows"]} == {"sign", "bfloat16"}
    for row in part["rows"]:
        same = rows_of[row["question"], row["name"], row["bytes"]]
        assert row["seeds"] == same["seeds"] == 1
        assert row["metrics"] == same["metrics"]
        assert row["less_the_papers"] == same["less_the_papers"]
        assert row["agreement"] == {}
    for name in ("easy", "easy_truth"):
        for file in ("model.safetensors", "optimizer.pt"):
            ours, theirs = (folder / work / "small" / name / "model" / file for work in ("other", "work"))
            assert ours.read_bytes() == theirs.read_bytes()
    kept = [{f.name for f in (folder / w / "small" / "easy_truth" / "retrained").iterdir()} for w in ("other", "work")]
    assert kept[0] == kept[1]


def test_unknown_models_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    if sources.missing():
        pytest.skip(sources.missing())
    assert command.main(["--small", "--models", "70B"]) == 2
    assert "70B" in capsys.readouterr().err
