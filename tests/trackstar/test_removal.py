"""Take-downs: results as if the rows were not there, at once; files without them, as if encoded so; an audit log."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.indexes import make_encodings, make_index, make_spec, unit_vectors, write_file
from tests.naive_forms import STORAGES
from tests.trackstar.test_scoring import brute_force, cut, listed, uris
from trackstar import item_file, removal, rewriting, scoring
from trackstar.corpus import Reject, WorkItem
from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.item_footer import ItemCounts
from trackstar.queries import Change
from trackstar.removal import Removals, TakeDown, read_ids, take_downs
from trackstar.removed_items import (
    Hit,
    all_hits,
    files_to_purge,
    find_hits,
    load_removals,
    predecessor,
    take_down,
    written_without,
)
from trackstar.rewriting import rewrite_item
from trackstar.scoring import QuerySet, ScanSettings, scan_files
from trackstar.storage import read_bytes

pytest_plugins = ["tests.gcs"]


def remaining(files: list[Encodings], ids: set[str]) -> list[Encodings]:
    return [file.where(np.array([name not in ids for name in file.example_ids], bool)) for file in files]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_scan_equals_brute_force_over_what_remains(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """k entries still, if there are k rows; whatever is removed, and however rows lie in blocks, groups and files."""
    num_rows = data.draw(st.sampled_from([1, 3, 17, 64, 131]), label="rows")
    k = data.draw(st.sampled_from([1, 3, 10]), label="k")
    cuts = data.draw(st.lists(st.integers(0, num_rows), max_size=3), label="cuts")
    removed = data.draw(st.sets(st.integers(0, num_rows + 3)), label="removed")
    unit_norm = data.draw(st.booleans(), label="unit norm")
    changed = data.draw(st.booleans(), label="changed")
    storage = data.draw(st.sampled_from(STORAGES), label="storage")
    monkeypatch.setattr(item_file, "ROW_GROUP_BYTES", data.draw(st.sampled_from([400, 3000, 10**6]), label="row group"))
    monkeypatch.setattr(scoring, "_BLOCK_ROWS", (1, data.draw(st.sampled_from([3, 40, 4096]), label="block")))
    vectors = unit_vectors(num_rows, 32, data.draw(st.integers(0, 10**6), label="seed"))
    files = cut(make_encodings(vectors, grad_norm=np.linspace(0.5, 2, num_rows)), cuts)
    _, items = make_index(tmp_path_factory.mktemp("index"), [[file] for file in files], storage=storage)
    queries = QuerySet.of(unit_vectors(3, 32, 7))
    change = Change(torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(5))) if changed else None
    how = ScanSettings(k, opponents=True, unit_norm=unit_norm)
    ids = {f"e{i}" for i in removed}
    found = scan_files(uris(items), queries, how, change, Removals(frozenset(ids)))
    rest = remaining(files, ids)
    _, without = make_index(tmp_path_factory.mktemp("rest"), [[file] for file in rest], storage=storage)
    expected = scan_files(uris(without), queries, how, change)
    assert [listed(end) for end in found] == [listed(end) for end in expected]
    left = num_rows - len(ids & {f"e{i}" for i in range(num_rows)})
    assert [len(entries) for entries in listed(found[0])] == [min(k, left)] * 3
    if change is None and unit_norm:
        assert listed(found[0]) == brute_force(rest, queries.vectors, k, True, storage)
        assert listed(found[1]) == brute_force(rest, queries.vectors, k, False, storage)


def test_a_removed_shard_is_not_scanned(tmp_path: Path) -> None:
    files = cut(make_encodings(unit_vectors(30, 32)), [10, 20])
    _index, items = make_index(tmp_path, [[file] for file in files])
    other = dataclasses.replace(items[1])
    queries = QuerySet.of(unit_vectors(2, 32, 1))
    everything = Removals(shards=frozenset(["shard"]))
    found, _ = scan_files(uris([other]), queries, ScanSettings(5), removals=everything)
    assert listed(found) == [[], []]
    found, _ = scan_files(uris(items), queries, ScanSettings(5), removals=Removals(shards=frozenset(["other"])))
    assert listed(found) == brute_force(files, queries.vectors, 5)


def test_a_damaged_encoding_that_was_taken_down_is_not_looked_at(tmp_path: Path) -> None:
    """What is gone cannot fail a scan."""
    _index, [item] = make_index(tmp_path, [[make_encodings(unit_vectors(9, 32))]])
    raw = bytearray(Path(item.uri).read_bytes())
    row = unit_vectors(9, 32)[4].bfloat16().view(torch.uint8).numpy().tobytes()
    at = raw.index(row)
    raw[at : at + 2] = b"\xff\x7f"  # NaN
    Path(item.uri).write_bytes(raw)
    queries = QuerySet.of(unit_vectors(2, 32, 1))
    with pytest.raises(TrackStarError, match=r"row 4: .*trackstar verify --repair"):
        scan_files([item.uri], queries, ScanSettings(3))
    found, _ = scan_files([item.uri], queries, ScanSettings(9), removals=Removals(frozenset(["e4"])))
    assert [len(entries) for entries in listed(found)] == [8, 8]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("splits", [False, True])
def test_ids_and_passages(splits: bool, many: bool) -> None:
    """Few ids are looked up by Arrow, many by Python; both give what `covers` gives."""
    names = ["a", "a#0", "a#12", "a#", "a#x", "#1", "b#1", "b", "b#1#2", "ä\u2028", "a\n#1"]
    more = frozenset(f"x{i}" for i in range(1000)) if many else frozenset()
    removals = Removals(frozenset(["a", "b#1", "ä\u2028", ""]) | more, splits=splits)
    found = removals.rows(names)
    assert found is not None
    assert found.tolist() == [removals.covers(name) for name in names]
    gone = {name for name, is_gone in zip(names, found, strict=True) if is_gone}
    assert gone == ({"a", "a#0", "a#12", "b#1", "b#1#2", "ä\u2028", "#1"} if splits else {"a", "b#1", "ä\u2028"})
    assert removals.rows(["c", "d"]) is None
    assert removals.mask(["c"], "s") is None
    assert Removals(shards=frozenset(["s"])).mask(["c"], "s").tolist() == [True]  # type: ignore[union-attr]


def test_what_workers_read_is_what_was_saved(tmp_path: Path) -> None:
    removals = Removals(frozenset(["a", "ü"]), frozenset(["s"]), splits=True)
    uri = removals.save(str(tmp_path))
    assert uri is not None
    again = Removals.read(uri)
    assert again == removals and again.hash == removals.hash
    assert removals.hash != Removals(frozenset(["a", "ü"]), frozenset(["s"])).hash
    assert bool(removals) and not bool(Removals())
    assert Removals().save(str(tmp_path)) is None


def test_the_log_says_who_when_and_why(gcs: str, tmp_path: Path) -> None:
    for where in (str(tmp_path), f"{gcs}/index"):
        assert take_downs(where) == [] and not removal.load(where, False)
        entries = [
            TakeDown.new(["b", "a\nü"], ["s"], "court order 12\n", 3, 2, 1),
            TakeDown.new(["c"], [], "", None, 0, 0),
        ]
        for entry in entries:
            entry.publish(where)
        found = take_downs(where)
        assert sorted(found, key=lambda entry: entry.name) == sorted(entries, key=lambda entry: entry.name)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found[0].when)
        assert "@" in found[0].who
        assert removal.load(where, True) == Removals(frozenset(["a\nü", "b", "c"]), frozenset(["s"]), True)
        assert removal.carry_over(where, f"{where}-new") == removal.carry_over(where, f"{where}-new") == 2
        assert take_downs(f"{where}-new") == found


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1, -12])
def test_a_damaged_take_down_is_never_passed_over(tmp_path: Path, keep: float) -> None:
    TakeDown.new(["a", "b"], ["s"], "", 1, 1, 0).publish(str(tmp_path))
    [path] = (tmp_path / "removed").glob("*.jsonl")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    if keep == -1:  # the last newline
        assert len(take_downs(str(tmp_path))) == 1
        return
    with pytest.raises(TrackStarError, match=f"{path.name}: this record of a take-down is damaged"):
        take_downs(str(tmp_path))


@pytest.mark.parametrize("long_documents", ["truncate", "split"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_rewritten_file_is_that_of_the_rows_that_remain(
    gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, long_documents: str
) -> None:
    """In a local index and in a store; in one step or in two."""
    spec = make_spec(storage=storage, long_documents=long_documents)
    monkeypatch.setattr(item_file, "ROW_GROUP_BYTES", 7 * spec.bytes_per_encoding)
    monkeypatch.setattr(rewriting, "_PIECE", 3 * spec.dimension)
    names = [f"e{i // 2}#{i % 2}" if long_documents == "split" else f"e{i}" for i in range(20)]
    rows = make_encodings(unit_vectors(20, 32), names)
    if long_documents == "split":  # passages of a document begin where it begins
        rows = dataclasses.replace(rows, positions=rows.positions // 2)
    rejects = [Reject("shard", 21, "no text", "x", "bad"), Reject("shard", 22, "not JSON", "y")]
    whole = WorkItem("shard", "jsonl", 10**6, "version 1", 0, 10**6)
    gone = ("bad", "e3", "e5")
    item = dataclasses.replace(whole, removed=gone)
    mask = np.array([name.split("#")[0] not in gone for name in names])
    kept = rows.where(mask)
    files = []
    for where in (str(tmp_path / "index"), f"{gcs}/{storage}-{long_documents}"):
        index = Index.create(where, spec)
        counts = ItemCounts(records=40, rejected=2, truncated=3, examples=20, tokens=140)
        index.write_rejects(whole.key(spec.hash), rejects)
        index.write_item(whole.key(spec.hash), "shard", iter([rows]), lambda counts=counts: counts.footer(whole))
        found = predecessor(index, item, index.existing_keys(), written_without(index))
        assert found == whole.key(spec.hash)
        first = rewrite_item(index, item, found)
        assert rewrite_item(index, item, found) == first
        assert [reject.example_id for reject in index.rejects_of(first.key)] == [""]
        files.append(read_bytes(first.uri))
        expected = ItemCounts(40, 1, 3, len(kept), 7 * len(kept), 3)
        assert ItemCounts.of(first.metadata) == expected
        assert expected.examples == (16 if long_documents == "split" else 18)
        # What encoding would write.
        other = Index.create(f"{where}-encoded", spec)
        encoded = other.write_item(first.key, "shard", iter([kept]), lambda expected=expected: expected.footer(item))
        files.append(read_bytes(encoded.uri))
        # From a file that is without some of it already; of passages, how many records these were cannot be told.
        index.delete_item(first.key)
        between = dataclasses.replace(whole, removed=("e3",))
        rewrite_item(index, between, found)
        index.delete_item(found)
        found = predecessor(index, item, index.existing_keys(), written_without(index))
        if long_documents == "split":
            assert found is None
            continue
        assert found == between.key(spec.hash)
        files.append(read_bytes(rewrite_item(index, item, found).uri))
    assert len(set(files)) == 1


def test_what_files_hold_is_found_whoever_looks_first(gcs: str) -> None:
    index = Index.create(f"{gcs}/hits", make_spec())
    items = [write_file(index, i, [make_encodings(unit_vectors(6, 32, i), start=6 * i)]) for i in range(3)]
    index.write_rejects(items[2].key, [Reject("s", 9, "no text", "x", "bad"), Reject("s", 11, "not JSON", "y")])
    removals = Removals(frozenset(["e1", "e7", "e8", "bad", "s:11", "none"]))
    told: list[int] = []
    hits = find_hits(index, index.existing_keys(), removals, told.append)
    assert told == [1, 2, 3]
    assert hits == [
        Hit(items[0].key, ("e1",), 1),
        Hit(items[1].key, ("e7", "e8"), 2),
        Hit(items[2].key, ("bad", "s:11"), 0),
    ]
    entry = take_down(index, removals, hits[:1], {items[0].key}, "r", 3)  # the other files came meanwhile
    assert all_hits(index) == hits
    assert (entry.not_found, entry.version) == (5, None)
    assert load_removals(index) == removals
    assert files_to_purge(index) == {item.key for item in items}
    index.commit(items[:2])
    assert files_to_purge(index) == {items[2].key}


def test_files_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    for content, expected in {
        b"a\nb\r\n\n  \nc": ["a", "b", "c"],
        b"\xef\xbb\xbfa\na\n": ["a"],
        " ä b \n#x\n[1]\n".encode(): [" ä b ", "#x", "[1]"],
        b'{"id": "a", "text": "x"}\n\n{"example_id": "b", "id": "z"}\n{"id": 7}\n': ["a", "b", "7"],
        "a\u2028b\n".encode(): ["a\u2028b"],
    }.items():
        path.write_bytes(content)
        assert read_ids(str(path)) == expected


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        (b"", "holds no id"),
        (b"\n \n", "holds no id"),
        (b"a\nb\xff\n", ":2: not UTF-8"),
        ("a\n".encode("utf-16"), ":1: not UTF-8"),
        (b'{"id": "a"}\nb\n', ":2: not JSON"),
        (b'{"id": "a"}\n{"name": "b"}\n', ":2: no `example_id` or `id`"),
        (b'{"id": "a"}\n["b"]\n', ":2: no `example_id` or `id`"),
        (b'{"id": ""}\n', ":1: no `example_id` or `id`"),
        (b'{"id": ["a"]}\n', ":1: no `example_id` or `id`"),
        (b'{"id": "\\ud800"}\n', ":1: no `example_id` or `id`"),
    ],
)
def test_bad_files_of_ids(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "ids"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrackStarError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        read_ids(str(path))
