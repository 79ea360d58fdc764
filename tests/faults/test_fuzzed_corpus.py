"""Commands over corpora of anything at all: they end with a message, never a traceback, and no record is uncounted."""

import gzip
import json
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines import cli
from tests.end_to_end.world import World, make_model
from tests.faults.test_fuzz import COLUMNS, NAMES, ODD_TEXTS, damaged, odd_line
from trackstar.index import Index
from trackstar.item_footer import ItemCounts

pytestmark = pytest.mark.timeout(200)
LARGE = ["--item_bytes", "1000000"]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model, and an index fitted on a few good documents."""
    world = World(tmp_path_factory.mktemp("fuzzed"))
    make_model(world.model)
    world.corpus.mkdir()
    (world.corpus / "good.jsonl").write_text("".join(f'{{"text": "document number {i} is good"}}\n' for i in range(30)))
    assert world.fit(world.root / "fitted") == cli.EXIT_DONE
    return world


@pytest.fixture
def own(fuzzed: World, tmp_path: Path) -> World:
    """The same, to be spoiled."""
    (tmp_path / "model").symlink_to(fuzzed.model)
    shutil.copytree(fuzzed.corpus, tmp_path / "corpus")
    shutil.copytree(fuzzed.root / "fitted", tmp_path / "index")
    return World(tmp_path)


def counts(index: Index) -> ItemCounts:
    """Of all files of the last snapshot."""
    total = ItemCounts()
    for file in index.snapshot().files:
        item = index.has_item(file.key)
        assert item is not None
        of_item = ItemCounts.of(item.metadata)
        assert of_item.examples + of_item.rejected + of_item.removed == of_item.records
        assert of_item.examples == item.num_rows
        total += of_item
    return total


def fill(corpus: Path) -> int:
    """Files of odd records in every format, thousands of empty ones, and odd names: how many records there are."""
    generator = random.Random(0)
    expected = 30  # the good ones
    for number in range(4):
        given = [odd_line(generator).replace(b"\n", b" ") for _ in range(100)]
        expected += sum(1 for line in given if line and not line.isspace())
        data = b"\n".join([b"", *given])
        suffix, pack = [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress), ("", bytes)][number]
        (corpus / f"odd{number}.jsonl{suffix}").write_bytes(pack(data))
    noise = b"\n".join(generator.randbytes(60).replace(b"\n", b" ") for _ in range(50))
    expected += sum(1 for line in noise.split(b"\n") if line and not line.isspace())
    (corpus / "noise.txt").write_bytes(b"\n" + noise)
    texts = [text for text in ODD_TEXTS if text != "\ud800"]
    ids = pa.array((["i" * 1_000_000, "é", "\0", None, ""] * 3)[: len(texts)])
    pq.write_table(pa.table({"text": texts, "id": ids}), corpus / "texts.parquet")
    pq.write_table(pa.table({"input_ids": COLUMNS["input_ids"][1]}), corpus / "tokens.parquet")
    expected += len(texts) + 3
    for number in range(2000):
        (corpus / f"empty{number}.jsonl").touch()
    for number in range(60):
        (corpus / f"blank{number}.txt").write_bytes(b"\n\n \r\n")
    for name in NAMES:
        (corpus / name).write_bytes(b'{"text": "a document of an odd name"}\n')
        expected += 1
    (corpus / "folder.jsonl").mkdir()
    (corpus / "loop.jsonl").symlink_to("loop.jsonl")
    return expected


def test_every_record_is_counted(own: World, capfd: pytest.CaptureFixture[str]) -> None:
    records = fill(own.corpus)
    place = own.root / "index"
    assert own.build(place, *LARGE, "--max_reject_fraction", "1") == cli.EXIT_DONE
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert max(map(len, shown.splitlines())) < 2000
    index = Index.open(str(place))
    total = counts(index)
    assert total.records == records
    rejects = list(index.rejects())
    assert len(rejects) == total.rejected > 100
    assert all(reject.reason and len(reject.reason) < 2000 for reject in rejects)
    results = own.root / "results.jsonl"
    (own.root / "q.jsonl").write_text('{"inputs_plaintext": "document number", "targets_plaintext": "7"}\n')
    files = ["--queries", str(own.root / "q.jsonl"), "--output", str(results)]
    assert (
        cli.main(["score", "--index", str(place), "--model", str(own.model), *files, "--top_k", "500"]) == cli.EXIT_DONE
    )
    [line] = results.read_text().split("\n")[:-1]
    assert len(json.loads(line)["proponents"]) == min(500, total.examples)


def test_damaged_shards_fail_by_name_and_nothing_else(own: World, capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(1)
    good = (own.corpus / "good.jsonl").read_bytes()
    packed = {"gz": gzip.compress(good), "zst": zstandard.ZstdCompressor(write_checksum=True).compress(good)}
    for number in range(20):
        for suffix, data in packed.items():
            (own.corpus / f"d{number}.jsonl.{suffix}").write_bytes(damaged(data, generator))
    for number, kind in enumerate(packed):
        (own.corpus / f"a{number}.jsonl.{kind}").touch()  # among the first, which are shown
    place = own.root / "index"
    assert own.build(place, *LARGE, "--max_reject_fraction", "1") == cli.EXIT_FAILED
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert "work item(s) failed, nothing was committed" in shown
    assert "a0.jsonl.gz: an empty file, not a .gz stream" in shown
    kept = Index.open(str(place)).existing_keys()
    assert kept
    for path in own.corpus.glob("*.*.*"):
        path.unlink()
    assert own.build(place, *LARGE) == cli.EXIT_DONE
    assert counts(Index.open(str(place))).records == 30


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bad.parquet", b"PAR1" + os.urandom(100) + b"PAR1"),
        ("empty.parquet", b""),
        ("half.parquet", b"PAR1"),
        ("what.bin", b"x"),
        (os.fsdecode(b"\xff\xfe.jsonl"), b"{}"),
    ],
)
@pytest.mark.parametrize("command", ["build-index", "fit"])
def test_what_cannot_be_planned_is_named(own: World, capfd, command: str, name: str, data: bytes) -> None:
    (own.corpus / name).write_bytes(data)
    run = own.build if command == "build-index" else own.fit
    code = run(own.root / ("index" if command == "build-index" else "another"))
    assert code in (cli.EXIT_FAILED, cli.EXIT_USAGE)
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert name in shown or ascii(name)[1:-1] in shown
    assert "error:" in shown


@pytest.mark.parametrize("data", [b"", b"\n \n\r\n"])
@pytest.mark.timeout(60)
def test_a_corpus_of_nothing(own: World, capfd: pytest.CaptureFixture[str], data: bytes) -> None:
    (own.corpus / "good.jsonl").write_bytes(data)
    assert own.build(own.root / "index") == cli.EXIT_DONE
    assert Index.open(str(own.root / "index")).snapshot().num_rows == 0
    assert own.fit(own.root / "another") in (cli.EXIT_FAILED, cli.EXIT_USAGE)
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert "empty" in shown
