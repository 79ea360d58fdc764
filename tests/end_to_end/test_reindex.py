"""reindex: equal to a full build of the corpus as it is now, at the cost of what changed, and never half done."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import zstandard

from pipelines import build_index, cli, reindex
from tests.end_to_end.world import MODIFIED, World, digests, make_corpus, rows, sentences
from trackstar import indexing, storage
from trackstar.delta_log import DeltaLog
from trackstar.index import Index
from trackstar.write_lock import FILE as LOCK
from trackstar.write_lock import WriteLock

pytest_plugins = ["tests.gcs"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(world: World, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with an index built from its own corpus, at `root/index`; read only."""
    root = tmp_path_factory.mktemp("home")
    (root / "model").symlink_to(world.model)
    make_corpus(root / "corpus")
    shutil.copytree(fitted, root / "index")
    home = World(root)
    assert home.build(root / "index") == 0
    return home


@pytest.fixture
def own(home: World) -> Iterator[World]:
    """The same, to be changed: it is put back afterwards, because shards are known by their paths."""
    kept = home.root / "kept"
    for name in ("corpus", "index"):
        shutil.copytree(home.root / name, kept / name)
    yield home
    for name in ("corpus", "index"):
        shutil.rmtree(home.root / name)
        shutil.copytree(kept / name, home.root / name)
    shutil.rmtree(kept)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose work items were encoded, one for each; runs in this process only."""
    shards: list[str] = []
    original = indexing.encode_item

    def counting(encoder, index, item, *args):
        file, existed = original(encoder, index, item, *args)
        shards.extend([] if existed else [Path(item.shard).name])
        return file, existed

    monkeypatch.setattr(build_index, "encode_item", counting)
    return shards


def run(
    world: World, *more: str, index: Path | None = None, corpus: str | None = None, model: str | None = None
) -> int:
    words = ["--index", str(index or world.root / "index"), "--corpus", corpus or world.pattern]
    return cli.main(["reindex", *words, "--model", model or str(world.model), *more])


def lines(name: str, texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": f"{name}-{i}", "text": text}) + "\n" for i, text in enumerate(texts)).encode()


def put(world: World, name: str, content: bytes, seconds: int = 1) -> None:
    """Writes a shard, `seconds` after those that the world began with."""
    path = world.corpus / name
    path.write_bytes(content)
    os.utime(path, ns=((MODIFIED + seconds) * 10**9, (MODIFIED + seconds) * 10**9))


def put_parquet(world: World, name: str, texts: list[str], group: int) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"id": [f"{name}-{i}" for i in range(len(texts))], "text": texts}), sink, row_group_size=group
    )
    put(world, name, sink.getvalue().to_pybytes())


CHANGES = {
    "jsonl": lambda world, texts: put(world, "a.jsonl", lines("a", texts)),
    "jsonl.gz": lambda world, texts: put(world, "b.jsonl.gz", gzip.compress(lines("b", texts), mtime=0)),
    "jsonl.zst": lambda world, texts: put(world, "c.jsonl.zst", zstandard.compress(lines("c", texts))),
    "txt": lambda world, texts: put(world, "d.txt", ("\n".join(texts) + "\n").encode()),
    "parquet": lambda world, texts: put_parquet(world, "e.parquet", texts, 20),
}
ADDITIONS = {
    "jsonl": lambda world, texts: put(world, "f.jsonl", lines("f", texts)),
    "parquet": lambda world, texts: put_parquet(world, "g.parquet", texts, 20),
    "txt": lambda world, texts: put(world, "h.txt.gz", gzip.compress(("\n".join(texts) + "\n").encode(), mtime=0)),
}


def assert_equals_a_full_build(world: World, fitted: Path, tmp_path: Path) -> None:
    """Rows and bytes of the index's last snapshot against those of an index built now from nothing."""
    fresh = tmp_path / "fresh"
    shutil.copytree(fitted, fresh)
    assert world.build(fresh) == 0
    index, expected = world.root / "index", digests(fresh)
    assert rows(index) == rows(fresh)
    found = digests(index)
    names = [f"{file.key}.parquet" for file in Index.open(str(index)).snapshot().files]
    assert {name: found[name] for name in names} == expected


def test_every_format_changed_added_and_dropped(own: World, fitted: Path, tmp_path: Path, encoded: list[str]) -> None:
    """Three nights, against a build from nothing after each."""
    index = own.root / "index"
    first = rows(index)
    for change in CHANGES.values():
        change(own, sentences(30, 100))
    assert run(own) == 0
    assert set(encoded) == {path.name for path in own.corpus.iterdir()}
    for number, addition in enumerate(ADDITIONS.values()):
        addition(own, sentences(25, 200 + number))
    encoded.clear()
    assert run(own) == 0
    assert set(encoded) == {"f.jsonl", "g.parquet", "h.txt.gz"}
    encoded.clear()
    for name in ("b.jsonl.gz", "e.parquet", "f.jsonl"):
        (own.corpus / name).unlink()
    CHANGES["txt"](own, sentences(31, 300))
    assert run(own) == 0
    assert set(encoded) == {"d.txt"}
    assert Index.open(str(index)).versions() == [0, 1, 2, 3]
    assert {Path(shard).name for shard, _ in rows(index)} == {
        "a.jsonl",
        "c.jsonl.zst",
        "d.txt",
        "g.parquet",
        "h.txt.gz",
    }
    old = DeltaLog(str(index / "encodings")).files(0)
    assert old is not None
    assert sum(entry["num_records"] for entry in old[1]) == len(first) == 350
    assert_equals_a_full_build(own, fitted, tmp_path)


@pytest.mark.parametrize("kind", CHANGES)
def test_one_changed_shard_is_all_that_is_encoded(own: World, kind: str, encoded: list[str], capfd) -> None:
    index = own.root / "index"
    before = digests(index)
    CHANGES[kind](own, sentences(12, 400))
    assert run(own) == 0
    [name] = set(encoded)
    assert name.split(".", 1)[1] == kind
    assert len(encoded) == len(digests(index)) - len(before)
    shown = capfd.readouterr().err
    assert "0 new, 1 changed, 0 dropped, 4 unchanged shards" in shown
    assert "12 examples in" in shown
    # One commit, and the old snapshot is as it was.
    assert Index.open(str(index)).versions() == [0, 1]
    assert {f"{file.key}.parquet" for file in Index.open(str(index)).snapshot(0).files} == set(before)
    assert {name: digest for name, digest in digests(index).items() if name in before} == before
    assert not (index / LOCK).exists()


def test_no_change_reads_nothing_and_loads_no_model(own: World, encoded: list[str], capfd) -> None:
    """The shards' content is destroyed, size and time kept; the model is not there."""
    for shard in own.corpus.iterdir():
        put(own, shard.name, b"\xff" * shard.stat().st_size, 0)
    before = {path: path.stat().st_mtime_ns for path in (own.root / "index").rglob("*") if path.is_file()}
    assert run(own, model="/no/such/model") == 0
    assert "nothing has changed since version 0; no document was read" in capfd.readouterr().err
    assert encoded == []
    assert before == {path: path.stat().st_mtime_ns for path in (own.root / "index").rglob("*") if path.is_file()}


def test_no_change_without_a_manifest(own: World, capfd) -> None:
    """An index of before there were manifests; what its shards were cut by is asked for where the default is wrong."""
    index = own.root / "index"
    shutil.rmtree(index / "manifests")
    assert run(own, model="/no/such/model") == cli.EXIT_USAGE
    assert "--item_bytes 16,777,216 is not what the index was made with" in capfd.readouterr().err
    assert run(own, "--item_bytes", "2000", model="/no/such/model") == 0
    assert run(own, model="/no/such/model") == 0  # now it is remembered
    assert Index.open(str(index)).versions() == [0]
    assert run(own, "--item_bytes", "3000") == cli.EXIT_USAGE
    assert "--item_bytes 3,000: the index was made with 2,000" in capfd.readouterr().err
    assert run(own, "--fingerprint", "content") == cli.EXIT_USAGE
    assert "--fingerprint content: the index was made with modified" in capfd.readouterr().err


def test_a_new_index_is_built_by_reindex_alone(world: World, index: Path, built: Path) -> None:
    assert run(world, "--item_bytes", "2000", index=index) == 0
    assert digests(index) == digests(built)
    assert rows(index) == rows(built)


def test_content_fingerprints_do_not_mind_a_copied_corpus(own: World, index: Path, encoded: list[str]) -> None:
    corpus = str(own.corpus / "[cd]*")
    assert run(own, "--fingerprint", "content", index=index, corpus=corpus) == 0
    assert set(encoded) == {"c.jsonl.zst", "d.txt"}
    encoded.clear()
    for shard in own.corpus.iterdir():
        os.utime(shard)
    assert run(own, index=index, corpus=corpus, model="/no/such/model") == 0
    put(own, "d.txt", b"Rome is a city.\n", 0)
    assert run(own, index=index, corpus=corpus) == 0
    assert set(encoded) == {"d.txt"}


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


def test_empty_shards_are_no_change_the_second_time(own: World, capfd) -> None:
    put(own, "empty.jsonl", b"")
    assert run(own, model="/no/such/model") == 0
    assert "1 new" in capfd.readouterr().err
    assert run(own, model="/no/such/model") == 0
    assert "0 new, 0 changed, 0 dropped, 6 unchanged" in capfd.readouterr().err


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


def test_a_new_index_takes_the_old_ones_place(own: World, tmp_path: Path, capfd) -> None:
    old, new, newer = own.root / "index", tmp_path / "new", tmp_path / "newer"
    for name in ("a.jsonl", "e.parquet"):
        (own.corpus / name).unlink()
    assert own.fit(new, "--projection_seed", "3") == own.fit(newer, "--projection_seed", "4") == 0
    put(own, "f.jsonl", lines("f", sentences(20, 1)))
    open_reader = Index.open(str(old)).snapshot()
    capfd.readouterr()
    assert run(own, "--new_index", str(new)) == 0
    shown = capfd.readouterr().err
    assert "projection_seed: 0 here, 3 there" in shown
    assert f"whoever opens it from now on is led to {new}" in shown
    # The old one is as it was, for who has it open; who opens it gets the new one, complete.
    assert [Path(file.uri).exists() for file in open_reader.files] == [True] * len(open_reader.files)
    assert Index.open(str(old), follow=False).snapshot() == open_reader
    led = Index.open(str(old))
    assert led.uri == str(new)
    assert led.spec.projection_seed == 3
    assert led.snapshot().num_rows == 170
    # A nightly run that names the old one goes on in the new one.
    put(own, "f.jsonl", lines("f", sentences(25, 1)), 2)
    assert run(own) == 0
    assert Index.open(str(new), follow=False).versions() == [0, 1]
    assert Index.open(str(old), follow=False).versions() == [0]
    # It can be switched again, and back.
    assert run(own, "--new_index", str(newer)) == 0
    assert Index.open(str(old)).uri == str(newer)
    assert run(own, "--new_index", str(old)) == 0
    assert {Index.open(str(folder)).uri for folder in (old, new, newer)} == {str(old)}
    assert run(own, "--new_index", str(old)) == cli.EXIT_USAGE
    assert "in use already" in capfd.readouterr().err


def test_a_new_index_is_guarded_by_the_old_ones_shards(own: World, index: Path, capfd) -> None:
    assert run(own, "--new_index", str(index), corpus=str(own.corpus / "a*")) == cli.EXIT_USAGE
    assert "4 of the 5 shards" in capfd.readouterr().err
    assert Index.open(str(own.root / "index")).uri == str(own.root / "index")


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


def test_vacuum_keeps_what_snapshots_of_the_retention_need(own: World, capfd) -> None:
    index = own.root / "index"
    first = digests(index)
    CHANGES["jsonl"](own, [*sentences(20, 1), ""])  # with a reject
    assert run(own, "--vacuum_days", "7", "--max_reject_fraction", "0.1") == 0
    assert "deleted 0 files of encodings" in capfd.readouterr().err
    second = digests(index)
    assert set(first) < set(second)
    CHANGES["jsonl"](own, sentences(21, 2))
    assert run(own) == 0
    assert len(list((index / "rejects").iterdir())) == 1
    # A leftover of a run that failed yesterday, and one of now; a half-written file.
    leftovers = [index / "encodings" / f"{name * 32}.parquet" for name in "ab"]
    for leftover in leftovers:
        leftover.write_bytes(b"x")
    os.utime(leftovers[0], (time.time() - 2 * 86400,) * 2)
    (index / "encodings" / ".killed.tmp").write_bytes(b"half")
    os.utime(index / "encodings" / ".killed.tmp", (time.time() - 2 * 86400,) * 2)
    capfd.readouterr()
    assert run(own, "--vacuum_days", "0", model="/no/such/model") == 0
    shown = capfd.readouterr().err
    assert "nothing has changed" in shown
    assert "versions 2 to 2 stay readable" in shown
    opened = Index.open(str(index))
    left = {f"{file.key}.parquet" for file in opened.snapshot().files}
    assert set(digests(index)) == left | {leftovers[1].name}
    assert not (index / "encodings" / ".killed.tmp").exists()
    assert list((index / "rejects").iterdir()) == []
    assert rows(index) == sorted(set(rows(index)))
    assert cli.main(["inspect", str(index)]) == 0


def test_drift_is_reported(own: World, capfd) -> None:
    put(own, "f.jsonl", lines("f", sentences(60, 6)))
    assert run(own) == 0
    alike = capfd.readouterr().err
    assert "drift: the R of 60 new documents is" in alike
    assert "trackstar fit" not in alike
    put(own, "g.jsonl", lines("g", ["zzzz qqqq 0101 " * 20 + str(i) for i in range(60)]))
    assert run(own) == 0
    assert "`trackstar fit --index NEW …`" in capfd.readouterr().err
    assert run(own, "--drift_sample", "0") == 0


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


def test_the_changes_of_a_commit_are_told(own: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(reindex, "after_commit", lambda args, beam_args, index, changes: told.append(changes))
    index = Index.open(str(own.root / "index"))
    before = {file.key: file for file in index.snapshot().files}
    CHANGES["txt"](own, sentences(40, 9))
    assert run(own) == 0
    [changes] = told
    after = {file.key: file for file in index.snapshot().files}
    assert (changes.index_uri, changes.version_before, changes.version_after) == (index.uri, 0, 1)
    assert {file.key for file in changes.added} == set(after) - set(before)
    assert {file.key for file in changes.removed} == set(before) - set(after)
    assert {Path(file.shard).name for file in (*changes.added, *changes.removed)} == {"d.txt"}


def test_on_an_object_store(world: World, gcs: str, tmp_path: Path, capfd) -> None:
    """Generations instead of times; vacuum by the store; a second run finds the first one's lock."""
    for shard in world.corpus.iterdir():
        storage.copy(str(shard), f"{gcs}/corpus/{shard.name}")
    index, pattern = f"{gcs}/index", f"{gcs}/corpus/*.*"
    common = ["--corpus", pattern, "--model", str(world.model), "--index", index]
    small = ["--block_rows", "6", "--block_columns", "6", "--sample_size", "20", "--moments", "none"]
    assert cli.main(["fit", *common, *small, "--item_bytes", "4000"]) == 0
    assert cli.main(["build-index", *common, "--item_bytes", "4000"]) == 0
    without_model = ["--corpus", pattern, "--model", "/no/such/model", "--index", index]
    assert cli.main(["reindex", *without_model]) == 0
    assert "nothing has changed since version 0" in capfd.readouterr().err
    storage.write_bytes(f"{gcs}/corpus/a.jsonl", lines("a", sentences(10, 1)))
    storage.delete(f"{gcs}/corpus/d.txt")
    with WriteLock(index, "build-index"):
        assert cli.main(["reindex", *common]) == cli.EXIT_BUSY
    assert cli.main(["reindex", *common, "--vacuum_days", "0"]) == 0
    opened = Index.open(index)
    assert opened.versions() == [0, 1]
    snapshot = opened.snapshot()
    assert snapshot.num_rows == 350 - 120 + 10 - 50
    assert opened.existing_keys() == {file.key for file in snapshot.files}
    assert [info.uri for info in storage.list(index) if info.uri.endswith(LOCK)] == []
