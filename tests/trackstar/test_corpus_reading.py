"""The same records from every format, from any cut of a shard, in bounded memory."""

import gzip
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar import storage
from trackstar.corpus import Record, Reject, WorkItem, expand, lines, plan, read

pytest_plugins = ["tests.gcs"]

DOCUMENTS = [
    "The capital of France is Paris.",
    "Grüße, 世界 \N{ROCKET} e\N{COMBINING ACUTE ACCENT}",
    '  leading spaces, "quotes" and a \\ backslash stay',
    "line separators\u2028in\u2029side\x85\x0b\x0c do not end a line",
    "x" * 100_000,
    "tab\tand nul\x00",
    "the last",
]


def jsonl(documents: Sequence[str], ascii: bool = False) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=ascii).encode() + b"\n" for text in documents)


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def parquet(documents: Sequence[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": documents}), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def txt(documents: Sequence[str]) -> bytes:
    return "".join(text + "\n" for text in documents).encode()


WRITERS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "a.jsonl": jsonl,
    "escaped.jsonl": lambda documents: jsonl(documents, ascii=True),
    "windows.jsonl": lambda documents: b"\xef\xbb\xbf" + jsonl(documents).replace(b"\n", b"\r\n"),
    "unended.jsonl": lambda documents: jsonl(documents).removesuffix(b"\n"),
    "blank.jsonl": lambda documents: b"\n \t\n" + jsonl(documents).replace(b"\n", b"\n\r\n\n"),
    "a.jsonl.gz": lambda documents: gzip.compress(jsonl(documents)),
    "members.jsonl.gz": lambda documents: b"".join(gzip.compress(jsonl([text])) for text in documents) + b"\0" * 512,
    "a.jsonl.zst": lambda documents: zst(jsonl(documents)),
    "frames.jsonl.zst": lambda documents: b"".join(
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zst(jsonl(documents)[at : at + 999]) for at in range(0, 200_000, 999)
    ),
    "long.jsonl.zst": lambda documents: zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28)
    ).compress(jsonl(documents)),
    "a.txt": txt,
    "windows.txt": lambda documents: b"\xef\xbb\xbf" + txt(documents).replace(b"\n", b"\r\n"),
    "a.txt.gz": lambda documents: gzip.compress(txt(documents)),
    "a.txt.zst": lambda documents: zst(txt(documents)),
    "a.parquet": parquet,
}


def read_all(pattern: str, target_bytes: int = 1 << 30) -> list[Record | Reject]:
    return [record for item in plan(expand([pattern]), target_bytes) for record in read(item)]


def texts(records: Sequence[Record | Reject]) -> list[str | None]:
    return [record.text if isinstance(record, Record) else record.reason for record in records]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place", ["local", "gs"])
def test_every_format_gives_the_same_texts(
    name: str, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = str(tmp_path) if place == "local" else request.getfixturevalue("gcs")
    storage.write_bytes(f"{base}/{name}", WRITERS[name](DOCUMENTS))
    whole = read_all(f"{base}/*")
    assert texts(whole) == DOCUMENTS
    assert {record.shard for record in whole} == {f"{base}/{name}"}
    assert read_all(f"{base}/*", target_bytes=1000 if place == "local" else 40_000) == whole


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "frames.jsonl.zst", "windows.jsonl"])
def test_positions_are_offsets_in_the_uncompressed_stream(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](DOCUMENTS))
    plain = WRITERS["windows.jsonl" if "windows" in name else "a.jsonl"](DOCUMENTS)
    for record in read_all(f"{tmp_path}/*"):
        line = plain[record.position :].split(b"\n")[0]
        assert json.loads(line.removeprefix(b"\xef\xbb\xbf"))["text"] == record.text  # type: ignore[union-attr]


# Ranges.

PIECES = st.sampled_from(
    [b"\n", b"\n", b"\r\n", b"\r", b"", b" ", b"\xff", b'{"text": "a"}', b'{"text": "\xc3\xa9"}', b"[1]", b"x" * 50]
)
CONTENTS = st.lists(PIECES, max_size=40).map(b"".join)


@st.composite
def cut_contents(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    content = draw(CONTENTS.filter(len))
    cuts = draw(st.lists(st.integers(0, len(content)), max_size=8))
    return content, sorted({0, *cuts, len(content)})


@settings(max_examples=250, deadline=None)
@given(cut_contents(), st.sampled_from(["jsonl", "txt"]))
def test_any_cut_gives_the_same_records(content_and_cuts: tuple[bytes, list[int]], format: str) -> None:
    content, cuts = content_and_cuts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{format}"
        path.write_bytes(content)
        [whole] = plan(expand([str(path)]), len(content))
        parts = [
            WorkItem(whole.shard, whole.format, whole.size, whole.fingerprint, start, end)
            for start, end in itertools.pairwise(cuts)
        ]
        expected = list(read(whole))
        assert [record for part in parts for record in read(part)] == expected
        for part in parts:
            assert all(part.start <= record.position < part.end for record in read(part))
    offsets = [0, *itertools.accumulate(len(line) + 1 for line in content.split(b"\n"))]
    filled = [at for at, line in zip(offsets, content.split(b"\n"), strict=False) if not line.isspace() and line]
    assert [record.position for record in expected] == filled


@settings(max_examples=250, deadline=None)
@given(CONTENTS, st.integers(1, 9), st.integers(0, 60))
def test_chunks_do_not_matter(content: bytes, chunk: int, longest: int) -> None:
    chunks = [content[at : at + chunk] for at in range(0, len(content), chunk)]
    found = list(lines.split(chunks, 1000, longest=longest))
    pieces = content.split(b"\n")
    starts = itertools.accumulate((len(piece) + 1 for piece in pieces), initial=1000)
    expected = list(zip(starts, pieces, strict=False))
    expected = expected[:-1] if not pieces[-1] else expected
    assert [line.offset for line in found] == [at for at, _ in expected]
    assert [line.length for line in found] == [len(piece) for _, piece in expected]
    for line, (_, piece) in zip(found, expected, strict=True):
        if line.length <= longest:
            assert line.content == piece.removesuffix(b"\r")
        else:
            assert piece.startswith(line.content)


def test_cuts_inside_lines_of_many_chunks(tmp_path: Path) -> None:
    """Lines much longer than what is read at a time, cut everywhere around."""
    random_ = random.Random(0)
    documents = [
        chr(97 + index % 26) * random_.choice([1, 10, 65_000, 65_536, 200_000, 5 << 20]) for index in range(12)
    ]
    content = txt(documents)
    (tmp_path / "a.txt").write_bytes(content)
    [whole] = plan(expand([f"{tmp_path}/a.txt"]), len(content))
    expected = list(read(whole))
    assert texts(expected) == documents
    starts = [record.position for record in expected]
    cuts = sorted({0, len(content), *(at + step for at in starts[1:] for step in (-65_537, -2, -1, 0, 1, 2, 65_536))})
    cuts = [cut for cut in cuts if 0 <= cut <= len(content)]
    parts = [
        WorkItem(whole.shard, whole.format, whole.size, whole.fingerprint, start, end)
        for start, end in itertools.pairwise(cuts)
    ]
    assert [record for part in parts for record in read(part)] == expected


def test_an_item_reads_little_beyond_its_range() -> None:
    content = b"\n".join(b"%07d" % index for index in range(1_000_000))
    source = pa.BufferReader(content)
    found = list(lines.in_range(source, 800_000, 800_080))
    assert len(found) == 10
    assert source.tell() < 800_000 + 3 * 65_536
    huge = pa.BufferReader(b"x" * 10_000_000)
    assert list(lines.in_range(huge, 100_000, 200_000)) == []
    assert huge.tell() <= 200_000


# Memory.


def test_a_line_that_is_too_long_is_one_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    longest = b'{"text": "' + b"y" * (lines.LONGEST_LINE - 12) + b'"}'
    assert len(longest) == lines.LONGEST_LINE
    path.write_bytes(jsonl(["before"]) + b" " + longest + b"\n" + longest + b"\n" + jsonl(["after"]))
    before, reject, fits, after = read_all(str(path), 1 << 25)
    assert isinstance(reject, Reject)
    assert reject.reason == "a line of 67,108,865 bytes; 67,108,864 are read at most"
    assert reject.snippet == ' {"text": "' + "y" * 189
    assert reject.position == len(jsonl(["before"]))
    assert isinstance(fits, Record)
    assert len(fits.text or "") == lines.LONGEST_LINE - 12
    assert texts([before, after]) == ["before", "after"]


MEASURE = """
import pathlib, re, sys
from trackstar.corpus import expand, plan, read
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = most()
kinds = [type(record).__name__ for item in plan(expand([sys.argv[1]]), 1 << 30) for record in read(item)]
print(len(kinds), kinds[0], (most() - before) // 1024)
"""


def measured(path: Path) -> tuple[int, str, int]:
    """Records, kind of the first, and MiB by which memory grew, in a process of its own."""
    out = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    count, kind, grown = out.stdout.split()
    return int(count), kind, int(grown)


def dense_zst(path: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=1)
    with path.open("wb") as sink, compressor.stream_writer(sink) as stream:
        for _ in range(512):
            stream.write(bytes(1 << 20))


def dense_gz(path: Path) -> None:
    member = gzip.compress(bytes(64 << 20), 1)
    path.write_bytes(member * 5)


def one_row_group(path: Path) -> None:
    text = pa.array([f"{index} " * 300 for index in range(100)]).take(pa.array([i % 100 for i in range(150_000)]))
    table = pa.table({"text": text.cast(pa.large_string())})
    pq.write_table(table, path, row_group_size=1 << 30, use_dictionary=False, compression="none")


@pytest.mark.parametrize(
    ("name", "write", "expected", "limit"),
    [
        ("bomb.jsonl.zst", dense_zst, (1, "Reject"), 300),
        ("bomb.txt.gz", dense_gz, (1, "Reject"), 300),
        ("row_group.parquet", one_row_group, (150_000, "Record"), 80),
    ],
    ids=["zst", "gz", "parquet"],
)
def test_memory_is_bounded(
    name: str, write: Callable[[Path], None], expected: tuple[int, str], limit: int, tmp_path: Path
) -> None:
    write(tmp_path / name)
    count, kind, grown = measured(tmp_path / name)
    assert (count, kind) == expected
    assert grown < limit, "MiB"


# Parquet.


def write_parquet(path: Path, row_group_size: int = 4, **columns: object) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def columns_of_text() -> Iterator[tuple[str, pa.DataType]]:
    for type in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        yield str(type), type


@pytest.mark.parametrize("type", [type for _, type in columns_of_text()], ids=[name for name, _ in columns_of_text()])
def test_parquet_types_of_text(type: pa.DataType, tmp_path: Path) -> None:
    raw = [text.encode() if pa.types.is_binary(type) else text for text in DOCUMENTS]
    write_parquet(tmp_path / "a.parquet", text=pa.array(raw, type), id=pa.array(raw, type))
    records = read_all(f"{tmp_path}/a.parquet")
    assert texts(records) == DOCUMENTS
    assert [record.example_id for record in records if isinstance(record, Record)] == DOCUMENTS


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 7), st.data())
def test_row_group_ranges_partition(rows: int, per_group: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        write_parquet(path, per_group, text=[f"document {row}" for row in range(rows)])
        [whole] = plan(expand([str(path)]), 1 << 30)
        cuts = sorted({0, whole.end, *data.draw(st.lists(st.integers(0, whole.end), max_size=4))})
        parts = [
            WorkItem(whole.shard, whole.format, whole.size, whole.fingerprint, start, end)
            for start, end in itertools.pairwise(cuts)
        ]
        records = [record for part in parts for record in read(part)]
        assert [record.position for record in records] == list(range(rows))
        assert texts(records) == [f"document {row}" for row in range(rows)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, None], pa.uint64()), ["7", "{shard}:1"]),
        (pa.array(["seven", ""]), ["seven", "{shard}:1"]),
        (pa.array([0.5, 2.0]), ["0.5", "2.0"]),
        (pa.array([True, False]), ["true", "false"]),
    ],
    ids=["int", "string", "float", "bool"],
)
def test_parquet_ids(ids: pa.Array, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, text=["one", "two"], id=ids)
    found = [record.example_id for record in read_all(str(path)) if isinstance(record, Record)]
    assert found == [name.replace("{shard}", str(path)) for name in expected]


def test_token_ids_in_parquet_and_jsonl(tmp_path: Path) -> None:
    tokens = [[1, 2, 3], [0], [2**31 - 1, 5]]
    write_parquet(tmp_path / "a.parquet", input_ids=pa.array(tokens, pa.list_(pa.uint32())), id=["x", "y", "z"])
    rows = [{"input_ids": row, "id": id} for row, id in zip(tokens, "xyz", strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.parquet", "a.jsonl"):
        found = [record for record in read_all(f"{tmp_path}/{name}") if isinstance(record, Record)]
        assert [record.input_ids for record in found] == [(1, 2, 3), (0,), (2**31 - 1, 5)]
        assert [record.text for record in found] == [None, None, None]
        assert [record.example_id for record in found] == ["x", "y", "z"]


def test_text_and_token_ids_come_together(tmp_path: Path) -> None:
    rows = [("a", [1]), (None, [2]), ("", [3]), ("b", None)]
    tokens = pa.array([row[1] for row in rows], pa.large_list(pa.int64()))
    write_parquet(tmp_path / "a.parquet", text=pa.array([row[0] for row in rows]), input_ids=tokens)
    lines_ = [json.dumps({"text": text, "input_ids": ids}) + "\n" for text, ids in rows]
    (tmp_path / "a.jsonl").write_text("".join(lines_))
    for name in ("a.parquet", "a.jsonl"):
        found = [record for record in read_all(f"{tmp_path}/{name}") if isinstance(record, Record)]
        assert [(record.text, record.input_ids) for record in found] == [
            ("a", (1,)),
            (None, (2,)),
            (None, (3,)),
            ("b", None),
        ]
