"""Bad records become rejects with a reason; bad shards fail with their name; nothing passes in silence."""

import gzip
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests import gcs as object_store
from trackstar import storage
from trackstar.corpus import Record, Reject, WorkItem, expand, plan, read
from trackstar.errors import ShardError, TrackStarError

pytest_plugins = ["tests.gcs"]

GOOD = b'{"text": "good", "id": "good"}'


def items_of(path: str | Path, target_bytes: int = 1 << 30) -> list[WorkItem]:
    return plan(expand([str(path)]), target_bytes)


def read_all(path: str | Path) -> list[Record | Reject]:
    return [record for item in items_of(path) for record in read(item)]


def reasons(records: Sequence[Record | Reject]) -> list[str]:
    return [record.reason if isinstance(record, Reject) else "" for record in records]


# Records.


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "malformed JSON: Unterminated string starting at at column 10"),
        (b"not json", "malformed JSON: Expecting value at column 1"),
        (b'{"text": "a"} {"text": "b"}', "malformed JSON: Extra data at column 15"),
        (b'{"text": "a\tb"}', "malformed JSON: Invalid control character at at column 12"),
        (b"[" * 100_000, "malformed JSON: nested too deeply"),
        (b'{"text": "a", "id": ' + b"9" * 5000 + b"}", "malformed JSON: a number with too many digits"),
        (b"[1, 2]", "a list, not a JSON object"),
        (b'"text"', "a string, not a JSON object"),
        (b"12", "a number, not a JSON object"),
        (b"null", "null, not a JSON object"),
        (b"{}", "neither text nor input_ids; its fields are: none"),
        (b'{"url": 1, "content": "a"}', "neither text nor input_ids; its fields are: content, url"),
        (b'{"text": null}', "neither text nor input_ids; its fields are: text"),
        (b'{"text": 7}', "text is a number, not a string"),
        (b'{"text": ["a"]}', "text is a list, not a string"),
        (b'{"text": true, "input_ids": [1]}', "text is a boolean, not a string"),
        (b'{"text": ""}', "text is empty"),
        (b'{"text": " \\n\\t\\u00a0\\u3000"}', "text is empty"),
        (b'{"text": "caf\xe9"}', "the line is not valid UTF-8 (byte 13)"),
        (b"\xff\xfe{\x00", "the line is not valid UTF-8 (byte 0)"),
        (b'{"text": "half \\ud83d"}', "text holds half of a surrogate pair, which is no character"),
        (b'{"text": "a", "id": "\\udc00"}', "id holds half of a surrogate pair, which is no character"),
        (b'{"text": "a", "id": {"x": 1}}', "id is an object, not a string or a number"),
        (b'{"text": "a", "id": []}', "id is a list, not a string or a number"),
        (b'{"input_ids": []}', "input_ids is empty"),
        (b'{"input_ids": "1 2"}', "input_ids is a string, not a list of token ids"),
        (b'{"input_ids": {"0": 1}}', "input_ids is an object, not a list of token ids"),
        (b'{"input_ids": [1, -1]}', "input_ids holds -1, which is no token id"),
        (b'{"input_ids": [1, 2147483648]}', "input_ids holds 2147483648, which is no token id"),
        (b'{"input_ids": [1, 2.0]}', "input_ids holds 2.0, which is no token id"),
        (b'{"input_ids": [true]}', "input_ids holds True, which is no token id"),
        (b'{"input_ids": [null]}', "input_ids holds None, which is no token id"),
        (b'{"input_ids": ["1"], "text": "a"}', "input_ids holds '1', which is no token id"),
    ],
)
def test_every_bad_line_is_rejected_with_its_reason(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    first, reject, last = read_all(path)
    assert reject == Reject(str(path), len(GOOD) + 1, reason, line.decode("utf-8", "replace")[:200])
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert first.example_id == last.example_id == "good"
    assert pickle.loads(pickle.dumps((first, reject))) == (first, reject)


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("7", "7"),
        ('"seven"', "seven"),
        ("-0.5", "-0.5"),
        ("true", "true"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ('"\\u00e9"', "é"),
        ("null", "{shard}:0"),
        ('""', "{shard}:0"),
    ],
)
def test_ids(id: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "id": {id}}}\n')
    [record] = read_all(path)
    assert isinstance(record, Record)
    assert record.example_id == expected.replace("{shard}", str(path))


def test_unusual_but_good_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'  {"text": "a", "n": NaN, "other": [{}]}  \n{"text": "\\ud83d\\ude80"}\n{"text": "x", "text": "b"}'
    )
    assert [record.text for record in read_all(path) if isinstance(record, Record)] == ["a", "🚀", "b"]


def test_bad_lines_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\ncaf\xe9\n \t\n{}\n")
    assert reasons(read_all(path)) == ["", "the line is not valid UTF-8 (byte 3)", ""]
    assert [record.position for record in read_all(path)] == [0, 5, 13]


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    texts = [b"one", b"caf\xe9", None, b"", b" \n", b"last"]
    data = b"".join(text or b"" for text in texts)
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text or b""))
    valid = sum(1 << at for at, text in enumerate(texts) if text is not None)
    column = pa.Array.from_buffers(  # a string column that holds a byte no string may hold, as other writers leave them
        pa.string(),
        len(texts),
        [pa.py_buffer(bytes([valid])), pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(data)],
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    found = read_all(path)
    invalid = "text is not valid UTF-8 (byte 3)"
    assert reasons(found) == ["", invalid, "neither text nor input_ids", "text is empty", "text is empty", ""]
    assert [record.position for record in found] == list(range(6))
    assert found[1] == Reject(str(path), 1, invalid, "caf\N{REPLACEMENT CHARACTER}")


def test_bad_token_ids_of_parquet(tmp_path: Path) -> None:
    tokens = pa.array([[1], [], None, [-1], [None], [1 << 40]], pa.list_(pa.int64()))
    pq.write_table(pa.table({"input_ids": tokens}), tmp_path / "a.parquet")
    assert reasons(read_all(tmp_path / "a.parquet")) == [
        "",
        "input_ids is empty",
        "neither text nor input_ids",
        "input_ids holds -1, which is no token id",
        "input_ids holds None, which is no token id",
        "input_ids holds 1099511627776, which is no token id",
    ]


# Shards.


def raises_naming(path: str | Path, reason: str) -> None:
    with pytest.raises(ShardError, match=reason) as caught:
        read_all(path)
    assert caught.value.shard == str(path)
    assert str(caught.value).count(str(path)) == 1


LINES = b"".join(
    b'{"text": "document number %d %s"}\n' % (index, os.urandom(20).hex().encode()) for index in range(300)
)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)],
    ids=["gz", "zst"],
)
def test_a_compressed_stream_cut_anywhere_fails(suffix: str, compress: object, tmp_path: Path) -> None:
    data = compress(LINES)  # type: ignore[operator]
    path = tmp_path / f"a.jsonl.{suffix}"
    for kept in [2, 5, 10, *range(11, len(data) - 1, len(data) // 15), len(data) - 8, len(data) - 4, len(data) - 1]:
        path.write_bytes(data[:kept])
        raises_naming(path, r"truncated (gzip|zstd) stream")
    path.write_bytes(data)
    assert len(read_all(path)) == 300
    path.write_bytes(data + data[: len(data) // 2])
    raises_naming(path, r"truncated (gzip|zstd) stream")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl.gz", b"", "an empty file, not a .gz stream"),
        ("a.txt.zst", b"", "an empty file, not a .zst stream"),
        ("a.jsonl.gz", LINES, "corrupt gzip stream: Not a gzipped file"),
        ("a.jsonl.zst", LINES, "corrupt zstd stream: .*Unknown frame descriptor"),
        ("a.jsonl.gz", gzip.compress(LINES) + b"garbage", "corrupt gzip stream: Not a gzipped file"),
        ("a.jsonl.zst", zstandard.compress(LINES) + b"garbage", "corrupt zstd stream"),
        ("a.jsonl.gz", gzip.compress(LINES)[:-8] + bytes(8), "corrupt gzip stream: CRC check failed"),
        (
            "a.jsonl.zst",
            zstandard.ZstdCompressor(write_checksum=True).compress(LINES)[:-4] + bytes(4),
            "corrupt zstd stream: .*checksum",
        ),
        ("a.jsonl.gz", gzip.compress(LINES)[:500] + b"\xff" * 300 + gzip.compress(LINES)[800:], "corrupt gzip stream"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.parquet", LINES, "cannot be read as Parquet: .*magic bytes"),
    ],
)
def test_streams_that_are_not_what_their_name_says(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    raises_naming(path, reason)


def parquet_bytes(**columns: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, use_dictionary=False, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    data = parquet_bytes(text=LINES.decode().splitlines())
    path = tmp_path / "a.parquet"
    for kept in (3, 10, len(data) // 2, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:kept])
        raises_naming(path, "cannot be read as Parquet")


def test_a_damaged_page_of_parquet(tmp_path: Path) -> None:
    data = bytearray(parquet_bytes(text=LINES.decode().splitlines()))
    data[len(data) // 3] ^= 0xFF
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    raises_naming(path, "cannot be read as Parquet: .*CRC")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"content": ["a"], "url": ["b"]}, "no column text or input_ids; its columns are: content, url"),
        ({"text": [1]}, "column text holds int64; it must hold strings"),
        ({"text": [{"text": "a"}]}, "column text holds struct<text: string>; it must hold strings"),
        ({"input_ids": ["1 2"]}, "column input_ids holds string; it must hold lists of integers"),
        ({"input_ids": [[0.5]]}, "column input_ids holds list<.*double>; it must hold lists of integers"),
        ({"text": ["a"], "id": [["b"]]}, "column id holds list<.*string>; it must hold strings or numbers"),
    ],
)
def test_columns_that_do_not_fit(columns: dict[str, object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes(**columns))
    raises_naming(path, reason)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    raises_naming(tmp_path / "a.parquet", "2 columns are named text")


@pytest.fixture(params=["local", "gs"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("gcs") if request.param == "gs" else str(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("kind", ["modified", "content"])
def test_a_shard_that_vanishes_or_changes_after_planning(base: str, name: str, kind: str) -> None:
    data = {"a.jsonl": LINES, "a.jsonl.gz": gzip.compress(LINES), "a.parquet": parquet_bytes(text=["a", "b"])}[name]
    uri = f"{base}/{name}"
    storage.write_bytes(uri, data)
    [item] = plan(expand([uri], kind), 1 << 30)  # type: ignore[arg-type]
    storage.write_bytes(uri, data[:-1] + b"?")
    with pytest.raises(ShardError, match=r"a\..*: changed since the work was planned .*; run the command again"):
        next(read(item))
    storage.delete(uri)
    with pytest.raises(ShardError, match=rf"^{uri}: .*check the path"):
        next(read(item))
    storage.write_bytes(uri, data)
    if kind == "content":
        assert len(list(read(item))) == (2 if name == "a.parquet" else 300)
    else:
        with pytest.raises(ShardError, match="changed since"):
            next(read(item))


@pytest.mark.parametrize("kind", ["modified", "content"])
def test_a_shard_that_changes_while_it_is_read(base: str, kind: str) -> None:
    uri = f"{base}/a.jsonl"
    storage.write_bytes(uri, GOOD + b"\n")
    [item] = plan(expand([uri], kind), 1 << 30)  # type: ignore[arg-type]
    records = read(item)
    assert isinstance(next(records), Record)
    storage.write_bytes(uri, GOOD + b"\n" + GOOD + b"\n")
    with pytest.raises(ShardError, match="changed while it was read"):
        list(records)


def test_a_shard_that_vanishes_while_it_is_read(base: str) -> None:
    uri = f"{base}/a.jsonl"
    storage.write_bytes(uri, GOOD + b"\n" + GOOD)
    records = read(items_of(uri)[0])
    next(records)
    storage.delete(uri)
    with pytest.raises(ShardError, match=rf"^{uri}: "):
        list(records)


def test_a_shard_that_shrinks_to_a_row_group_fewer(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(text=["a"]))
    [item] = items_of(tmp_path / "a.parquet")
    beyond = WorkItem(item.shard, item.format, item.size, item.fingerprint, 0, 2)
    with pytest.raises(ShardError, match="has 1 row groups, not 2"):
        list(read(beyond))


def test_an_object_that_the_store_would_decompress(gcs: str, gcs_server: str) -> None:
    """Its size is the compressed one, its content the other: ranges would end too early and nobody would notice."""
    blob = object_store.client(gcs_server).bucket(gcs.removeprefix("gs://")).blob("a.jsonl")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(LINES))
    with pytest.raises(
        ShardError, match=r"a\.jsonl: stored with Content-Encoding gzip.*--clear-content-encoding gs://"
    ):
        expand([f"{gcs}/*.jsonl"])


def test_expand_in_a_missing_bucket(gcs: str) -> None:
    assert gcs
    with pytest.raises(TrackStarError, match="gs://no-such-bucket/"):
        expand(["gs://no-such-bucket/*.jsonl"])


def test_errors_survive_the_way_back_from_a_worker(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES)[:-9])
    with pytest.raises(ShardError) as caught:
        read_all(tmp_path / "a.jsonl.gz")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.shard, again.reason) == (str(caught.value), caught.value.shard, caught.value.reason)


def test_rejects_are_plain_values(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff" * 5000)
    [reject] = read_all(tmp_path / "a.jsonl")
    assert isinstance(reject, Reject)
    assert len(reject.snippet) == 200
    json.dumps([reject.shard, reject.position, reject.reason, reject.snippet]).encode()
