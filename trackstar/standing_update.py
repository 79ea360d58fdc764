"""Brings a state of standing queries to another snapshot, by what changed between the two.

1. Kept rows whose file left the index, or that were taken down, drop out.
2. Files that are new are scored against all queries, and what is at or before a query's horizon is taken in.
3. Queries that then have fewer than k rows, though there may be more, are scored against all other files, too.

The result's first k are those of a full scan, to the last bit: a score depends on the row and the query alone.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from trackstar import removal
from trackstar.index import DataFile, Index, Snapshot
from trackstar.removal import Removals
from trackstar.removed_items import load_removals
from trackstar.standing_state import Kept, State, used_files
from trackstar.topk import TopK

Scan = Callable[[Sequence[DataFile], Sequence[int] | None], tuple[TopK, TopK | None]]
"""The best of the files' rows, as many as a state keeps, for all queries (None) or for those of the given numbers."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What an update scans.

    Args:
        added: Files that the state does not know: all queries.
        others: The snapshot's other files.
        again: Numbers of the queries that these are scanned for.
    """

    added: list[DataFile]
    others: list[DataFile]
    again: list[int]

    @property
    def num_files(self) -> int:
        """Files that are read."""
        return len(self.added) + (len(self.others) if self.again else 0)

    @property
    def num_bytes(self) -> int:
        """Bytes of them."""
        return sum(file.num_bytes for file in [*self.added, *(self.others if self.again else [])])


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in the index: a snapshot, without what was taken down.

    Args:
        snapshot: The snapshot.
        removals: What was taken down.
        take_downs: The names of the take-downs.
    """

    snapshot: Snapshot
    removals: Removals = dataclasses.field(default_factory=Removals)
    take_downs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, index: Index) -> "Contents":
        """The last snapshot, and all take-downs up to now."""
        take_downs = removal.take_downs(index.uri)
        return cls(index.snapshot(), load_removals(index), frozenset(entry.name for entry in take_downs))

    def holds(self, state: State) -> bool:
        """Whether the state is of these contents."""
        return (state.files, state.take_downs) == (self.keys, self.take_downs)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all files."""
        return frozenset(file.key for file in self.snapshot.files)

    def rows(self, top: TopK) -> np.ndarray:
        """[P] bool: which entries of a ranking are rows of the index. What left the index drops out here, and here alone."""
        shards = {file.key: file.shard for file in self.snapshot.files}
        stays = [key in shards and shards[key] not in self.removals.shards for key in top.uris]
        mask = np.array(stays, bool)[top.files]
        taken_down = self.removals.rows(top.example_ids)
        return mask if taken_down is None else mask & ~taken_down


def plan(state: State, contents: Contents, top_k: int) -> Work:
    """What an update would scan at most: rows of added files may yet fill the gaps that removed ones left."""
    state = _base(state, contents)
    return _work(state, contents, _short(_without_removed(state, contents), top_k))


def update(state: State, contents: Contents, top_k: int, scan: Scan) -> tuple[State, Work]:
    """The state of the index as it is now.

    Args:
        state: Of the index at any other time.
        contents: The index now.
        top_k: How many rows of each query, at each end, are to be exact.
        scan: Scores files, without what was taken down.

    Returns:
        The new state, and what was scanned for it.
    """
    state = _base(state, contents)
    ends = _without_removed(state, contents)
    added = _work(state, contents, []).added
    fresh = _ends(scan(added, None), added) if added else []
    ends = [end.joined(top) for end, top in zip(ends, fresh, strict=True)] if fresh else ends
    work = _work(state, contents, _short(ends, top_k))
    if work.again:
        parts = [[TopK.empty(len(work.again), end.best.k, end.best.largest)] for end in ends]
        for part, top in zip(parts, fresh, strict=False):
            part.append(top.choose(work.again))
        if work.others:
            for part, top in zip(parts, _ends(scan(work.others, work.again), work.others), strict=True):
                part.append(top)
        numbers = np.array(work.again)
        ends = [end.replaced(numbers, TopK.merge(part)) for end, part in zip(ends, parts, strict=True)]
    used = used_files(ends)
    shards = {file.key: file.shard for file in contents.snapshot.files if file.key in used}
    return State(contents.snapshot.version, contents.take_downs, contents.keys, shards, tuple(ends)), work


def _base(state: State, contents: Contents) -> State:
    """The state to begin with: none, if a take-down was undone by hand, for then rows came back that no file tells of."""
    if state.take_downs <= contents.take_downs:
        return state
    best = state.ends[0].best
    return State.empty(best.num_queries, best.k, len(state.ends) > 1)


def _without_removed(state: State, contents: Contents) -> list[Kept]:
    return [end.where(contents.rows(end.best)) for end in state.ends]


def _work(state: State, contents: Contents, again: Sequence[int]) -> Work:
    files = contents.snapshot.files
    added = [file for file in files if file.key not in state.files]
    return Work(added, [file for file in files if file.key in state.files], list(again))


def _short(ends: Sequence[Kept], top_k: int) -> list[int]:
    """The queries to score against every row: those that are short of k, and with them those that soon will be.

    Reading the files is the cost, so a pass over all of them also fills up the queries that have lost half their spare rows.
    """
    if not any(end.short_of(top_k).any() for end in ends):
        return []
    soon = [end.short_of((top_k + end.best.k + 1) // 2) for end in ends]
    return [int(number) for number in np.flatnonzero(np.any(soon, axis=0))]


def _ends(tops: tuple[TopK, TopK | None], files: Sequence[DataFile]) -> list[TopK]:
    """Proponents and, if any, opponents, with keys for URIs."""
    keys = {file.uri: file.key for file in files}
    return [dataclasses.replace(top, uris=tuple(keys[uri] for uri in top.uris)) for top in tops if top is not None]
