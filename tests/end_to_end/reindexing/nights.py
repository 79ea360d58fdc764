"""What a corpus goes through from one night to the next, and the command that follows it."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipelines import cli
from tests.end_to_end.world import MODIFIED, World, digests, rows
from trackstar.index import Index


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
