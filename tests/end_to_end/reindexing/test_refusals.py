"""reindex: what it refuses, and that it is never half done."""

import gzip
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import safetensors.torch

from pipelines import cli
from tests.end_to_end.reindexing.nights import CHANGES, assert_equals_a_full_build, lines, put, run
from tests.end_to_end.world import World, digests, rows, sentences
from trackstar.index import Index
from trackstar.write_lock import FILE as LOCK
from trackstar.write_lock import WriteLock

ROOT = Path(__file__).parents[3]


def test_shards_that_are_gone_are_dropped_only_within_reason(own: World, capfd) -> None:
    index = own.root / "index"
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        (own.corpus / name).unlink()
    assert run(own) == cli.EXIT_USAGE
    message = capfd.readouterr().err
    assert "3 of the 5 shards that the index holds are gone" in message
    assert "a.jsonl" in message
    assert "--max_dropped_fraction 1" in message
    assert run(own, corpus=str(own.root / "elsewhere" / "*")) == cli.EXIT_USAGE
    assert "no file matches" in capfd.readouterr().err
    assert Index.open(str(index)).versions() == [0]
    assert run(own, "--max_dropped_fraction", "0.6", model="/no/such/model") == 0
    assert {Path(shard).name for shard, _ in rows(index)} == {"d.txt", "e.parquet"}
    assert run(own, "--max_dropped_fraction", "1", corpus=str(own.root / "elsewhere" / "*")) == 0
    assert rows(index) == []
    assert len(Index.open(str(index)).snapshot(0).files) > 10


def test_the_second_of_two_stops(own: World, capfd) -> None:
    put(own, "f.jsonl", lines("f", sentences(5, 1)))
    with WriteLock(str(own.root / "index"), "build-index"):
        for second in (run, lambda world: world.build(world.root / "index")):
            assert second(own) == cli.EXIT_BUSY
            assert f"process {os.getpid()}" in capfd.readouterr().err
        assert run(own, "--dry_run", "--calibrate", "false") == 0  # reads alone
    assert run(own) == 0


def test_a_bad_shard_commits_nothing_and_loses_nothing(own: World, encoded: list[str], capfd) -> None:
    put(own, "f.jsonl", lines("f", sentences(20, 1)))
    put(own, "g.jsonl.gz", gzip.compress(lines("g", sentences(20, 2)))[:100])
    assert run(own) == cli.EXIT_FAILED
    message = capfd.readouterr().err
    assert "g.jsonl.gz" in message
    assert "nothing was committed" in message
    assert Index.open(str(own.root / "index")).versions() == [0]
    assert encoded == ["f.jsonl"] * len(encoded)
    encoded.clear()
    (own.corpus / "g.jsonl.gz").unlink()
    assert run(own, model="/no/such/model") == 0  # f was encoded already
    assert encoded == []
    put(own, "h.jsonl", b"not JSON\n" * 5)
    assert run(own) == cli.EXIT_FAILED
    assert "5 of 5 records (100.00%)" in capfd.readouterr().err
    assert Index.open(str(own.root / "index")).versions() == [0, 1]
    assert run(own, "--max_reject_fraction", "1") == 0


def test_another_spec_is_refused_with_the_difference(own: World, tmp_path: Path, capfd) -> None:
    put(own, "f.jsonl", lines("f", sentences(5, 1)))
    assert run(own, "--projection_seed", "7", "--damping", "0.1", "--block_rows", "8") == cli.EXIT_USAGE
    message = capfd.readouterr().err
    assert "block_rows: 6 here, 8 there" in message
    assert "projection_seed: 0 here, 7 there" in message
    assert "damping" not in message
    assert "--new_index" in message
    shutil.copytree(own.model, tmp_path / "model")
    weights = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"] += 0.01
    safetensors.torch.save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert run(own, model=str(tmp_path / "model")) == cli.EXIT_FAILED
    message = capfd.readouterr().err
    assert "the model is not the one that this index was made with" in message
    assert "model_fingerprint: the index has" in message
    assert "--new_index" in message
    assert Index.open(str(own.root / "index")).versions() == [0]


def test_dry_run_says_what_would_be_done(own: World, capfd) -> None:
    put(own, "f.jsonl", lines("f", sentences(20, 1)))
    (own.corpus / "d.txt").unlink()
    before = {path: path.stat().st_mtime_ns for path in own.root.rglob("*") if path.is_file()}
    assert run(own, "--dry_run", "--calibrate", "false", "--vacuum_days", "0") == 0
    shown = capfd.readouterr().err
    assert "1 new, 0 changed, 1 dropped, 4 unchanged shards" in shown
    assert re.search(r"to encode +\d work items, [\d.]+ kB", shown)
    assert re.search(r"to keep +\d+ files, 300 examples", shown)
    assert re.search(r"to drop +\d files, 50 examples", shown)
    assert "to delete        0 files of encodings" in shown
    assert before == {path: path.stat().st_mtime_ns for path in own.root.rglob("*") if path.is_file()}


def test_killed_in_the_middle_and_started_again(own: World, fitted: Path, tmp_path: Path) -> None:
    """SIGKILL to the whole run between two files; then the same command again."""
    for kind in ("jsonl", "parquet"):
        CHANGES[kind](own, sentences(60, 100))
    index = own.root / "index"
    before = len(digests(index))
    words = ["--index", str(index), "--corpus", own.pattern, "--model", str(own.model)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "reindex", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(digests(index)) < before + 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait(30)
    assert before + 2 <= len(digests(index))
    assert (index / LOCK).exists()
    assert run(own) == 0
    assert not (index / LOCK).exists()
    assert len(Index.open(str(index)).versions()) == 2
    assert_equals_a_full_build(own, fitted, tmp_path)
