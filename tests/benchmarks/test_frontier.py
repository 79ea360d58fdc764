"""The benchmark of influence per byte: its rows, and the whole of it at its small size."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.fact_tracing import sources
from benchmarks.frontier import __main__ as command
from benchmarks.frontier.measured import REFERENCES, own_reference, spaced
from benchmarks.frontier.rows import file_name, model_rows, principal, rows, unique
from benchmarks.frontier.settings import GAUSSIAN, KB, SIZES, WHITENED
from tests.encoders import make_encoder
from tests.tiny_models import tiny_model
from trackstar.models import prepare_model
from trackstar.tuning.candidates import Family

LOADED = prepare_model(tiny_model("llama"))
TEMPLATE = dataclasses.replace(
    make_encoder(LOADED, layout="weights").spec, projection="whitened", whitening_damping=0.1
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
    chosen = principal(LOADED, TEMPLATE, size)
    assert len(chosen) == 6
    assert unique(model_rows(LOADED, TEMPLATE, size))


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


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(sources.missing()), reason=sources.missing())
def test_the_small_size_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    words = [
        "--small",
        "--datasets",
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
    assert set(found["lds"]) == set(found["tail_patch"]) - {"gold", "BM25", "random"}
    text = (tmp_path / "results" / "frontier_small.md").read_text()
    assert all(f"| {row['name']} | {row['bytes']:,} |" in text for row in found["rows"])
    assert (tmp_path / "results" / "frontier_small.png").read_bytes().startswith(b"\x89PNG")
    before = _written(tmp_path / "work")
    assert command.main(words) == 0
    assert _written(tmp_path / "work") == before
    again = json.loads((tmp_path / "results" / "frontier_small.json").read_text())["parts"]["easy"]
    assert again == found
    assert command.main([*words, "--models", "tiny"]) == 0
    models = json.loads((tmp_path / "results" / "frontier_models_small.json").read_text())["parts"]
    assert list(models) == ["easy, tiny"]


def test_unknown_models_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    if sources.missing():
        pytest.skip(sources.missing())
    assert command.main(["--small", "--models", "70B"]) == 2
    assert "70B" in capsys.readouterr().err
