"""Standing queries follow the index by what changed, and what they say equals a scan of everything."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.indexes import make_encodings, make_spec, unit_vectors, write_file
from tests.naive_forms import STORAGES
from trackstar.errors import TrackStarError
from trackstar.index import DataFile, Index, Snapshot
from trackstar.item_footer import ItemFile
from trackstar.queries import Change, QuerySet
from trackstar.removal import Removals
from trackstar.scoring import ScanSettings, scan_files
from trackstar.standing_state import State
from trackstar.standing_update import Contents, plan, update
from trackstar.topk import TopK

Listed = list[list[tuple[float, str, str, int]]]


def listed(top: TopK) -> Listed:
    """Per query, (score, id, key of the file, row) from the best on."""
    ids, files = top.example_ids.to_pylist(), [uri.rsplit("/", 1)[-1].removesuffix(".parquet") for uri in top.uris]
    entries = list(zip(top.scores.tolist(), ids, [files[f] for f in top.files], top.rows.tolist(), strict=True))
    return [entries[top.entries(query)] for query in range(top.num_queries)]


class Scanner:
    """Scans the real files, and notes which."""

    def __init__(self, queries: QuerySet, how: ScanSettings, change: Change | None = None):
        self.queries, self.how, self.change = queries, how, change
        self.removals = Removals()
        self.files: list[str] = []
        self.calls: list[tuple[list[str], list[int] | None]] = []

    def __call__(self, files: Sequence[DataFile], numbers: Sequence[int] | None) -> tuple[TopK, TopK | None]:
        assert files
        self.calls.append(([file.key for file in files], None if numbers is None else list(numbers)))
        queries = self.queries if numbers is None else self.queries.choose(numbers)
        return scan_files([file.uri for file in files], queries, self.how, self.change, self.removals)

    def everything(self, contents: Contents, top_k: int) -> list[Listed]:
        """By a scan of all files, and nothing else."""
        how = dataclasses.replace(self.how, top_k=top_k)
        uris = [file.uri for file in contents.snapshot.files]
        tops = scan_files(uris, self.queries, how, self.change, contents.removals)
        return [listed(top) for top in tops if top is not None]


def data_files(items: Sequence[ItemFile]) -> list[DataFile]:
    return sorted(
        (DataFile(item.uri, item.shard, item.num_rows, item.num_bytes) for item in items), key=lambda file: file.uri
    )


def check(state: State, scanner: Scanner, contents: Contents, top_k: int) -> None:
    found = [listed(top) for top in state.tops(top_k) if top is not None]
    assert found == scanner.everything(contents, top_k)  # floats compare bit by bit: there is no −0.0
    assert contents.holds(state)


TAKE_DOWNS = st.tuples(
    st.frozensets(st.sampled_from([f"e{i}" for i in range(12)]), max_size=1),
    st.frozensets(st.sampled_from([f"shard{i}" for i in range(8)]), max_size=1),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_changes_equals_a_full_scan(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Few different rows, so that scores tie; ids in several files; files that come, go and are rewritten; take-downs."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6), label="seed"))
    top_k = data.draw(st.integers(1, 4), label="k")
    spare = data.draw(st.integers(0, 5), label="spare")
    num_queries = data.draw(st.sampled_from([1, 3, 6]), label="queries")
    kinds = data.draw(st.sampled_from([2, 6, 50]), label="different rows")
    opponents = data.draw(st.booleans(), label="opponents")
    unit_norm = data.draw(st.booleans(), label="unit norm")
    different = torch.randint(-2, 3, (kinds, 32), generator=generator).float() / 4 + 0.01
    queries = torch.randint(-3, 4, (num_queries, 32), generator=generator) / 8
    change = None
    if unit_norm and data.draw(st.booleans(), label="change"):
        matrices = torch.eye(16).repeat(2, 1, 1) + 0.1 * torch.randn(2, 16, 16, generator=generator)
        change = Change(matrices, data.draw(st.sampled_from(["vector", "block"]), label="normalisation"))
    query_set = QuerySet(queries, torch.rand(num_queries, generator=generator) + 0.1)
    scanner = Scanner(
        query_set.fold(change) if change else query_set,
        ScanSettings(top_k + spare, opponents=opponents, unit_norm=unit_norm),
        change,
    )
    storage = data.draw(st.sampled_from(STORAGES), label="storage")
    index = Index.create(str(tmp_path_factory.mktemp("index")), make_spec(storage=storage))
    pool: list[ItemFile] = []
    for number in range(8):
        count = data.draw(st.integers(0, 5), label="rows")
        chosen = torch.randint(kinds, (count,), generator=generator)
        ids = [f"e{int(i)}" for i in torch.randint(12, (count,), generator=generator)]
        norms = (chosen % 3 + 1).numpy()
        encodings = make_encodings(different[chosen], ids, norms)
        for copy in range(
            2
        ):  # the same rows in a file of another name, as after a re-index that changed nothing in them
            pool.append(write_file(index, 2 * number + copy, [encodings], shard=f"shard{number}"))
    state = State.empty(num_queries, top_k + spare, opponents)
    taken_down: frozenset[str] = frozenset()
    present = data.draw(st.sets(st.integers(0, len(pool) - 1)), label="files")
    for version in range(data.draw(st.integers(1, 7), label="updates")):
        present ^= data.draw(st.sets(st.integers(0, len(pool) - 1), min_size=1, max_size=3), label="files changed")
        ids, shards = data.draw(TAKE_DOWNS, label="taken down")
        if data.draw(st.integers(0, 5), label="undone") == 0:  # by deleting files of the log
            taken_down = frozenset()
        taken_down |= ids | shards
        removals = Removals(
            frozenset(name for name in taken_down if name[0] == "e"),
            frozenset(name for name in taken_down if name[0] == "s"),
        )
        contents = Contents(Snapshot(version, data_files([pool[i] for i in present])), removals, taken_down)
        scanner.calls.clear()
        scanner.removals = removals
        expected = plan(state, contents, top_k)
        state, work = update(state, contents, top_k, scanner)
        check(state, scanner, contents, top_k)
        assert work.added == expected.added
        assert sum(len(files) for files, _ in scanner.calls) <= len(present)  # never more than one pass
        event(f"scanned again: {bool(work.again)}")
        if data.draw(st.booleans(), label="save and load"):
            loaded = State.from_bytes(state.to_bytes("set"), "set", "here")
            assert [listed(top) for top in loaded.tops(top_k) if top] == [listed(t) for t in state.tops(top_k) if t]
            state = loaded


@pytest.fixture
def apart(tmp_path: Path) -> tuple[Index, list[ItemFile], Scanner]:
    """Twenty files of one row; query 0 ranks them in their order, query 1 the other way round."""
    index = Index.create(str(tmp_path / "index"), make_spec())
    base = unit_vectors(1, 32, 5)[0]
    items = [
        write_file(index, i, [make_encodings((1 - i / 40) * base[None], [f"e{i}"])], f"shard{i}") for i in range(20)
    ]
    return index, items, Scanner(QuerySet.of(torch.stack([base, -base])), ScanSettings(6))


def contents_of(items: Sequence[ItemFile], version: int = 0) -> Contents:
    return Contents(Snapshot(version, data_files(items)))


def test_spare_rows_save_the_second_pass(apart: tuple[Index, list[ItemFile], Scanner]) -> None:
    """k = 4 of 6 kept: two lost rows cost nothing, the third a pass, and only for the query that lost them."""
    _, items, scanner = apart
    start, work = update(State.empty(2, 6, False), contents_of(items), 4, scanner)
    assert work.num_files == 20
    for lost in range(5):
        scanner.calls.clear()
        contents = contents_of(items[lost:], 1)
        state, work = update(start, contents, 4, scanner)
        check(state, scanner, contents, 4)
        assert (work.again, scanner.calls[:-1]) == ([0] if lost > 2 else [], [])
        assert plan(start, contents, 4) == work
        assert work.num_files == (20 - lost if lost > 2 else 0)
    # Whoever lost half the spare rows is filled up in the same pass.
    contents = contents_of(items[3:-1], 1)
    assert update(start, contents, 4, scanner)[1].again == [0]
    assert update(start, contents_of(items[3:-2], 1), 4, scanner)[1].again == [0, 1]


def test_rewritten_files_fill_the_gaps_that_they_leave(apart: tuple[Index, list[ItemFile], Scanner]) -> None:
    index, items, scanner = apart
    state, _ = update(State.empty(2, 6, False), contents_of(items), 4, scanner)
    base = scanner.queries.vectors[0]
    again = [
        write_file(index, 100 + i, [make_encodings((1 - i / 40) * base[None], [f"e{i}"])], f"shard{i}")
        for i in range(6)
    ]
    contents = contents_of([*items[6:], *again], 1)
    assert plan(state, contents, 4).again == [0]  # at most
    state, work = update(state, contents, 4, scanner)
    assert (len(work.added), work.again, work.num_files) == (6, [], 6)
    check(state, scanner, contents, 4)


def test_rows_that_tie_with_the_horizon(tmp_path: Path) -> None:
    """Whoever comes in with the horizon's score and a later name is behind rows that the state does not know."""
    index = Index.create(str(tmp_path / "index"), make_spec())
    row = unit_vectors(1, 32)
    items = [write_file(index, i, [make_encodings(row, [name])]) for i, name in enumerate("abcde")]
    scanner = Scanner(QuerySet.of(row), ScanSettings(2))
    state, _ = update(State.empty(1, 2, False), contents_of(items[:4]), 1, scanner)
    for files, again in ((items[1:], []), (items[2:], [0])):
        contents = contents_of(files, state.version + 1)
        state, work = update(state, contents, 1, scanner)
        check(state, scanner, contents, 1)
        assert work.again == again


def test_an_index_that_is_emptied_and_filled_again(apart: tuple[Index, list[ItemFile], Scanner]) -> None:
    _, items, scanner = apart
    state, _ = update(State.empty(2, 6, False), contents_of(items), 4, scanner)
    state, work = update(state, contents_of([], 1), 4, scanner)
    assert len(state.ends[0].best) == work.num_files == 0
    for number, files in enumerate([items[:2], items[:3], items, items[5:9]]):
        contents = contents_of(files, 2 + number)
        state, _ = update(state, contents, 4, scanner)
        check(state, scanner, contents, 4)


def test_nothing_new_reads_nothing(apart: tuple[Index, list[ItemFile], Scanner]) -> None:
    _, items, scanner = apart
    state, _ = update(State.empty(2, 6, False), contents_of(items), 4, scanner)
    scanner.calls.clear()
    later, work = update(state, contents_of(items, 9), 4, scanner)
    assert (scanner.calls, work.num_files, work.num_bytes, later.version) == ([], 0, 0, 9)
    assert [listed(top) for top in later.tops(4) if top] == [listed(top) for top in state.tops(4) if top]


def test_a_state_that_cannot_be_used_is_refused(apart: tuple[Index, list[ItemFile], Scanner]) -> None:
    _, items, scanner = apart
    state, _ = update(State.empty(2, 6, True), contents_of(items), 4, Scanner(scanner.queries, ScanSettings(6, True)))
    content = state.to_bytes("set")
    loaded = State.from_bytes(content, "set", "here")
    assert (loaded.version, loaded.files, loaded.shards) == (state.version, state.files, state.shards)
    assert [listed(end.horizon) for end in loaded.ends] == [listed(end.horizon) for end in state.ends]
    with pytest.raises(TrackStarError, match=r"here: not a state of these queries \(of other queries"):
        State.from_bytes(content, "another", "here")
    for damage in (content[: len(content) // 2], b"", content.replace(b'"capacity"', b'"capocity"')):
        with pytest.raises(TrackStarError, match="delete this file and run `trackstar standing update`"):
            State.from_bytes(damage, "set", "here")
