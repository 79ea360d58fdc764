"""The index on disk: bytes of a file, commits, snapshots, what other programs read, and what goes wrong."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable

from tests.indexes import make_encodings, make_index, make_spec, unit_vectors, write_file
from tests.naive_forms import STORAGES, row_bytes
from trackstar import item_file
from trackstar.corpus import Reject
from trackstar.delta_log import DeltaLog
from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.item_footer import ItemFile
from trackstar.parquet_pages import plain_pages

pytest_plugins = ["tests.gcs"]


def _raw(vectors: torch.Tensor) -> bytes:
    return vectors.contiguous().view(torch.uint8).numpy().tobytes()


def _pages(item: ItemFile, width: int) -> tuple[bytes, list[int]]:
    """All pages' bytes, and at which bytes of the file they begin."""
    data = Path(item.uri).read_bytes()
    pages = plain_pages(pq.read_metadata(item.uri), "encoding", width, lambda at, length: data[at : at + length])
    assert pages is not None
    return b"".join(data[p.offset : p.offset + p.num_rows * width] for p in pages), [p.offset for p in pages]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
@pytest.mark.parametrize("block_columns", [4, 5])
def test_the_pages_are_the_matrix(
    tmp_path: Path, storage: str, num_rows: int, block_columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(storage=storage, block_rows=5, block_columns=block_columns)  # d = 40 or 50
    monkeypatch.setattr(item_file, "ROW_GROUP_BYTES", 13 * spec.bytes_per_encoding)
    vectors = unit_vectors(num_rows, spec.dimension)
    index = Index.create(str(tmp_path), spec)
    item = write_file(index, 0, [make_encodings(vectors)] if num_rows else [])
    assert item.num_rows == num_rows
    assert item.num_bytes == Path(item.uri).stat().st_size
    raw, offsets = _pages(item, spec.bytes_per_encoding)
    assert raw == b"".join(row_bytes(vectors, storage) if num_rows else [])
    assert len(offsets) == -(-num_rows // 13)
    assert all(offset % 64 == 0 for offset in offsets)
    table = pq.read_table(item.uri)
    assert b"".join(table["encoding"].to_pylist()) == raw
    assert table["example_id"].to_pylist() == [f"e{i}" for i in range(num_rows)]
    assert table["text"].to_pylist() == [f"text {i}" for i in range(num_rows)]
    assert table["position"].to_pylist() == list(range(num_rows))
    assert set(table["shard"].to_pylist()) <= {"shard"}
    assert ("scale" in table.column_names) == (storage == "int8")


def test_a_large_page_is_aligned_too(tmp_path: Path) -> None:
    spec = make_spec(block_rows=64, block_columns=64, num_blocks=2)  # 16 KiB a row, 4,096 rows a group
    vectors = unit_vectors(5000, 128).repeat(1, 64)
    index = Index.create(str(tmp_path), spec)
    item = write_file(index, 0, [make_encodings(vectors)])
    assert [pq.read_metadata(item.uri).row_group(i).num_rows for i in range(2)] == [4096, 904]
    assert [offset % 64 for offset in _pages(item, spec.bytes_per_encoding)[1]] == [0, 0]


@pytest.mark.parametrize("storage", STORAGES)
def test_bytes_do_not_depend_on_how_rows_come_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    spec = make_spec(storage=storage)
    monkeypatch.setattr(item_file, "ROW_GROUP_BYTES", 10 * spec.bytes_per_encoding)
    whole = make_encodings(unit_vectors(25, 32))
    files = []
    for name, cuts in {"one": [0, 25], "many": [0, 1, 2, 11, 11, 24, 25]}.items():
        index = Index.create(str(tmp_path / name), spec)
        item = write_file(index, 0, [whole.rows(a, b) for a, b in itertools.pairwise(cuts)])
        files.append((Path(item.uri).read_bytes(), item.metadata))
    assert files[0][0] == files[1][0]
    norm = {} if storage == "sign" else {"max_norm": "1.01"}
    assert files[0][1] == {"records": "25", "shard": "shard", "storage": storage, "dimension": "32", **norm}


def test_has_item_tells_what_was_written(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), make_spec())
    assert index.has_item("0" * 32) is None
    assert index.existing_keys() == set()
    item = write_file(index, 0, [make_encodings(unit_vectors(3, 32))], shard="a ü%=' shard.jsonl")
    assert index.has_item(item.key) == item
    assert item.shard == "a ü%=' shard.jsonl"
    assert index.existing_keys() == {item.key}


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), make_spec())

    def failing() -> Iterator[Encodings]:
        yield make_encodings(unit_vectors(3, 32))
        raise RuntimeError("worker lost its GPU")

    with pytest.raises(RuntimeError, match="lost its GPU"):
        index.write_item("0" * 32, "shard", failing(), dict)
    assert list((tmp_path / "encodings").iterdir()) == []
    (tmp_path / "encodings" / "_delta_log").mkdir()
    partials = ["encodings/.killed.tmp", "rejects/.killed.tmp", "encodings/_delta_log/00000000000000000000.json#1"]
    for partial in partials:
        (tmp_path / partial).write_bytes(b"half")
    assert index.existing_keys() == set()
    assert index.versions() == []
    assert index.remove_partial_files() == 3
    assert not any((tmp_path / partial).exists() for partial in partials)


def test_bad_encodings_are_refused(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), make_spec())
    with pytest.raises(TrackStarError, match="dimension 31 for an index of dimension 32"):
        write_file(index, 0, [make_encodings(unit_vectors(2, 31))])
    for bad in (float("nan"), float("inf"), -float("inf")):
        vectors = unit_vectors(3, 32)
        vectors[1, 5] = bad
        with pytest.raises(TrackStarError, match=r"NaN or infinity .* 1 example\(s\), first 'e1'"):
            make_encodings(vectors)
    good = make_encodings(unit_vectors(2, 32))
    with pytest.raises(TrackStarError, match="2 example ids, but 1 loss"):
        dataclasses.replace(good, loss=np.ones(1, np.float32))
    with pytest.raises(TrackStarError, match="came without them"):
        write_file(index, 0, [dataclasses.replace(good, texts=None)])


def test_text_can_be_left_out(tmp_path: Path) -> None:
    encodings = dataclasses.replace(make_encodings(unit_vectors(2, 32)), texts=None)
    _, [item] = make_index(tmp_path, [[encodings]], stores_text=False)
    assert "text" not in pq.read_schema(item.uri).names


def test_create_and_open(tmp_path: Path) -> None:
    with pytest.raises(TrackStarError, match="run `trackstar fit` first"):
        Index.open(str(tmp_path))
    spec = make_spec()
    Index.create(str(tmp_path), spec)
    assert Index.open(str(tmp_path)).spec == spec
    assert Index.create(str(tmp_path), spec).spec == spec
    with pytest.raises(TrackStarError, match="block_rows: 4 here, 8 there"):
        Index.create(str(tmp_path), make_spec(block_rows=8))
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(TrackStarError, match=r"spec\.json: not the spec"):
        Index.open(str(tmp_path))


def test_a_commit_is_one_transaction_that_holds_exactly_the_files_given(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), make_spec())
    assert index.versions() == []
    with pytest.raises(TrackStarError, match="nothing was committed yet"):
        index.snapshot()
    items = [write_file(index, i, [make_encodings(unit_vectors(i, 32))] if i else [], f"s{i}") for i in range(5)]
    assert index.commit(items[:3]) == 0
    assert index.commit(list(reversed(items[:3]))) == 0  # the same: no new version
    assert index.commit(items[1:]) == 1  # one dropped, two added
    assert index.commit(items[1:2]) == 2  # only dropped
    assert index.commit([]) == 3
    assert index.versions() == [0, 1, 2, 3]
    expected = [items[:3], items[1:], items[1:2], []]
    for version, files in enumerate(expected):
        snapshot = index.snapshot(version)
        assert snapshot.version == version
        assert [(f.uri, f.shard, f.num_rows, f.num_bytes, f.key) for f in snapshot.files] == [
            (item.uri, item.shard, item.num_rows, item.num_bytes, item.key) for item in files
        ]
        assert snapshot.num_rows == sum(item.num_rows for item in files)
        assert snapshot.num_bytes == sum(item.num_bytes for item in files)
    assert index.snapshot() == index.snapshot(3)
    with pytest.raises(TrackStarError, match="no version 9"):
        index.snapshot(9)
    log = (tmp_path / "encodings" / "_delta_log" / "00000000000000000001.json").read_text().splitlines()
    actions = [next(iter(json.loads(line))) for line in log]
    assert sorted(actions) == ["add", "add", "commitInfo", "remove"]
    # A file that was dropped is still there for readers of the old version, and can come back.
    assert index.commit(items) == 4
    assert len(index.snapshot().files) == 5


def test_a_commit_beside_another_run_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.create(str(tmp_path), make_spec())
    items = [write_file(index, i, [make_encodings(unit_vectors(2, 32))]) for i in range(3)]
    index.commit(items[:1])
    stale = DeltaTable(str(tmp_path / "encodings"))
    Index.open(str(tmp_path)).commit(items[:2])  # the other run
    tables = iter([stale])
    original = DeltaLog._table
    monkeypatch.setattr(DeltaLog, "_table", lambda *args: next(tables, None) or original(*args))
    with pytest.raises(TrackStarError, match="another run committed at the same time"):
        index.commit([items[0], items[2]])


def test_thousands_of_files_commit_at_once(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), make_spec())
    item = write_file(index, 0, [make_encodings(unit_vectors(2, 32))])
    items = [dataclasses.replace(item, key=f"{i:032x}", shard=f"shard {i // 3}") for i in range(3000)]
    index.commit(items)
    index.commit(items[1500:])
    assert [file.shard for file in index.snapshot().files] == [item.shard for item in items[1500:]]


def test_other_programs_read_the_table(tmp_path: Path) -> None:
    first, second, third = (make_encodings(unit_vectors(4, 32, seed), start=10 * seed) for seed in range(3))
    index, items = make_index(tmp_path, [[first], [second], [third]])
    index.commit(items[:2])
    delta = DeltaTable(str(tmp_path / "encodings")).to_pyarrow_dataset().to_table().sort_by("position")
    bare = pyarrow.dataset.dataset([file.uri for file in index.snapshot().files]).to_table().sort_by("position")
    for table in (delta, bare):
        assert table["example_id"].to_pylist() == first.example_ids + second.example_ids
        assert set(table["shard"].to_pylist()) == {"shard"}
        stored = torch.cat([first.vectors, second.vectors]).bfloat16()
        assert b"".join(table["encoding"].to_pylist()) == _raw(stored)
    old = DeltaTable(str(tmp_path / "encodings"), version=0).to_pyarrow_dataset()
    assert old.count_rows() == 12
    assert old.count_rows(filter=pyarrow.dataset.field("shard") == "shard") == 12
    assert old.count_rows(filter=pyarrow.dataset.field("shard") == "none") == 0


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    index, [item] = make_index(tmp_path, [[make_encodings(unit_vectors(50, 32))]])
    data = Path(item.uri).read_bytes()
    Path(item.uri).write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(TrackStarError, match=rf"{item.key}\.parquet: truncated, or not Parquet"):
        index.has_item(item.key)


def test_rejects_of_the_snapshot(tmp_path: Path) -> None:
    index = Index.create(str(tmp_path), make_spec())
    items = [write_file(index, i, []) for i in range(3)]
    rejects = [Reject("shard", i, 'not JSON: "ü\n"', "x\u2028y\ud800"[: i + 2]) for i in range(4)]
    for item, part in zip(items, (rejects[:2], [], rejects[2:]), strict=True):
        index.write_rejects(item.key, part)
    assert list(index.rejects()) == []
    index.commit(items)
    assert list(index.rejects()) == rejects
    assert list(index.rejects([items[2].key])) == rejects[2:]
    assert not (tmp_path / "rejects" / f"{items[1].key}.jsonl").exists()
    index.commit(items[:2])
    assert list(index.rejects()) == rejects[:2]


def test_an_object_store_holds_an_index(gcs: str) -> None:
    index = Index.create(f"{gcs}/some/index", make_spec())
    items = [write_file(index, i, [make_encodings(unit_vectors(3, 32, i))]) for i in range(3)]
    assert [index.commit(items[:2]), index.commit(items[:2]), index.commit(items[1:])] == [0, 0, 1]
    again = Index.open(f"{gcs}/some/index")
    assert [file.uri for file in again.snapshot().files] == [item.uri for item in items[1:]]
    assert again.has_item(items[0].key) == items[0]
    assert again.existing_keys() == {item.key for item in items}
    again.write_rejects(items[1].key, [Reject("s", 1, "r", "x")])
    assert list(again.rejects()) == [Reject("s", 1, "r", "x")]
