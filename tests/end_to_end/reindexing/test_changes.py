"""reindex: equal to a full build of the corpus as it is now, at the cost of what changed."""

import os
import shutil
from pathlib import Path

import pytest

from pipelines import cli
from tests.end_to_end.reindexing.nights import ADDITIONS, CHANGES, assert_equals_a_full_build, lines, put, run
from tests.end_to_end.world import World, digests, rows, sentences
from trackstar import storage
from trackstar.delta_log import DeltaLog
from trackstar.index import Index
from trackstar.write_lock import FILE as LOCK
from trackstar.write_lock import WriteLock

pytest_plugins = ["tests.gcs"]


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


def test_empty_shards_are_no_change_the_second_time(own: World, capfd) -> None:
    put(own, "empty.jsonl", b"")
    assert run(own, model="/no/such/model") == 0
    assert "1 new" in capfd.readouterr().err
    assert run(own, model="/no/such/model") == 0
    assert "0 new, 0 changed, 0 dropped, 6 unchanged" in capfd.readouterr().err


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
