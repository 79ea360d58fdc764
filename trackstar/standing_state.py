"""What a set of standing queries knows of one snapshot: each query's best rows, and down to where that knowledge is complete.

A state holds, for each query and each end of the ranking, every row of its snapshot that is at or before a *horizon* in the
total order of `trackstar.topk`; without a horizon, every row there is. Taking rows away keeps this true. Adding rows does too,
if those at or before the horizon are taken in. So a state follows the index by what changed, and its first k entries are
exact for as long as k are left; a query with fewer, and a horizon, has to be scored against every row again.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trackstar.errors import TrackStarError
from trackstar.topk import TopK

_FORMAT = 1
_METADATA = "trackstar"
_SCAN = "scan"
_ENDS = ("proponents", "opponents")


@dataclasses.dataclass(frozen=True)
class Kept:
    """One end of the rankings of Q queries.

    Args:
        best: The rows that are kept, `best.k` of a query at most; `best.uris` are keys of item files, not URIs.
        horizon: `TopK` with k = 1: of each query, the row down to which `best` holds every row of the snapshot; the row itself
            may be gone. No entry: `best` holds all rows.
    """

    best: TopK
    horizon: TopK

    @classmethod
    def empty(cls, num_queries: int, capacity: int, largest: bool) -> "Kept":
        """Of a snapshot without rows."""
        return cls(TopK.empty(num_queries, capacity, largest), TopK.empty(num_queries, 1, largest))

    def where(self, mask: np.ndarray) -> "Kept":
        """Without the rows that left the index; `mask` [P] chooses those that stay."""
        return self if mask.all() else Kept(self.best.where(mask), self.horizon)

    def joined(self, fresh: TopK) -> "Kept":
        """With rows that are new in the index.

        Args:
            fresh: The best of the new rows, with the same k: as many as a query can take in.
        """
        best = TopK.merge([self.best, fresh.where(_at_or_before(fresh, self.horizon))])
        full = np.diff(best.offsets) == best.k
        last = np.zeros(len(best), bool)
        last[best.offsets[1:][full] - 1] = True
        outer = self.horizon.where(~full[self.horizon.queries])
        return Kept(best, TopK.merge([dataclasses.replace(best.where(last), k=1), outer]))

    def replaced(self, numbers: np.ndarray, fresh: TopK) -> "Kept":
        """With the rankings of some queries made anew.

        Args:
            numbers: The queries, ascending.
            fresh: Their best of all rows, in this order.
        """
        anew = Kept.empty(len(numbers), self.best.k, self.best.largest).joined(fresh)
        stay = np.ones(self.best.num_queries, bool)
        stay[numbers] = False
        parts = [(self.best, anew.best), (self.horizon, anew.horizon)]
        best, horizon = (
            TopK.merge([old.where(stay[old.queries]), new.spread(numbers, len(stay))]) for old, new in parts
        )
        return Kept(best, horizon)

    def short_of(self, count: int) -> np.ndarray:
        """[Q] bool: queries with fewer than `count` entries, where the snapshot may hold more."""
        return (np.diff(self.best.offsets) < count) & (np.diff(self.horizon.offsets) > 0)


@dataclasses.dataclass(frozen=True)
class State:
    """Of one snapshot.

    Args:
        version: The snapshot's; −1 before the first.
        take_downs: Names of the take-downs that were made by then: their examples are not in it.
        files: Keys of all its item files.
        shards: Shard of each file that holds a kept row, by key.
        ends: Proponents and, if they are looked for, opponents.
    """

    version: int
    take_downs: frozenset[str]
    files: frozenset[str]
    shards: Mapping[str, str]
    ends: tuple[Kept, ...]

    @classmethod
    def empty(cls, num_queries: int, capacity: int, opponents: bool) -> "State":
        """Before any snapshot."""
        ends = tuple(Kept.empty(num_queries, capacity, largest) for largest in (True, False)[: 1 + opponents])
        return cls(-1, frozenset(), frozenset(), {}, ends)

    @property
    def order(self) -> tuple[int, int]:
        """What tells the later of two states of an index: version and number of take-downs, neither of which goes back."""
        return self.version, len(self.take_downs)

    def tops(self, top_k: int) -> tuple[TopK, TopK | None]:
        """The k best proponents and opponents; `uris` are keys of item files."""
        cut = [end.best.cut(top_k) for end in self.ends]
        return cut[0], cut[1] if len(cut) > 1 else None

    def to_bytes(self, set_hash: str) -> bytes:
        """One Parquet file: a row for each query and end, and the rest as metadata.

        Args:
            set_hash: The set of queries that the state is of.
        """
        metadata = {
            "format": _FORMAT,
            "set": set_hash,
            "version": self.version,
            "num_queries": self.ends[0].best.num_queries,
            "capacity": self.ends[0].best.k,
            "ends": len(self.ends),
            "take_downs": sorted(self.take_downs),
            "shards": dict(sorted(self.shards.items())),
            "files": sorted(self.files),
        }
        table = pa.concat_tables([_table(end, name) for end, name in zip(self.ends, _ENDS, strict=False)])
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_METADATA: json.dumps(metadata)})
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, data: bytes, set_hash: str, where: str) -> "State":
        """Reads what `to_bytes` made.

        Args:
            data: The file.
            set_hash: The set of queries that it has to be of.
            where: Where it lies, for errors.

        Raises:
            TrackStarError: it is damaged, or of other queries.
        """
        try:
            table = pq.read_table(pa.BufferReader(data))
            metadata = json.loads((table.schema.metadata or {})[_METADATA.encode()])
            if metadata["format"] == _FORMAT and metadata["set"] == set_hash:
                return cls._of(table, metadata)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise damaged(where, str(error)) from error
        raise damaged(where, "of other queries, or of another version of this program")

    @classmethod
    def _of(cls, table: pa.Table, metadata: dict[str, Any]) -> "State":
        count = int(metadata["num_queries"])
        ends = []
        for number in range(metadata["ends"]):
            rows = table.slice(number * count, count).combine_chunks()
            if len(rows) != count or set(rows["end"].to_pylist()) != {_ENDS[number]}:
                raise ValueError(f"expected {count} rows of {_ENDS[number]}")
            ends.append(_kept(rows, int(metadata["capacity"]), largest=number == 0))
        take_downs, files = frozenset(metadata["take_downs"]), frozenset(metadata["files"])
        return cls(int(metadata["version"]), take_downs, files, metadata["shards"], tuple(ends))


def tops_to_bytes(tops: tuple[TopK, TopK | None]) -> bytes:
    """The rankings that a scan gave, for the way from a worker to the launcher."""
    ends = tuple(Kept(top, TopK.empty(top.num_queries, 1, top.largest)) for top in tops if top is not None)
    return State(-1, frozenset(), frozenset(), {}, ends).to_bytes(_SCAN)


def tops_from_bytes(data: bytes, where: str) -> tuple[TopK, TopK | None]:
    """Reads what `tops_to_bytes` made; `where` is for errors."""
    ends = State.from_bytes(data, _SCAN, where).ends
    return ends[0].best, ends[1].best if len(ends) > 1 else None


def damaged(where: str, why: str) -> TrackStarError:
    """What is said of a state that cannot be used."""
    return TrackStarError(
        f"{where}: not a state of these queries ({why}); delete this file and run `trackstar standing update`, which goes on "
        "from the state before it, or makes one from nothing"
    )


def _at_or_before(top: TopK, horizon: TopK) -> np.ndarray:
    """[P] bool: which entries are at or before their query's horizon in the total order."""
    limits = horizon.kth_scores()[top.queries]
    inside = top.scores > limits if top.largest else top.scores < limits
    for i in np.flatnonzero(top.scores == limits):
        at = int(horizon.offsets[top.queries[i]])
        inside[i] = _name(top, int(i)) <= _name(horizon, at)
    return inside


def _name(top: TopK, entry: int) -> tuple[str, str, int]:
    """What the order goes by where scores are equal."""
    return top.example_ids[entry].as_py(), top.uris[top.files[entry]], int(top.rows[entry])


def _table(end: Kept, name: str) -> pa.Table:
    best, horizon = end.best, end.horizon
    offsets = pa.array(best.offsets, pa.int32())
    has = np.diff(horizon.offsets) > 0
    place = pa.array(np.where(has, horizon.offsets[:-1], 0), mask=~has)
    return pa.table(
        {
            "query": pa.array(np.arange(best.num_queries), pa.int32()),
            "end": pa.array([name] * best.num_queries, pa.string()),
            "example_id": pa.ListArray.from_arrays(offsets, best.example_ids),
            "score": pa.ListArray.from_arrays(offsets, pa.array(best.scores)),
            "file": pa.ListArray.from_arrays(offsets, _keys(best)),
            "row": pa.ListArray.from_arrays(offsets, pa.array(best.rows)),
            "horizon_example_id": horizon.example_ids.take(place),
            "horizon_score": pa.array(horizon.scores).take(place),
            "horizon_file": _keys(horizon).take(place),
            "horizon_row": pa.array(horizon.rows).take(place),
        }
    )


def _keys(top: TopK) -> pa.StringArray:
    return pa.array(top.uris, pa.string()).take(pa.array(top.files))


def _kept(rows: pa.Table, capacity: int, largest: bool) -> Kept:
    def column(name: str) -> Any:
        return rows[name].combine_chunks()

    lengths = pc.list_value_length(column("score")).to_numpy()
    best = _top(
        capacity, largest, lengths, *(column(name).flatten() for name in ("example_id", "score", "file", "row"))
    )
    bounds = [column(f"horizon_{name}") for name in ("example_id", "score", "file", "row")]
    has = bounds[1].is_valid()
    horizon = _top(1, largest, has.to_numpy(zero_copy_only=False).astype(np.int64), *(b.filter(has) for b in bounds))
    return Kept(best, horizon)


def _top(
    k: int,
    largest: bool,
    lengths: np.ndarray,
    example_ids: pa.StringArray,
    scores: pa.DoubleArray,
    keys: pa.StringArray,
    rows: pa.Int64Array,
) -> TopK:
    encoded = keys.dictionary_encode()
    return TopK(
        k,
        largest,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        scores.to_numpy(),
        example_ids,
        tuple(encoded.dictionary.to_pylist()),
        encoded.indices.to_numpy().astype(np.int32),
        rows.to_numpy(),
    )


def used_files(ends: Sequence[Kept]) -> set[str]:
    """Keys of the files that hold kept rows."""
    return {end.best.uris[file] for end in ends for file in np.unique(end.best.files)}
