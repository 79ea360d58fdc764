"""Which files are shards, and which ranges of them are work items."""

import dataclasses
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trackstar.corpus import Shard, WorkItem, expand, plan, read
from trackstar.errors import ShardError, TrackStarError

ITEM = WorkItem("/corpus/a.jsonl", "jsonl", 100, "100-7", 20, 60)


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x\n")


def names(folder: Path, shards: list[Shard]) -> list[str]:
    return [str(Path(shard.uri).relative_to(folder)) for shard in shards]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl.gz"),
        ("a.jsonl.zst", "jsonl.zst"),
        ("a.txt", "txt"),
        ("a.txt.gz", "txt.gz"),
        ("a.txt.zst", "txt.zst"),
        ("a.parquet", "parquet"),
        ("c4-train.00000-of-01024.json.gz", "jsonl.gz"),
        ("a.ndjson", "jsonl"),
        ("A.JSONL.GZ", "jsonl.gz"),
    ],
)
def test_the_format_is_the_end_of_the_name(tmp_path: Path, name: str, format: str) -> None:
    make(tmp_path, name)
    stat = (tmp_path / name).stat()
    assert expand([str(tmp_path / name)]) == [
        Shard(str(tmp_path / name), format, 2, f"2-{stat.st_mtime_ns}")  # type: ignore[arg-type]
    ]


def test_patterns_together_are_sorted_and_each_shard_comes_once(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a.jsonl", "deep/er/c.jsonl", "x.txt", "other.csv")
    patterns = ["x.txt", "*.jsonl", "**/*.jsonl", "a.jsonl", "deep/../b.jsonl"]
    shards = expand([f"{tmp_path}/{pattern}" for pattern in patterns])
    assert names(tmp_path, shards) == ["a.jsonl", "b.jsonl", "deep/er/c.jsonl", "x.txt"]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert expand(["*.jsonl"]) == expand([f"{tmp_path}/a.jsonl"]) == expand("./a.jsonl")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "no corpus was given"),
        (["*.jsonl", "none*.jsonl"], r"none\*\.jsonl: no file matches; check the path"),
        (["missing.jsonl"], r"missing\.jsonl: no file matches"),
        (["folder"], r"folder: a folder; name the shards in it, for example '.*/folder/\*\.jsonl'"),
        (["*"], r"other\.csv: unknown format; a shard's name ends in one of \.jsonl, \.jsonl\.gz"),
        (["wrong.gz"], r"wrong\.gz: unknown format"),
        (["\udcff.jsonl"], r"udcff.*not valid UTF-8; rename it"),
    ],
)
def test_what_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patterns: list[str], message: str) -> None:
    make(tmp_path, "a.jsonl", "other.csv", "wrong.gz", "folder/a.jsonl")
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackStarError, match=message):
        expand(patterns)


def test_content_fingerprints_outlive_a_copy(tmp_path: Path) -> None:
    make(tmp_path, "one/a.jsonl", "two/a.jsonl")
    os.utime(tmp_path / "two/a.jsonl", ns=(1, 1))
    (tmp_path / "two/b.jsonl").write_bytes(b"y\n")
    one, two, other = expand([f"{tmp_path}/*/*.jsonl"], "content")
    assert one.fingerprint == two.fingerprint != other.fingerprint
    modified = expand([f"{tmp_path}/*/*.jsonl"])
    assert len({shard.fingerprint for shard in modified}) == 3


# Work items.


@pytest.mark.parametrize("format", ["jsonl", "txt"])
@pytest.mark.parametrize(("size", "target"), [(1, 1), (10, 3), (10, 10), (11, 10), (1000, 7), (5, 1 << 40)])
def test_byte_ranges_cover_the_shard_and_none_exceeds_the_target(format: str, size: int, target: int) -> None:
    shard = Shard("/a", format, size, "f")  # type: ignore[arg-type]
    items = plan([shard], target)
    assert [item.start for item in items] == [0, *(item.end for item in items[:-1])]
    assert items[-1].end == size
    lengths = [item.end - item.start for item in items]
    assert 0 < min(lengths) <= max(lengths) <= target
    assert max(lengths) - min(lengths) <= 1
    assert {(item.shard, item.format, item.size, item.fingerprint) for item in items} == {("/a", format, size, "f")}


def test_compressed_shards_are_one_item_and_empty_ones_none() -> None:
    shards = [Shard("/a.gz", "jsonl.gz", 1000, "f"), Shard("/b", "jsonl", 0, "f"), Shard("/c.zst", "txt.zst", 9, "f")]
    assert [(item.shard, item.start, item.end) for item in plan(shards, 10)] == [("/a.gz", 0, 1000), ("/c.zst", 0, 9)]


def test_neighbouring_row_groups_are_joined_up_to_the_target(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [str(index % 10) * 1000 for index in range(70)]
    other = [os.urandom(10_000) for _ in texts]  # a column that is not read does not count
    pq.write_table(
        pa.table({"text": texts, "other": other}), path, row_group_size=10, use_dictionary=False, write_statistics=False
    )
    shards = expand([str(path)])

    def ranges(target: int) -> list[tuple[int, int]]:
        return [(item.start, item.end) for item in plan(shards, target)]

    assert ranges(1) == ranges(15_000) == [(index, index + 1) for index in range(7)]
    assert ranges(21_000) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert ranges(31_000) == [(0, 3), (3, 6), (6, 7)]
    assert ranges(1 << 30) == [(0, 7)]


def test_row_groups_of_token_ids_are_weighed_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    tokens = pa.array([list(range(1000))] * 20, pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": tokens}), path, row_group_size=5, use_dictionary=False)
    assert len(plan(expand([str(path)]), 25_000)) == 4
    assert len(plan(expand([str(path)]), 45_000)) == 2


def test_parquet_without_rows_has_no_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert [record for item in plan(expand([f"{tmp_path}/a.parquet"]), 100) for record in read(item)] == []


def test_plans_keep_the_order_of_the_shards_whatever_their_number() -> None:
    shards = [Shard(f"/{index:03}", "jsonl", index, "f") for index in range(1, 200)]
    items = plan(shards, 50)
    assert [item.shard for item in items] == sorted(item.shard for item in items)
    assert sum(item.end - item.start for item in items) == sum(shard.size for shard in shards)
    assert plan(iter(shards), 50) == items


def test_a_bad_target() -> None:
    with pytest.raises(TrackStarError, match="0 bytes a work item; it must be positive"):
        plan([], 0)


def test_planning_names_a_shard_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not quite PAR1")
    with pytest.raises(ShardError, match=r"bad\.parquet: cannot be read as Parquet"):
        plan(expand([f"{tmp_path}/bad.parquet"]), 10)


# Keys.


def test_keys_are_pinned() -> None:
    """They name files in indexes that exist: a change here makes every index encode everything anew."""
    assert ITEM.key("0123456789abcdef") == "3e4168dc2336aa3c4182f0115433236d"


@pytest.mark.parametrize(
    "change",
    [{"shard": "/b"}, {"format": "txt"}, {"fingerprint": "100-8"}, {"start": 21}, {"end": 61}],
    ids=lambda change: next(iter(change)),
)
def test_keys_follow_all_that_determines_the_input(change: dict) -> None:
    assert dataclasses.replace(ITEM, **change).key("s") != ITEM.key("s")
    assert ITEM.key("s") != ITEM.key("t")
    assert dataclasses.replace(ITEM).key("s") == ITEM.key("s")


def test_items_travel_as_json() -> None:
    assert WorkItem.from_dict(json.loads(json.dumps(ITEM.to_dict()))) == ITEM
