"""Whatever bit is flipped, whatever is cut off, gone or put in: it is found, and what is whole is not accused."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest

from tests.indexes import make_encodings, make_index, make_spec, unit_vectors, write_file
from trackstar import checksums, removal, verification
from trackstar.checksums import Checksum
from trackstar.corpus import Reject
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.item_footer import ItemFile
from trackstar.removal import Removals
from trackstar.removed_items import find_hits, take_down
from trackstar.verification import Finding, advice, check_item, check_log, check_settings, checks

pytest_plugins = ["tests.gcs"]


def small_index(where: str) -> Index:
    """Three files, one with rejects, in two versions; and a take-down."""
    index = Index.create(where, make_spec())
    index.write_rejects(f"{1:032x}", [Reject("shard", 7, "no text", "x", "seven")])
    items = [write_file(index, i, [make_encodings(unit_vectors(5, 32, i), start=5 * i)]) for i in range(3)]
    index.commit(items[:2])
    index.commit(items)
    removals = Removals(frozenset(["e3"]))
    keys = index.existing_keys()
    take_down(index, removals, find_hits(index, keys, removals), keys, "", 1)
    return index


def everything(index: Index) -> list[Finding]:
    of_log = check_log(index)
    to_check, foreign = checks(index, not of_log)
    found = [finding for check in to_check for finding in check_item(index, check)]
    return [*foreign, *found, *check_settings(index), *of_log]


def test_a_whole_index_passes(gcs: str, tmp_path: Path) -> None:
    for where in (str(tmp_path / "index"), f"{gcs}/index"):
        index = small_index(where)
        assert everything(index) == []
        assert len(checks(index)[0]) == 3
        index.commit([])
        assert everything(index) == []
        assert [check.named for check in checks(index)[0]] == [None] * 3


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Many seeded places in every file; and after it is put right, all is well again."""
    index = small_index(str(tmp_path))
    generator = random.Random(0)
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "spec.json")
    assert {path.parent.name for path in paths} >= {
        "encodings",
        "_delta_log",
        "rejects",
        "removed",
        "hits",
        "checksums",
    }
    for path in paths:
        data = path.read_bytes()
        places = 40 if path.suffix == ".parquet" else 8
        for offset in generator.sample(range(len(data)), min(len(data), places)):
            damaged = bytearray(data)
            damaged[offset] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            found = everything(index)
            if path.parent.name == "_delta_log" or path.parent.parent.name == "checksums":
                assert found, f"{path}: byte {offset}"
            else:
                assert any(path.stem.split(".")[0] in str(finding) for finding in found), f"{path}: byte {offset}"
        path.write_bytes(data)
    assert everything(index) == []


def test_every_cut_is_found(tmp_path: Path) -> None:
    index = small_index(str(tmp_path))
    generator = random.Random(1)
    for path in sorted((tmp_path / "encodings").glob("*.parquet")):
        data = path.read_bytes()
        for keep in [0, 1, len(data) - 1, *generator.sample(range(len(data)), 10)]:
            path.write_bytes(data[:keep])
            [finding] = everything(index)
            assert (finding.kind, finding.key) == ("truncated", path.stem)
            assert finding.what == f"truncated: {keep:,} bytes of {len(data):,}"
        path.write_bytes(data + b"\0")
        [finding] = everything(index)
        assert finding.kind == "changed" and "1 bytes longer" in finding.what
        path.write_bytes(data)


def test_what_is_missing_or_foreign(tmp_path: Path) -> None:
    index = small_index(str(tmp_path / "index"))
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "index", whole)
    files = sorted((tmp_path / "index" / "encodings").glob("*.parquet"))

    def kinds() -> dict[str, str]:
        found = {finding.path: finding.kind for finding in everything(index)}
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(whole, tmp_path / "index")
        return found

    files[0].unlink()
    assert kinds() == {f"encodings/{files[0].name}": "missing"}
    (tmp_path / "index" / "rejects" / f"{1:032x}.jsonl").unlink()
    assert kinds() == {f"rejects/{1:032x}.jsonl": "missing"}
    Path(checksums.uri_of(index.uri, f"encodings/{files[0].name}")).unlink()
    assert kinds() == {f"encodings/{files[0].name}": "unrecorded"}
    shutil.copy(files[0], files[1])  # another item's file under its name
    assert kinds() == {f"encodings/{files[1].name}": "changed"}
    shutil.copy(files[0], files[0].with_name("copy.parquet"))
    (files[0].parent / "sub").mkdir()
    shutil.copy(files[0], files[0].parent / "sub" / files[0].name)
    assert kinds() == {"encodings/copy.parquet": "foreign", f"encodings/sub/{files[0].name}": "foreign"}
    shutil.copy(files[0], files[0].with_name("f" * 32 + ".parquet"))  # nobody's, and unrecorded
    assert kinds() == {f"encodings/{'f' * 32}.parquet": "unrecorded"}
    log = tmp_path / "index" / "encodings" / "_delta_log"
    (log / f"{1:020d}.json").unlink()  # the last commit: readers would see the one before
    assert kinds() == {f"encodings/_delta_log/{1:020d}.json": "log"}
    (log / "notes.txt").write_text("x")
    assert kinds() == {"encodings/_delta_log/notes.txt": "foreign"}


def test_a_log_that_says_what_files_do_not_hold(tmp_path: Path) -> None:
    """A log that another program wrote: no checksum of it was kept, so its entries are held against the files."""
    index = small_index(str(tmp_path))
    path = tmp_path / "encodings" / "_delta_log" / f"{1:020d}.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            line["add"]["stats"] = (
                line["add"]["stats"]
                .replace('"numRecords":5', '"numRecords":6')
                .replace('"numRecords": 5', '"numRecords": 6')
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path(checksums.uri_of(index.uri, f"encodings/_delta_log/{1:020d}.json")).unlink()
    assert verification.unrecorded_log(index) == [f"encodings/_delta_log/{1:020d}.json"]
    [finding] = everything(index)
    assert finding.kind == "log" and "the log says 6 rows" in finding.what and "holds 5 rows" in finding.what
    assert "build-index" in advice([finding])[0]


def test_a_file_of_another_size_can_be_committed(gcs: str, tmp_path: Path) -> None:
    """Encoded again on another machine, an item may take some bytes more; the old entry of the log is replaced."""
    for where in (str(tmp_path), f"{gcs}/sizes"):
        index, items = make_index_at(where)
        more = make_encodings(unit_vectors(5, 32), [f"a longer name {i}" for i in range(5)])
        anew = write_file(index, 0, [more])
        assert anew.num_bytes != items[0].num_bytes
        [finding] = everything(index)
        assert finding.kind == "log"
        assert index.commit([anew, items[1]]) == 1
        assert everything(index) == []
        assert [file.num_bytes for file in index.snapshot().files] == [anew.num_bytes, items[1].num_bytes]
        assert index.commit([anew, items[1]]) == 1


def make_index_at(where: str) -> tuple[Index, list[ItemFile]]:
    index = Index.create(where, make_spec())
    items = [write_file(index, i, [make_encodings(unit_vectors(5, 32, i))]) for i in range(2)]
    index.commit(items)
    return index, items


def test_a_checkpoint_and_a_shortened_log_pass(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    index, items = make_index(tmp_path, [[make_encodings(unit_vectors(3, 32, i))] for i in range(3)])
    for keep in itertools.islice(itertools.cycle([2, 3]), 6):
        index.commit(items[:keep])
    table = DeltaTable(str(tmp_path / "encodings"))
    table.create_checkpoint()
    index.record_log()
    assert everything(index) == []
    (tmp_path / "encodings" / "_delta_log" / f"{0:020d}.json").unlink()
    assert everything(index) == []
    index.commit(items[:1])
    assert everything(index) == []
    checkpoint = next((tmp_path / "encodings" / "_delta_log").glob("*.checkpoint.parquet"))
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 4
    checkpoint.write_bytes(data)
    assert [finding.kind for finding in everything(index)] == ["log"]


def test_findings_travel_in_files(tmp_path: Path) -> None:
    findings = [Finding("encodings/b.parquet", "changed", "ü\n", "b"), Finding("a", "missing", "x")]
    verification.save_findings(str(tmp_path / "1.jsonl"), findings)
    verification.save_findings(str(tmp_path / "2.jsonl"), [])
    assert verification.load_findings(str(tmp_path)) == sorted(findings)


def test_checksums_are_of_the_bytes(gcs: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    (tmp_path / "x").write_bytes(data)
    told: list[int] = []
    expected = Checksum.of_bytes(data)
    assert Checksum.of(str(tmp_path / "x"), told.append) == Checksum.of_local(tmp_path / "x") == expected
    assert told[-1] == len(data) == expected.num_bytes and len(told) > 1
    for where in (str(tmp_path), gcs):
        assert checksums.recorded(where, "a/x") is None
        checksums.record(where, "a/x", expected)
        assert checksums.recorded(where, "a/x") == expected
        assert checksums.recorded_paths(where, "a") == {"a/x"}
    Path(checksums.uri_of(str(tmp_path), "a/x")).write_text("{}")
    with pytest.raises(TrackStarError, match="not a checksum"):
        checksums.recorded(str(tmp_path), "a/x")


def test_a_damaged_take_down_is_told(tmp_path: Path) -> None:
    index = small_index(str(tmp_path))
    [path] = (tmp_path / "removed").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"e3"', b'"e4"'))
    [finding] = everything(index)
    assert finding.path == removal.FOLDER and "damaged" in finding.what
