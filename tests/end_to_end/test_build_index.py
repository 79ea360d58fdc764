"""build-index: the same bytes whatever happens on the way, and no row lost or doubled."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import cli
from tests.end_to_end.world import World, digests, rows
from trackstar.index import Index


def test_every_document_of_every_format_is_a_row(built: Path) -> None:
    found = rows(built)
    assert len(found) == len(set(found)) == 350
    by_shard = {Path(shard).name: sum(1 for s, _ in found if s == shard) for shard, _ in found}
    assert by_shard == {"a.jsonl": 120, "b.jsonl.gz": 60, "c.jsonl.zst": 40, "d.txt": 50, "e.parquet": 80}
    assert len(digests(built)) > 10  # several items a shard


def test_a_second_run_changes_nothing(world: World, built: Path, tmp_path: Path, caplog) -> None:
    index = tmp_path / "index"
    shutil.copytree(built, index)
    before = {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.is_file()}
    assert world.build(index) == 0
    assert before == {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.is_file()}
    assert Index.open(str(index)).versions() == [0]


def test_replayed_bundles_give_the_same_bytes(world: World, built: Path, index: Path) -> None:
    assert world.build(index, "--direct_runner_bundle_repeat=1") == 0
    assert digests(index) == digests(built)
    assert rows(index) == rows(built)


def test_two_workers_give_the_same_bytes(world: World, built: Path, index: Path) -> None:
    assert world.build(index, "--direct_num_workers=2") == 0
    assert digests(index) == digests(built)
    assert rows(index) == rows(built)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_and_started_again(world: World, built: Path, index: Path, workers: int) -> None:
    """SIGKILL to the whole run when some files are there and others are not; then the same command once more."""
    command = [sys.executable, "-m", "pipelines", "build-index", *world.flags(index), f"--direct_num_workers={workers}"]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    deadline = time.monotonic() + 120
    try:
        while len(digests(index)) < 3:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    time.sleep(1.0)  # workers that outlive their launcher would still be writing
    left = digests(index)
    assert 3 <= len(left) < len(digests(built))
    time.sleep(0.5)
    assert digests(index) == left
    assert Index.open(str(index)).versions() == []
    assert world.build(index) == 0
    assert digests(index) == digests(built)
    assert rows(index) == rows(built)


def test_dry_run_counts_and_writes_nothing(world: World, index: Path, capfd) -> None:
    before = sorted(index.rglob("*"))
    assert world.build(index, "--dry_run") == 0
    text = capfd.readouterr().err
    [examples] = re.findall(r"examples +about ([\d,]+)", text)
    assert 300 < int(examples.replace(",", "")) < 400  # from 8 of 14 items, by bytes
    for word in ("shards           5", "work items", "tokens", "to be written", "FLOPs", "time"):
        assert word in text
    assert sorted(index.rglob("*")) == before


def test_inspect_tells_what_is_there(built: Path, fitted: Path, capsys) -> None:
    assert cli.main(["inspect", str(built), "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert contents["snapshot"]["examples"] == contents["snapshot"]["records"] == 350
    assert contents["versions"] == [0]
    assert cli.main(["inspect", str(built)]) == 0
    assert "examples             350" in capsys.readouterr().out
    assert cli.main(["inspect", str(fitted)]) == 0
    assert "none: run `trackstar build-index`" in capsys.readouterr().out


def test_another_spec_is_refused_with_the_difference(world: World, fitted: Path, capfd) -> None:
    assert world.fit(fitted, "--damping", "0.3") == cli.EXIT_USAGE
    assert "damping: 0.1 here, 0.3 there" in capfd.readouterr().err


def test_fitting_again_finds_the_work_done(world: World, fitted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in fitted.rglob("*") if path.is_file()}
    assert world.fit(fitted) == 0
    assert before == {path: path.stat().st_mtime_ns for path in fitted.rglob("*") if path.is_file()}
