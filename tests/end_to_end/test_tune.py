"""tune: from a trained model, its corpus and queries to the flags of fit for a budget of bytes."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli, flag_types
from pipelines import tune as tune_command
from tests.end_to_end.world import World, sentences
from tests.trackstar.evaluation.trained import CAPITALS, PROMPT, train_on_facts
from trackstar.index import Index
from trackstar.tuning import run
from trackstar.tuning.candidates import stored_bytes
from trackstar.tuning.materials import Materials

BUDGET = 96


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained checkpoint, its corpus and queries; read only."""
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = train_on_facts(folder / "training", steps=60)
    checkpoint.rename(folder / "model")
    facts = [f"{PROMPT.format(country)} {capital}." for country, capital in CAPITALS.items()]
    texts = [*facts, *sentences(132, 3)]
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    queries = [
        {"inputs_plaintext": PROMPT.format(country), "targets_plaintext": capital}
        for country, capital in CAPITALS.items()
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    return folder


def words(folder: Path, output: Path, *more: str) -> list[str]:
    given = {
        "--corpus": str(folder / "corpus.jsonl"),
        "--model": str(folder / "model"),
        "--queries": str(folder / "queries.jsonl"),
        "--output": str(output),
        "--budget": str(BUDGET),
        "--sample_size": "40",
        "--query_sample": "5",
        "--threads": "1",
    }
    return ["tune", *(word for pair in given.items() for word in pair), *more]


def figures(output: Path) -> dict[str, Any]:
    return json.loads((output / "tune.json").read_text())


@pytest.mark.parametrize("exact", ["corrected", "whitened"])
def test_the_recommended_fit_makes_an_index_within_the_budget(
    trained: Path, tmp_path: Path, exact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--optimizer_state", str(trained / "model"), "--exact", exact, "--exact_normalisation", "block"]
    assert cli.main(words(trained, tmp_path / "out", "--sizes", "48", *more)) == 0
    shown = capsys.readouterr().out
    found = figures(tmp_path / "out")
    assert (found["documents"], found["num_queries"], found["fitted_on"], found["moments"]) == (40, 5, 100, "exact")
    assert {row["bytes"] <= BUDGET for row in found["rows"]} == {True}
    assert {row["storage"] for row in found["rows"]} >= {"int8", "sign"}
    best = found["recommended"]
    assert best["bytes"] <= BUDGET
    quality = {row["name"]: row["agreement"]["spearman"]["mean"] for row in found["rows"] if row["bytes"] > 48}
    assert best["agreement"]["spearman"]["mean"] >= max(quality.values()) - 0.005
    assert all(row["examples_per_second"] > 0 for row in found["rows"])
    [marked] = [line for line in shown.splitlines() if "│ > │" in line]
    assert f" {best['bytes']:,} │" in marked
    assert best["name"].split(",")[0] in marked  # in 80 columns, too
    # Whitened gradients are another metric, which whitened encodings tell of.
    projections = {
        kind: max(r["agreement"]["spearman"]["mean"] for r in found["rows"] if r["projection"] == kind)
        for kind in ("gaussian", "whitened")
    }
    assert (projections["whitened"] > projections["gaussian"]) == (exact == "whitened")

    command = shown.strip().splitlines()[-1]
    assert (tmp_path / "out" / "tune.md").read_text().count(command) == 1
    assert (tmp_path / "out" / "tune.png").read_bytes().startswith(b"\x89PNG")
    fit = [str(tmp_path / "index") if word == "INDEX" else word for word in shlex.split(command)]
    assert fit[:2] == ["trackstar", "fit"]
    assert cli.main([*fit[1:], "--sample_size", "60", "--sample_tasks", "1"]) == 0
    spec = Index.open(str(tmp_path / "index")).spec
    assert stored_bytes(spec) == best["bytes"]
    for field in ("projection", "layout", "normalisation", "storage", "moments", "block_rows", "block_columns"):
        assert getattr(spec, field) == best[field]


def test_more_bytes_agree_better(trained: Path, tmp_path: Path) -> None:
    """Without second moments; the exact scores are what wide encodings tend to."""
    more = ["--moments", "none", "--sizes", "2", "40000"]
    assert cli.main(words(trained, tmp_path / "out", *more)) == 0
    rows = [
        row
        for row in figures(tmp_path / "out")["rows"]
        if (row["projection"], row["normalisation"], row["preconditioner"], row["storage"])
        == ("gaussian", "vector", "none", "int8")
    ]
    means = [row["agreement"]["spearman"]["mean"] for row in sorted(rows, key=lambda row: row["bytes"])]
    assert len(means) == 2  # not in two bytes
    assert means[0] < means[-1]
    assert means[-1] > 0.9
    assert any("not in 2 bytes" in line for line in figures(tmp_path / "out")["left_out"])


def test_the_same_again_gives_the_same_figures(trained: Path, tmp_path: Path) -> None:
    kept = []
    for name in ("one", "other"):
        assert cli.main(words(trained, tmp_path / name, "--moments", "none", "--sizes", "48", "--memory", "300KB")) == 0
        found = figures(tmp_path / name)
        for row in (*found["rows"], found["recommended"]):
            del row["examples_per_second"]
        kept.append({row["name"] + str(row["bytes"]): row for row in found["rows"]})
    assert kept[0] == kept[1]


def test_started_again_it_measures_only_what_is_new(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--optimizer_state", str(trained / "model"), "--sizes"]
    output = tmp_path / "out"
    assert cli.main(words(trained, output, *more, "48")) == 0
    first = (output / "tune.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Materials, "__init__", _not_again)  # nothing can be encoded
        assert cli.main(words(trained, output, *more, "48")) == 0
        assert (output / "tune.json").read_text() == first
        patch.setattr(run, "exact_scores", _not_again)
        with pytest.raises(AssertionError, match="not again"):
            _tuned_here(words(trained, output, *more, "48", "--sample_seed", "1"))
    with monkeypatch.context() as patch:
        patch.setattr(run, "exact_scores", _not_again)
        assert cli.main(words(trained, output, *more, "24", "48")) == 0
    known = {(row["name"], row["bytes"]): row for row in json.loads(first)["rows"]}
    rows = {(row["name"], row["bytes"]): row for row in figures(output)["rows"]}
    assert known.items() <= rows.items()
    assert min(row["bytes"] for row in rows.values()) <= 24
    assert (output / "tune.md").exists()


def _not_again(*_: object, **__: object) -> None:
    raise AssertionError("not again")


def _tuned_here(given: list[str]) -> None:
    """The command without its catching of errors."""
    parser = cli.parser("tune")
    tune_command.run(parser.parse_args(given[1:]), [])


def test_a_dry_run_writes_nothing(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(trained, tmp_path / "out", "--dry_run")) == 0
    shown = capsys.readouterr()
    assert "sign" in shown.out
    assert "5 queries of 8" in shown.err
    assert "Nothing was run or written" in shown.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--budget", "2 pounds"], "not a number of bytes"),
        (["--budget", "0"], "not a number of bytes"),
        (["--sample_size", "140"], "140 usable ones were found"),
        (["--sample_size", "100", "--fit_size", "50"], "140 usable ones were found"),
        (["--sample_size", "10"], "raise --sample_size"),
        (["--memory", "1KB"], "raise --memory"),
        (["--moments", "none", "--optimizer_state", "x"], "contradicts"),
        (["--exact", "true"], "invalid choice"),
        (["--direct_num_workers", "2"], "takes no flags of Beam"),
    ],
)
def test_what_cannot_be_done_is_said(
    trained: Path, tmp_path: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(trained, tmp_path / "out", *change)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no queries in this file"),
        ('{"inputs_plaintext": "a", "targets_plaintext": " "}', "target"),
        ('{"inputs_plaintext": "", "targets_plaintext": "a"}', "give a prompt"),
    ],
)
def test_queries_that_cannot_be_asked(
    world: World, tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text(line + "\n")
    given = ["tune", "--corpus", world.pattern, "--model", str(world.model), "--queries", str(queries)]
    assert cli.main([*given, "--budget", "1KB", "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [("800", 800), ("2KB", 2048), ("1.5 MB", 1_572_864), ("1gib", 1 << 30), ("7b", 7)]
)
def test_numbers_of_bytes(text: str, expected: int) -> None:
    assert flag_types.num_bytes(text) == expected
