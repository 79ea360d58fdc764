"""verify: damage is listed and the run fails; --repair restores the bytes, or says why it cannot."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from pipelines import cli
from tests.end_to_end.world import World, digests
from trackstar.index import Index


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A built index of the test's own."""
    shutil.copytree(built, tmp_path / "own")
    return tmp_path / "own"


def verify(index: Path, *more: str) -> int:
    return cli.main(["verify", "--index", str(index), *more])


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


def repair(world: World, index: Path, *more: str) -> int:
    return verify(index, "--repair", *world.flags(index)[:4], *more)


def test_damage_is_listed_and_repaired_to_the_same_bytes(
    world: World, built: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(own) == 0
    assert capsys.readouterr().out == ""
    files = sorted((own / "encodings").glob("*.parquet"))
    generator = random.Random(3)
    flip(files[0], generator.randrange(files[0].stat().st_size))
    os.truncate(files[1], files[1].stat().st_size // 2)
    files[2].unlink()
    times = {path: path.stat().st_mtime_ns for path in files[3:]}
    assert verify(own, "--check_bytes", "40000") == cli.EXIT_FAILED
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"encodings/{path.name}" for path in files[:3]]
    assert verify(own, "--json") == cli.EXIT_FAILED
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [finding["kind"] for finding in found] == ["changed", "truncated", "missing"]
    assert repair(world, own) == 0  # --item_bytes and --fingerprint are the index's
    assert digests(own) == digests(built)
    assert times == {path: path.stat().st_mtime_ns for path in files[3:]}
    assert verify(own) == 0
    assert not list((own / "failures").iterdir())
    assert Index.open(str(own)).versions() == [0]


def test_a_scan_names_the_remedy(world: World, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(iter(sorted((own / "encodings").glob("*.parquet"))))
    os.truncate(path, path.stat().st_size - 30)
    (tmp_path / "q.jsonl").write_text(json.dumps({"inputs_plaintext": "Rome is", "targets_plaintext": "in Italy"}))
    words = ["--index", str(own), "--model", str(world.model), "--queries", str(tmp_path / "q.jsonl")]
    assert cli.main(["score", *words, "--output", str(tmp_path / "r.jsonl"), "--task_hessian", "none"]) != 0
    error = capsys.readouterr().err
    assert path.name in error and "trackstar verify --repair" in error


def test_a_shard_that_has_changed_since(
    world: World, built: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its item cannot be encoded again, and the damaged file stays for whoever can read it; the others are repaired."""
    moved = World(tmp_path / "moved")
    moved.root.mkdir()
    (moved.root / "model").symlink_to(world.model)
    shutil.copytree(world.corpus, moved.corpus)
    index = tmp_path / "index"
    shutil.copytree(own, index, ignore=lambda folder, names: [name for name in names if name == "encodings"])
    assert moved.build(index) == 0
    files = {Path(file.shard).name: Path(file.uri) for file in Index.open(str(index)).snapshot().files}
    whole = digests(index)
    for name in ("a.jsonl", "d.txt"):
        flip(files[name], files[name].stat().st_size // 2)
    with (moved.corpus / "d.txt").open("a") as shard:
        shard.write("Rome is old.\n")
    assert repair(moved, index) == cli.EXIT_FAILED
    captured = capsys.readouterr()
    assert f"{files['a.jsonl'].name}: repaired" in captured.err
    assert f"{files['d.txt'].name}: cannot be encoded again: its shard is gone or has changed since" in captured.out
    assert "trackstar reindex" in captured.out
    assert files["d.txt"].exists()
    left = digests(index)
    assert {name for name in whole if whole[name] != left[name]} == {files["d.txt"].name}


def test_what_was_taken_down_stays_out_of_a_repaired_file(world: World, own: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("1-3\n")
    assert cli.main(["remove", "--index", str(own), "--ids", str(tmp_path / "ids")]) == 0
    assert world.build(own) == 0
    whole = digests(own)
    index = Index.open(str(own))
    [name] = {file.uri for file in index.snapshot().files} - {file.uri for file in index.snapshot(0).files}
    flip(Path(name), 1000)
    (tmp_path / "ids").write_text("1-4\n")  # not in the files yet: a repair gives the old bytes back all the same
    assert cli.main(["remove", "--index", str(own), "--ids", str(tmp_path / "ids")]) == 0
    assert repair(world, own) == 0
    assert digests(own) == whole


def test_settings_and_log_cannot_be_repaired_and_advice_is_given(
    world: World, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = own / "encodings" / "_delta_log" / f"{0:020d}.json"
    content = log.read_bytes()
    log.write_bytes(content.replace(b".parquet", b".parqueu", 1))
    block = next((own / "preconditioner").iterdir())
    flip(block, block.stat().st_size - 3)
    (own / "encodings" / "stray.parquet").write_bytes(b"x")
    assert repair(world, own) == cli.EXIT_FAILED
    captured = capsys.readouterr()
    for path in ("encodings/_delta_log", f"preconditioner/{block.name}", "encodings/stray.parquet"):
        assert path in captured.out
    for remedy in ("delete that folder and run `trackstar build-index`", "trackstar fit", "move them out"):
        assert remedy in captured.err
    # The advice holds: without the log, nothing is encoded again.
    flip(block, block.stat().st_size - 3)
    (own / "encodings" / "stray.parquet").unlink()
    shutil.rmtree(log.parent)
    before = {path: path.stat().st_mtime_ns for path in (own / "encodings").glob("*.parquet")}
    assert world.build(own) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (own / "encodings").glob("*.parquet")}
    assert verify(own) == 0
    (own / "spec.json").write_text((own / "spec.json").read_text().replace('"damping": 0.1', '"damping": 0.2'))
    capsys.readouterr()
    assert verify(own) == cli.EXIT_FAILED
    assert "spec.json: " in capsys.readouterr().out


def test_flags(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(own, "--repair") == cli.EXIT_USAGE
    assert "give --corpus and --model" in capsys.readouterr().err
    assert verify(own / "none") == cli.EXIT_USAGE
    assert "no index here" in capsys.readouterr().err
