"""The second pass on made-up encodings: the rows that were proposed are found, read and scored as a scan would."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.indexes import make_encodings, make_index, unit_vectors
from tests.naive_forms import STORAGES, values
from trackstar import encoding_reader, index_pair
from trackstar.encoding_reader import EncodingReader
from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.manifest import StoredItem
from trackstar.queries import Change, QuerySet
from trackstar.rescoring import Missing, RowKeys, SecondPass, proposals, texts_elsewhere
from trackstar.scoring import ScanSettings, scan_files
from trackstar.topk import TopK
from trackstar.two_pass import recalls, report_uri, sample_queries

ROWS = 60
K = 7


def part(encodings: Encodings, rows: slice) -> Encodings:
    """Some rows of it."""
    lists = {"example_ids": list, "texts": list}
    fields = {
        field.name: lists.get(field.name, lambda value: value)(getattr(encodings, field.name)[rows])
        for field in dataclasses.fields(encodings)
    }
    return Encodings(**fields)


def both(folder: Path, better: torch.Tensor, storage: str, **fields: object) -> tuple[Index, Index]:
    """A cheap index in three files, and a better one in two that are cut elsewhere, of the same examples."""
    norms = np.linspace(0.5, 2.0, ROWS)
    cheap = make_encodings(unit_vectors(ROWS, 32, seed=9))
    one, _ = make_index(
        folder / "cheap", [[part(cheap, rows)] for rows in (slice(0, 20), slice(20, 40), slice(40, 60))], storage="sign"
    )
    other = make_encodings(better, grad_norm=norms)
    two, _ = make_index(
        folder / "better", [[part(other, slice(0, 33))], [part(other, slice(33, 60))]], storage=storage, **fields
    )
    return one, two


def links_of(one: Index, two: Index) -> dict[str, list[str]]:
    return index_pair.pair(one, one.snapshot(), two, two.snapshot()).links


def all_of(index: Index, queries: int) -> tuple[TopK, TopK]:
    """Every row is proposed for every query, at both ends."""
    dimension = index.spec.dimension
    settings = ScanSettings(ROWS, opponents=True)
    uris = [file.uri for file in index.snapshot().files]
    proponents, opponents = scan_files(uris, QuerySet.of(unit_vectors(queries, dimension, seed=4)), settings)
    assert opponents is not None
    return proponents, opponents


def entries(top: TopK) -> list[tuple[int, float, str, str, int]]:
    uris = [top.uris[file] for file in top.files]
    return list(
        zip(
            top.queries.tolist(), top.scores.tolist(), top.example_ids.to_pylist(), uris, top.rows.tolist(), strict=True
        )
    )


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", ["plain", "norms", "changed", "blocks"])
def test_all_rows_proposed_equal_a_scan(tmp_path: Path, storage: str, kind: str) -> None:
    """Scores to the last bit, ties, places: whatever the form, the preconditioner and the grouping."""
    vectors = unit_vectors(ROWS, 32, seed=1)
    vectors[40] = vectors[11]  # ties across files
    one, two = both(tmp_path, vectors, storage)
    queries = QuerySet(unit_vectors(5, 32, seed=2), torch.linspace(1, 2, 5))
    change = None
    if kind in ("changed", "blocks"):
        change = Change(
            torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(3)),
            "block" if kind == "blocks" else "vector",
        )
        queries = queries.fold(change)
    settings = ScanSettings(K, opponents=True, unit_norm=kind != "norms")
    uris = [file.uri for file in two.snapshot().files]
    expected = scan_files(uris, queries, settings, change)
    second = SecondPass(queries, settings, change)
    for count in (1, 2, 5):
        groups = proposals(all_of(one, 5), links_of(one, two), count)
        assert len(groups) == count
        assert sum(proposed.num_pairs for group in groups for proposed in group) == 2 * 5 * ROWS
        found = [second.of_index(group, two) for group in groups]
        assert not [missing for _, some in found for missing in some]
        for end in (0, 1):
            merged = TopK.merge([tops[end] for tops, _ in found])  # type: ignore[misc]
            assert entries(merged) == entries(expected[end])  # type: ignore[arg-type]


def test_only_what_is_proposed_is_ranked(tmp_path: Path) -> None:
    one, two = both(tmp_path, unit_vectors(ROWS, 32, seed=1), "bfloat16")
    proponents, _ = all_of(one, 3)
    few = proponents.cut(10)
    [group] = proposals([few], links_of(one, two), 1)
    queries = QuerySet.of(unit_vectors(3, 32, seed=2))
    (best, opponents), missing = SecondPass(queries, ScanSettings(K), None).of_index(group, two)
    assert (opponents, missing) == (None, [])
    exact = values(unit_vectors(ROWS, 32, seed=1), "bfloat16") @ queries.vectors.double().numpy().T
    for query in range(3):
        names = few.example_ids[few.entries(query)].to_pylist()
        order = sorted(names, key=lambda name: (-exact[int(name[1:]), query], name))[:K]
        assert best.example_ids[best.entries(query)].to_pylist() == order


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("near", [0, 10**6])
def test_single_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, rewritten: bool, near: int
) -> None:
    """Across pages, near and far, of our files and of those that another program wrote."""
    monkeypatch.setattr(encoding_reader, "_NEAR_BYTES", near)
    vectors = unit_vectors(50, 20, seed=5)
    index, [item] = make_index(
        tmp_path,
        [[make_encodings(vectors[:20]), make_encodings(vectors[20:], start=20)]],
        storage=storage,
        block_rows=2,
        block_columns=5,
    )
    uri = item.uri
    if rewritten:
        table = pq.read_table(uri)
        uri = str(tmp_path / "rewritten.parquet")
        pq.write_table(table, uri, row_group_size=17, compression="zstd")
    expected = values(vectors, storage)
    reader = EncodingReader(uri, 20)
    for rows in ([0, 1, 2, 19, 20, 21, 49], [33], [], list(range(50))):
        chunks = reader.take(np.array(rows, np.int64))
        found: dict[int, np.ndarray] = {}
        for chunk in chunks:
            assert chunk.owned
            found |= {chunk.row + i: row for i, row in enumerate(chunk.stored.values().numpy())}
        assert set(rows) <= set(found)
        for row, numbers in found.items():
            np.testing.assert_allclose(numbers, expected[row], rtol=1e-12)
        if near == 0:
            assert sorted(found) == rows
    assert index.spec.dimension == 20


def test_nothing_else_of_the_encodings_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(2000, 256, seed=5)
    _, [item] = make_index(tmp_path, [[make_encodings(vectors)]], block_rows=8, block_columns=16)
    reader = EncodingReader(item.uri, 256)
    asked: list[int] = []
    read = reader._read
    monkeypatch.setattr(reader, "_read", lambda offset, length: asked.append(length) or read(offset, length))
    reader.take(np.array([3, 900, 901, 1999]))
    assert asked == [512, 1024, 512]


def test_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    one, two = both(tmp_path, unit_vectors(ROWS, 32, seed=1), "bfloat16")
    links = {uri: others[:1] for uri, others in links_of(one, two).items()}
    [first] = links_of(one, two)[one.snapshot().files[0].uri][:1]
    there = set(pq.read_table(first, columns=["example_id"])["example_id"].to_pylist())
    [group] = proposals(all_of(one, 2), links, 1)
    (best, _), missing = SecondPass(
        QuerySet.of(unit_vectors(2, 32, seed=2)), ScanSettings(ROWS, opponents=True), None
    ).of_index(group, two)
    assert {example.example_id for example in missing} == {f"e{row}" for row in range(ROWS)} - there
    assert set(best.example_ids.to_pylist()) == there
    assert all(example.shard == "shard" and example.position == int(example.example_id[1:]) for example in missing)
    assert isinstance(missing[0], Missing)
    assert "trackstar verify" in missing[0].reason


def test_passages_of_one_record_are_told_apart(tmp_path: Path) -> None:
    names = [f"d{row // 3}#{row % 3}" for row in range(12)]
    plain = make_encodings(unit_vectors(12, 32), names)
    encodings = dataclasses.replace(plain, positions=np.arange(12) // 3 * 100)
    one, _ = make_index(tmp_path / "one", [[encodings]])
    _, [item] = make_index(tmp_path / "other", [[encodings]], storage="sign")
    rows = np.array([1, 2, 6, 11])
    keys = RowKeys.read(one.snapshot().files[0].uri, rows)
    assert keys.find(EncodingReader(item.uri, 32)).tolist() == rows.tolist()
    shuffled = [5, 2, 7, 9, 1]
    _, [item] = make_index(tmp_path / "few", [[_taken(encodings, shuffled)]])
    assert keys.find(EncodingReader(item.uri, 32)).tolist() == [4, 1, -1, -1]


def _taken(encodings: Encodings, rows: list[int]) -> Encodings:
    fields = {field.name: getattr(encodings, field.name) for field in dataclasses.fields(encodings)}
    return Encodings(
        **{
            name: [value[row] for row in rows] if isinstance(value, list) else value[rows]
            for name, value in fields.items()
        }
    )


@pytest.mark.parametrize(
    "changed", [{"num_tokens": np.full(ROWS, 8, np.int32)}, {"loss": np.full(ROWS, 3.5, np.float32)}]
)
def test_other_texts_are_refused(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    one, _ = both(tmp_path, unit_vectors(ROWS, 32, seed=1), "bfloat16")
    encodings = dataclasses.replace(make_encodings(unit_vectors(ROWS, 32)), **changed)
    other, _ = make_index(tmp_path / "other", [[encodings]])
    [group] = proposals(all_of(one, 2), links_of(one, other), 1)
    with pytest.raises(TrackStarError, match=r"was made of different texts: of 7 tokens with a loss of 2\.5"):
        SecondPass(QuerySet.of(unit_vectors(2, 32)), ScanSettings(K, opponents=True), None).of_index(group, other)


def test_an_encoding_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    one, two = both(tmp_path, unit_vectors(ROWS, 32, seed=1), "float32")
    damaged = two.snapshot().files[1].uri
    place = EncodingReader(damaged, 32)._pages[0].offset + 17 * 128 + 3 * 4  # type: ignore[index]
    with open(damaged, "r+b") as file:
        file.seek(place)
        file.write(np.float32(np.nan).tobytes())
    [group] = proposals(all_of(one, 2), links_of(one, two), 1)
    with pytest.raises(TrackStarError, match="row 17: the stored encoding holds NaN or infinity"):
        SecondPass(QuerySet.of(unit_vectors(2, 32)), ScanSettings(K, opponents=True), None).of_index(group, two)


def test_texts_of_the_other_index(tmp_path: Path) -> None:
    one, two = both(tmp_path, unit_vectors(ROWS, 32, seed=1), "bfloat16", stores_text=False)
    uri = two.snapshot().files[0].uri
    rows = [4, 0, 26]
    names = RowKeys.read(uri, np.array(rows)).ids
    others = [file.uri for file in one.snapshot().files]
    assert texts_elsewhere(uri, rows, others, 32) == [f"text {name[1:]}" for name in names]


@pytest.mark.parametrize("seed", range(20))
def test_overlapping_ranges_equal_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def cut(name: str) -> list[StoredItem]:
        edges = [0, *sorted(generator.choice(np.arange(1, 40), int(generator.integers(0, 12)), replace=False)), 40]
        items = [StoredItem(f"{name}{i}", int(edges[i]), int(edges[i + 1])) for i in range(len(edges) - 1)]
        return [items[i] for i in generator.permutation(len(items))]

    items, others = cut("a"), cut("b")
    found = index_pair._overlaps(items, others)
    for item in items:
        units = set(range(item.start, item.end))
        assert set(found[item.key]) == {other.key for other in others if units & set(range(other.start, other.end))}
    unknown = [*others, StoredItem("b?", 0, 0)]
    assert all(set(keys) == {other.key for other in unknown} for keys in index_pair._overlaps(items, unknown).values())


def test_recalls() -> None:
    def top(rows: list[list[int]]) -> TopK:
        queries = np.repeat(np.arange(len(rows)), [len(some) for some in rows])
        flat = np.array([row for some in rows for row in some], np.int64)
        ids = pa.array([f"e{row}" for row in flat])
        files = (flat >= 100).astype(np.int32)
        return TopK.select(
            len(rows), 4, True, queries, -np.arange(len(flat)).astype(float), ids, ("a", "b"), files, flat
        )

    assert recalls(top([[1, 2, 3, 4], [5], [6]]), top([[4, 3, 102, 9], [5], []])) == [0.5, 1.0, 1.0]


def test_the_sample_of_queries_is_fixed() -> None:
    assert sample_queries(100, 5) == sample_queries(100, 5) == sorted(sample_queries(100, 5))
    assert len(set(sample_queries(100, 5))) == 5
    assert sample_queries(3, 5) == [0, 1, 2]
    assert sample_queries(3, 0) == []


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("r.jsonl", "r.two_pass.json"),
        ("gs://b/x.y/r.json", "gs://b/x.y/r.two_pass.json"),
        ("out/results", "out/results.two_pass.json"),
        ("r.v1", "r.v1.two_pass.json"),
    ],
)
def test_where_the_report_lies(output: str, expected: str) -> None:
    assert report_uri(output) == expected
