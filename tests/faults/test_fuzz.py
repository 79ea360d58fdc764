"""Corpora of anything at all: every record is read or rejected with a reason, and what cannot be read says so by its name."""

import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trackstar.corpus import Record, Reject, expand, lines, plan, read
from trackstar.errors import ShardError, TrackStarError

FUZZ = settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

ODD_TEXTS = ["", " ", "\0", "a\0b", "\u2028", "\ufeff", "\ud800", "😀" * 50, "\r", "\x85", "{}", "null", "a" * 3000]


def odd_value(generator: random.Random, depth: int = 0) -> str:
    """JSON text of any kind of value, also of some that JSON does not have."""
    choices: list[Callable[[], str]] = [
        lambda: json.dumps(generator.choice(ODD_TEXTS)),
        lambda: generator.choice(["null", "true", "NaN", "-Infinity", "1e400", "-0", "1" * 5000, "0.1", str(2**63)]),
        lambda: "[" * generator.choice([1, 500, 100_000]),
        lambda: '{"a":' * 3000 + "1" + "}" * 3000,
    ]
    if depth < 2:
        choices += [
            lambda: "[" + ",".join(odd_value(generator, depth + 1) for _ in range(3)) + "]",
            lambda: "{" + json.dumps(generator.choice(ODD_TEXTS)) + ":" + odd_value(generator, depth + 1) + "}",
        ]
    return generator.choice(choices)()


def odd_line(generator: random.Random) -> bytes:
    """One line of a JSONL file as it should not be, or almost; now and then as it should be."""
    names = ["text", "id", "input_ids", "text", "url", "\u0000"]
    fields = [f"{json.dumps(generator.choice(names))}: {odd_value(generator)}" for _ in range(generator.randint(0, 4))]
    line = "{" + ", ".join(fields) + "}"
    kinds: list[Callable[[], bytes]] = [
        lambda: line.encode("utf-8", "surrogatepass"),
        lambda: odd_value(generator).encode(),
        lambda: json.dumps(
            {"text": "fine, this one", "id": generator.choice([7, "x", None, 1.5, True, "i" * 100_000])}
        ).encode(),
        lambda: json.dumps({"text": "fine, this one"}).encode("utf-16"),
        lambda: json.dumps({"text": "façon"}, ensure_ascii=False).encode("latin-1"),
        lambda: b"\xef\xbb\xbf" + line.encode("utf-8", "surrogatepass"),
        lambda: generator.randbytes(generator.randint(0, 300)),
        lambda: bytes(generator.randint(0, 500)),
        lambda: line.encode("utf-8", "surrogatepass")[: generator.randint(0, 40)],
    ]
    return generator.choice(kinds)()


def items_of(path: Path, target_bytes: int) -> list[Any]:
    return plan(expand([str(path)]), target_bytes)


def read_all(path: Path, target_bytes: int = 1 << 40) -> list[Record | Reject]:
    return [record for item in items_of(path, target_bytes) for record in read(item)]


def check_records(found: list[Record | Reject]) -> None:
    """Each is usable as it is, or says why not, and can be written down."""
    for record in found:
        if isinstance(record, Reject):
            assert record.reason and len(record.reason) < 1000 and len(record.snippet) <= 200
            json.dumps([record.reason, record.snippet]).encode()
        else:
            assert record.example_id.encode()
            assert record.text is None or record.text.encode().strip() or record.text.strip()
            assert record.text is not None or record.input_ids


@FUZZ
@given(data=st.binary(max_size=400), name=st.sampled_from(["a.jsonl", "a.txt"]), cut=st.integers(1, 50))
def test_any_bytes_are_read_whatever_the_cuts(tmp_path: Path, data: bytes, name: str, cut: int) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    whole = read_all(path)
    check_records(whole)
    assert len(whole) == sum(1 for line in _lines(data) if line and not line.isspace())
    assert read_all(path, cut) == whole
    packed = tmp_path / (name + ".gz")
    packed.write_bytes(gzip.compress(data))
    assert [r.position for r in read_all(packed)] == [r.position for r in whole]


def _lines(data: bytes) -> list[bytes]:
    """What lies between newlines, without line ends and a byte order mark."""
    return [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]


@pytest.mark.parametrize("seed", range(6))
def test_odd_lines_are_counted_one_by_one(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(seed)
    given = [odd_line(generator).replace(b"\n", b" ") for _ in range(200)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(given))
    monkeypatch.setattr(lines, "LONGEST_LINE", 50_000)
    found = read_all(path)
    check_records(found)
    assert len(found) == sum(1 for line in _lines(path.read_bytes()) if line and not line.isspace())
    assert any(isinstance(record, Record) for record in found)
    assert any("are read at most" in record.reason for record in found if isinstance(record, Reject))
    assert read_all(path, 5000) == found


def damaged(data: bytes, generator: random.Random) -> bytes:
    """The data with bytes changed, cut off, put in or appended."""
    kind = generator.randrange(5)
    at = generator.randrange(len(data)) if data else 0
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data + generator.choice([b"\0", b"garbage", bytes(100), data[:20], data])
    if kind == 2:
        return data[:at] + generator.randbytes(generator.randint(1, 40)) + data[at:]
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 20])):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


TEXTS = b"".join(b'{"text": "document %d", "id": "%d"}\n' % (i, i) for i in range(50))
WHOLE = {
    "a.jsonl.gz": gzip.compress(TEXTS[:900]) + gzip.compress(TEXTS[900:]),
    "a.jsonl.zst": zstandard.compress(TEXTS[:900]) + zstandard.compress(TEXTS[900:]),
    "a.txt.gz": gzip.compress(TEXTS),
    "a.parquet": _parquet(pa.table({"text": [f"document {i}" for i in range(50)]}), row_group_size=10),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(WHOLE))
def test_damaged_files_are_read_whole_or_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    assert len(read_all(path)) == 50
    generator = random.Random(name)
    named = 0
    for _ in range(150):
        path.write_bytes(damaged(WHOLE[name], generator))
        try:
            check_records(read_all(path))
        except ShardError as error:
            named += 1
            assert str(path) in str(error)
            assert "Traceback" not in str(error)
    assert named > 50


COLUMNS: dict[str, list[pa.Array]] = {
    "text": [
        pa.array(["a", None, "b\0"]),
        pa.array(["a", "b", None], pa.large_string()),
        pa.array([b"a", b"\xff", b""], pa.binary()),
        pa.array([b"abc", b"\xff\xfe\xfd", None], pa.binary(3)),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array(["x", "y", "z"], pa.string_view()),
        pa.array([None, None, None], pa.null()),
        pa.array([1, 2, 3]),
        pa.array([{"a": 1}, None, {"a": 2}]),
        pa.array([["a"], [], None]),
        pa.array([1, 2, None], pa.timestamp("us")),
        pa.array([["k"], ["l"], []], pa.list_(pa.string())),
    ],
    "input_ids": [
        pa.array([[1, 2], [], None]),
        pa.array([[1, None], [2**40], [-1]]),
        pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32(), 2)),
        pa.array([[1, 2], [3], [255]], pa.large_list(pa.uint8())),
        pa.array([[[1]], [[2]], None]),
        pa.array([[1.0], [2.5], []]),
        pa.array(["1 2", "3", None]),
        pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        pa.array([None, None, None], pa.null()),
    ],
    "id": [
        pa.array(["x", "", None]),
        pa.array([1, 2, None]),
        pa.array([0.5, float("nan"), float("inf")]),
        pa.array([True, False, None]),
        pa.array([2**64 - 1, 0, 1], pa.uint64()),
        pa.array(["i" * 2_000_000, "é", "\0"]),
        pa.array([b"\xff", b"ok", b""], pa.binary()),
        pa.array([["x"], [], None]),
        pa.array([1, 2, 3], pa.date32()),
        pa.array([None, None, None], pa.null()),
        pa.array(["12.5", "1", "2"]).cast(pa.decimal128(10, 2)),
    ],
}


@pytest.mark.parametrize("seed", range(60))
def test_parquet_of_any_columns(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    names = generator.sample(list(COLUMNS), generator.randint(1, 3))
    table = pa.table({name: generator.choice(COLUMNS[name]) for name in names})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=generator.choice([1, 2, 3]))
    try:
        found = read_all(path, generator.choice([1, 1 << 20]))
    except ShardError as error:
        assert "column" in error.reason
        return
    check_records(found)
    assert len(found) == table.num_rows


def test_parquet_with_nothing_in_it(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    for number, groups in enumerate([0, 1]):
        path = tmp_path / f"{number}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for _ in range(groups):
                writer.write_table(schema.empty_table())
        assert read_all(path) == []
    pq.write_table(pa.table({}), tmp_path / "none.parquet")
    with pytest.raises(ShardError, match="no column text or input_ids"):
        read_all(tmp_path / "none.parquet")


def test_a_line_longer_than_is_read_and_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(65):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    before, long, after = read_all(path)
    assert isinstance(before, Record) and isinstance(after, Record)
    assert isinstance(long, Reject)
    assert long.reason == "a line of 68,157,452 bytes; 67,108,864 are read at most"


NAMES = [
    "a b.jsonl",
    "a'\"`$(x).jsonl",
    "new\nline.jsonl",
    "é😀.jsonl",
    "a#b%20?.jsonl",
    "[1]*.jsonl",
    "-rf.jsonl",
    "~.jsonl",
]


def test_odd_file_names(tmp_path: Path) -> None:
    folder = tmp_path / "odd [x] *"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(b'{"text": "one"}\n')
        [record] = read_all(folder / name)  # a path that exists is taken as it is
        assert record.shard == str(folder / name)
    os.chdir(folder)
    found = expand(["*.jsonl"])
    assert sorted(Path(shard.uri).name for shard in found) == sorted(NAMES)
    assert len([record for item in plan(found, 1 << 20) for record in read(item)]) == len(NAMES)
    (folder / os.fsdecode(b"\xff.jsonl")).write_bytes(b"{}")
    with pytest.raises(TrackStarError, match=r"\\udcff\.jsonl.*not valid UTF-8; rename it"):
        expand(["*.jsonl"])


@pytest.fixture(autouse=True)
def stays_in_its_folder() -> Any:
    folder = Path.cwd()
    yield
    os.chdir(folder)


def test_folders_links_and_loops(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(b'{"text": "one"}\n')
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jsonl" / "deep.jsonl").write_bytes(b'{"text": "two"}\n')
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jsonl").symlink_to("self.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    (tmp_path / "linked.jsonl").symlink_to("good.jsonl")
    assert [Path(shard.uri).name for shard in expand([str(tmp_path / "*.jsonl")])] == ["good.jsonl", "linked.jsonl"]
    deep = expand([str(tmp_path / "**" / "*.jsonl")])
    assert {Path(shard.uri).name for shard in deep} == {"good.jsonl", "linked.jsonl", "deep.jsonl"}
    assert len(deep) < 500
    for name, what in [("folder.jsonl", "a folder; name the shards in it"), ("self.jsonl", "no file matches")]:
        with pytest.raises(TrackStarError, match=what):
            expand([str(tmp_path / name)])
