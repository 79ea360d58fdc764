"""A scan on a device with little memory: smaller blocks, then fewer queries, and the same result to the byte."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from tests.indexes import make_encodings, make_index, unit_vectors
from tests.naive_forms import STORAGES
from tests.trackstar.test_scoring import brute_force, cut, listed, uris
from trackstar import scoring
from trackstar.approximate import Bounded, QueryProduct
from trackstar.candidates import Candidates, Pairs
from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.queries import Change
from trackstar.scan_settings import ScanLimit
from trackstar.scoring import QuerySet, ScanSettings, TopK, scan_files

D = 32
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."
HOW = ScanSettings(7, opponents=True)


@dataclasses.dataclass
class Room:
    """What products take: a device with room for `vectors` rows and queries together."""

    vectors: int
    tried: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """(queries, rows) of every product."""

    def take(self, queries: int, rows: int) -> None:
        self.tried.append((queries, rows))
        if queries + rows > self.vectors:
            raise torch.OutOfMemoryError(MESSAGE)

    @property
    def failures(self) -> int:
        return sum(queries + rows > self.vectors for queries, rows in self.tried)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """The scan's device; large at first."""
    found = Room(10**9)
    product = QueryProduct._product

    def limited(self: QueryProduct, rows, *arguments):  # type: ignore[no-untyped-def]
        found.take(self._count, len(rows))
        return product(self, rows, *arguments)

    monkeypatch.setattr(QueryProduct, "_product", limited)
    return found


def made(folder: Path, storage: str = "bfloat16", rows: int = 500) -> tuple[list[Encodings], list[str]]:
    files = cut(make_encodings(unit_vectors(rows, D)), [rows // 2])
    return files, uris(make_index(folder, [[file] for file in files], storage=storage)[1])


def same(one: tuple[TopK, TopK | None], other: tuple[TopK, TopK | None]) -> bool:
    return all(
        listed(a) == listed(b) and a.scores.tobytes() == b.scores.tobytes()  # type: ignore[union-attr]
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_blocks_are_halved_and_that_is_remembered(
    room: Room, tmp_path: Path, storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    files, where = made(tmp_path, storage)
    queries = QuerySet.of(unit_vectors(20, D, 5))
    expected = scan_files(where, queries, HOW)
    assert listed(expected[0]) == brute_force(files, queries.vectors, 7, True, storage)
    largest = max(rows for _, rows in room.tried)
    assert largest > 60
    room.vectors, room.tried = 20 + 60, []
    limit = ScanLimit(torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        assert same(scan_files(where, queries, HOW, limit=limit), expected)
    assert 0 < room.failures <= 4
    assert limit.rows.most is not None and limit.rows.most <= 60 < 2 * limit.rows.most + 2
    assert limit.queries.most is None
    assert [record.getMessage() for record in caplog.records] == [
        f"cpu ran out of memory on {largest} rows of the index: fewer are taken at once from here on"
    ]
    room.tried = []
    assert same(scan_files(where, queries, HOW, limit=limit), expected)
    assert not room.failures


@pytest.mark.parametrize("changed", [False, True])
def test_queries_are_halved_where_rows_are_few_already(room: Room, tmp_path: Path, changed: bool) -> None:
    _, where = made(tmp_path)
    queries = QuerySet.of(unit_vectors(21, D, 5))
    change = Change(torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(5))) if changed else None
    expected = scan_files(where, queries, HOW, change)
    room.vectors, room.tried = 30, []
    limit = ScanLimit(torch.device("cpu"))
    assert same(scan_files(where, queries, HOW, change, limit=limit), expected)
    # With 21 queries there is no room for 16 rows; with ten there is for 20.
    assert limit.queries.most == 10
    assert {count for count, rows in room.tried if count + rows <= 30} == {10, 1}
    assert min(rows for count, rows in room.tried if count == 21) == 16
    room.tried = []
    assert same(scan_files(where, queries, HOW, change, limit=limit), expected)
    assert not room.failures


def test_where_not_even_one_query_fits_the_scan_fails_with_a_reason(room: Room, tmp_path: Path) -> None:
    _, where = made(tmp_path)
    room.vectors = 8
    with pytest.raises(
        TrackStarError,
        match=r"a scan of the index for one query does not fit into the memory of cpu \(CUDA out of memory",
    ):
        scan_files(where, QuerySet.of(unit_vectors(5, D, 5)), HOW)


def test_other_errors_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, where = made(tmp_path)
    tries = 0

    def broken(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(QueryProduct, "_product", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        scan_files(where, QuerySet.of(unit_vectors(5, D, 5)), HOW)
    assert tries == 1


def test_what_was_found_before_memory_ran_out_does_not_count_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One end of the ranking is searched, and memory runs out while the other is."""
    _, where = made(tmp_path)
    queries = QuerySet.of(unit_vectors(5, D, 5))
    expected = scan_files(where, queries, HOW)
    find, failed = Candidates.find, []

    def finds(self: Candidates, scores: Bounded, rows) -> Pairs:  # type: ignore[no-untyped-def]
        if not self.largest and len(rows) > 40:
            failed.append(len(rows))
            raise torch.OutOfMemoryError(MESSAGE)
        return find(self, scores, rows)

    monkeypatch.setattr(Candidates, "find", finds)
    monkeypatch.setattr(scoring, "_BLOCK_ROWS", (1, 100))
    assert same(scan_files(where, queries, HOW), expected)
    assert failed
