"""tail-patch: the same bytes for any number of workers and after a broken run; clear words for bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines import cli
from tests.trackstar.evaluation.trained import CAPITALS, PROMPT, fact, train_on_facts
from trackstar.evaluation.tail_patch import TailPatch
from trackstar.models import load_model
from trackstar.results import Query, Ranking, Result, read_results, write_results

COUNTRIES = list(CAPITALS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `results.jsonl` of eight queries with ten proponents each, `corpus.jsonl` of these."""
    folder = tmp_path_factory.mktemp("tail_patch")
    torch.set_num_threads(1)
    train_on_facts(folder / "training").rename(folder / "model")
    documents = {f"d{i}": f"{fact(COUNTRIES[i % 8])} {fact(COUNTRIES[i // 8])}" for i in range(64)}
    results = []
    for number, country in enumerate(COUNTRIES):
        ids = [f"d{(9 * number + 5 * rank) % 64}" for rank in range(10)]
        ranking = Ranking([documents[i] for i in ids], ids, [1.0 - 0.1 * rank for rank in range(10)])
        results.append(Result(Query(country, PROMPT.format(country), CAPITALS[country]), "capitals", ranking))
    write_results(str(folder / "results.jsonl"), results)
    lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(lines))
    return folder


def words(root: Path, output: Path, *more: str) -> list[str]:
    paths = ["--results", str(root / "results.jsonl"), "--model", str(root / "model"), "--output", str(output)]
    return [*paths, *more]


def tail_patch(root: Path, output: Path, *more: str) -> int:
    return cli.main(["tail-patch", *words(root, output, *more)])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_with_a_rate_of_its_own_finding(root: Path, tmp_path: Path, capfd) -> None:
    assert tail_patch(root, tmp_path / "p.jsonl") == 0
    shown = capfd.readouterr().err
    rows = lines(tmp_path / "p.jsonl")
    assert len(rows) == 80
    rate = rows[0]["learning_rate"]
    for text in (
        "adamw steps, from the optimizer's state after 240 steps; saved with a learning rate of 0",
        "Learning rates, on 8 pairs",
        f"learning rate {rate:g}: the largest in the linear range",
        f"adamw step at learning rate {rate:g}",
        "  top 1 ",
        "  top 10 ",
        "80 pairs",
    ):
        assert text in shown
    assert not (tmp_path / "p.jsonl.work").exists()
    results = read_results(str(root / "results.jsonl"))
    assert [(row["example_id"], row["proponent_id"], row["rank"]) for row in rows] == [
        (result.query.example_id, i, rank) for result in results for rank, i in enumerate(result.proponents.ids, 1)
    ]
    patch = TailPatch(load_model(str(root / "model")), str(root / "model"))
    for row, result in list(zip(rows[::10], results, strict=True))[:3]:
        query = patch.query(result.query.prompt, result.query.target)
        measured = patch.measure(patch.document(result.proponents.texts[0])[0], [query], rate)
        assert row["after"] == pytest.approx(measured.after[0][0], abs=1e-6)
        assert row["change"] == pytest.approx(measured.after[0][0] - measured.before[0], abs=1e-6)
    # With this rate stated: the same by two workers, and where every bundle is replayed.
    stated = ["--learning_rate", repr(rate), "--linear_sample", "0"]
    for number, flag in enumerate(["--direct_num_workers=2", "--direct_runner_bundle_repeat=1"]):
        assert tail_patch(root, tmp_path / f"{number}.jsonl", *stated, flag) == 0
        assert (tmp_path / f"{number}.jsonl").read_bytes() == (tmp_path / "p.jsonl").read_bytes()


def test_killed_in_the_middle_and_started_again(root: Path, tmp_path: Path) -> None:
    """SIGKILL when some pairs are measured and others are not; then the same command once more."""
    flags = ["--learning_rate", "1e-4", "--linear_sample", "0"]
    assert tail_patch(root, tmp_path / "whole.jsonl", *flags) == 0
    output, work = tmp_path / "p.jsonl", tmp_path / "p.jsonl.work"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.tail_patch", *words(root, output, *flags)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    deadline = time.monotonic() + 120
    try:
        while not work.exists() or len(list(work.glob("*.json"))) < 4:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    assert not output.exists()
    kept = {path: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert 4 <= len(kept) < 40
    # What an earlier run found is taken as it is: a lie in one of the files would show.
    shutil.copytree(work, tmp_path / "lie.jsonl.work")
    assert tail_patch(root, output, *flags) == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not work.exists()
    for path in (tmp_path / "lie.jsonl.work").glob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, list):
            content[0][0]["after"] = [0.123]
            path.write_text(json.dumps(content))
    shutil.copytree(tmp_path / "lie.jsonl.work", tmp_path / "lies")
    assert tail_patch(root, tmp_path / "lie.jsonl", *flags) == 0
    assert any(row["after"] == 0.123 for row in lines(tmp_path / "lie.jsonl"))
    # At another rate nothing of it is taken.
    shutil.copytree(tmp_path / "lies", tmp_path / "other.jsonl.work")
    assert tail_patch(root, tmp_path / "other.jsonl", "--learning_rate", "2e-4", "--linear_sample", "0") == 0
    assert not any(row["after"] == 0.123 for row in lines(tmp_path / "other.jsonl"))


def test_texts_from_the_corpus(root: Path, tmp_path: Path, capfd) -> None:
    flags = ["--learning_rate", "1e-4", "--linear_sample", "0", "--top_k", "3"]
    assert tail_patch(root, tmp_path / "with.jsonl", *flags) == 0
    results = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    results[0]["proponents"][0] = results[1]["proponents"][1] = ""  # one of the paper's files may lack some
    for result in results[2:]:
        result["proponents"] = []
    results[3]["proponent_ids"][1] = "nowhere"
    own = tmp_path / "own"
    own.mkdir()
    (own / "model").symlink_to(root / "model")
    (own / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    assert tail_patch(own, tmp_path / "p.jsonl", *flags) == cli.EXIT_USAGE
    assert "proponents have no text in the results" in capfd.readouterr().err
    corpus = ["--corpus", str(root / "corpus.jsonl")]
    assert tail_patch(own, tmp_path / "p.jsonl", *flags, *corpus) == 0
    shown = capfd.readouterr().err
    assert "proponents without text are in the corpus" in shown and "those not measured are in" in shown
    [reject] = lines(tmp_path / "p.rejects.jsonl")
    assert (reject["proponent_id"], reject["rank"]) == ("nowhere", 2)
    expected = {(r["example_id"], r["rank"]): r["change"] for r in lines(tmp_path / "with.jsonl")}
    found = lines(tmp_path / "p.jsonl")
    assert len(found) == 23
    for row in found:
        assert row["change"] == pytest.approx(expected[row["example_id"], row["rank"]], abs=1e-6)


def test_dry_run_counts_and_writes_nothing(root: Path, tmp_path: Path, capfd) -> None:
    assert tail_patch(root, tmp_path / "p.jsonl", "--dry_run", "--top_k", "2") == 0
    shown = capfd.readouterr().err
    ids = {i for result in read_results(str(root / "results.jsonl")) for i in result.proponents.ids[:2]}
    for text in (
        "queries          8 (0 without",
        "pairs            16",
        f"proponents       {len(ids)} distinct (0 to",
    ):
        assert text in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--learning_rate", "0"], 2, "'0' is neither auto nor saved nor a number above zero"),
        (["--learning_rate", "fast"], 2, "'fast' is neither auto nor saved nor a number above zero"),
        (["--linear_sample", "0"], 2, "state --learning_rate, or give --linear_sample pairs"),
        (["--step", "adagrad"], 2, "invalid choice: 'adagrad'"),
        (["--optimizer_state", "nowhere"], 2, "nowhere: no such optimizer state"),
        (["--max_length", "100000"], 1, "above the model's context"),
        (["--step", "adafactor"], 1, "this is a state of adamw; give --step adamw"),
        (["--top_k", "0"], 2, "'0' is not a whole number above zero"),
        (["--results", "nowhere.jsonl"], 2, "nowhere.jsonl: no such file"),
    ],
)
def test_bad_flags(root: Path, tmp_path: Path, capfd, flags: list[str], code: int, message: str) -> None:
    assert tail_patch(root, tmp_path / "p.jsonl", *flags) == code
    shown = capfd.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "p.jsonl").exists()


def test_no_optimizer_state(root: Path, tmp_path: Path, capfd) -> None:
    own = tmp_path / "own"
    shutil.copytree(root / "model", own / "model", ignore=shutil.ignore_patterns("optimizer.pt"))
    shutil.copy(root / "results.jsonl", own / "results.jsonl")
    assert tail_patch(own, tmp_path / "p.jsonl") == cli.EXIT_FAILED
    assert "needs the optimizer's state and none is given" in capfd.readouterr().err
    assert tail_patch(own, tmp_path / "p.jsonl", "--step", "sgd", "--top_k", "1") == 0
    shown = capfd.readouterr().err
    assert "sgd steps, with no optimizer state" in shown and "momentum" not in shown
    assert "drift" not in lines(tmp_path / "p.jsonl")[0]
    state = str(root / "model")
    assert (
        tail_patch(own, tmp_path / "p.jsonl", "--optimizer_state", state, "--learning_rate", "0.5", "--top_k", "1") == 0
    )
    assert "warning: a learning rate of 0.5 is outside the linear range" in capfd.readouterr().err
