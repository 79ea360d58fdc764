"""The best k examples of every query, as arrays that merge.

The order is total: score (descending for proponents, ascending for opponents), then example id ascending as a string, then
file and row. So the k best of a union are the k best of the parts' k best, whatever the parts were and in whatever order
they are merged.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trackstar.errors import TrackStarError


@dataclasses.dataclass(frozen=True)
class TopK:
    """For each of Q queries, its k best examples at most, best first: P entries in all, query after query.

    Build it with `empty`, `select` or `merge`, which hold the order.

    Args:
        k: How many examples a query has at most.
        largest: Whether the best have the highest scores (proponents) or the lowest (opponents).
        offsets: [Q + 1] int64; query i has the entries offsets[i] to offsets[i + 1].
        scores: [P] float64.
        example_ids: P strings.
        uris: The files that entries come from.
        files: [P] int32, which of `uris` holds the example.
        rows: [P] int64, the example's row in its file.
    """

    k: int
    largest: bool
    offsets: np.ndarray
    scores: np.ndarray
    example_ids: pa.StringArray
    uris: tuple[str, ...]
    files: np.ndarray
    rows: np.ndarray

    @classmethod
    def empty(cls, num_queries: int, k: int, largest: bool = True) -> "TopK":
        """No entries yet."""
        if k < 1:
            raise TrackStarError(f"top_k is {k}; it must be positive")
        return cls(
            k,
            largest,
            np.zeros(num_queries + 1, np.int64),
            np.empty(0, np.float64),
            pa.array([], pa.string()),
            (),
            np.empty(0, np.int32),
            np.empty(0, np.int64),
        )

    @classmethod
    def select(
        cls,
        num_queries: int,
        k: int,
        largest: bool,
        queries: np.ndarray,
        scores: np.ndarray,
        example_ids: pa.StringArray,
        uris: Sequence[str],
        files: np.ndarray,
        rows: np.ndarray,
    ) -> "TopK":
        """The k best of P pairs of query and example, which come in any order.

        Args:
            num_queries: Q.
            k: As in the class.
            largest: As in the class.
            queries: [P] integers below Q.
            scores: [P] float64, finite.
            example_ids: P strings.
            uris: Files.
            files: [P] integers, positions in `uris`.
            rows: [P] int64.
        """
        if not np.isfinite(scores).all():
            raise TrackStarError("a score that is not finite reached the ranking")
        keys = [-scores if largest else scores, queries]
        order = np.lexsort(keys)
        tied = (np.diff(scores[order]) == 0) & (np.diff(queries[order]) == 0)
        if tied.any():  # strings take long to sort, and mostly no two scores are equal
            file_ranks = np.argsort(np.argsort(np.asarray(uris, dtype=object), kind="stable"))
            order = np.lexsort([rows, file_ranks[files], _ranks(example_ids), *keys])
        counts = np.bincount(queries, minlength=num_queries)
        starts = np.concatenate([[0], np.cumsum(counts)])
        place = np.arange(len(order)) - np.repeat(starts[:-1], counts)
        kept = order[place < k]
        # Adding 0.0 makes −0.0 to 0.0: equal scores are to be equal bytes.
        return cls(
            k,
            largest,
            np.concatenate([[0], np.cumsum(np.minimum(counts, k))]).astype(np.int64),
            scores[kept].astype(np.float64) + 0.0,
            example_ids.take(pa.array(kept)),
            tuple(uris),
            files[kept].astype(np.int32),
            rows[kept].astype(np.int64),
        )

    @classmethod
    def merge(cls, parts: Sequence["TopK"]) -> "TopK":
        """The k best of all parts together.

        Raises:
            TrackStarError: the parts are not about the same queries, k and end of the ranking.
        """
        first = parts[0]
        for part in parts:
            if (part.num_queries, part.k, part.largest) != (first.num_queries, first.k, first.largest):
                raise TrackStarError("rankings of different queries, k or ends cannot be merged")
        uris = sorted({uri for part in parts for uri in part.uris})
        place = {uri: i for i, uri in enumerate(uris)}
        moved = [np.array([place[uri] for uri in part.uris], np.int32)[part.files] for part in parts if len(part)]
        return cls.select(
            first.num_queries,
            first.k,
            first.largest,
            np.concatenate([part.queries for part in parts]),
            np.concatenate([part.scores for part in parts]),
            pa.concat_arrays([part.example_ids for part in parts]),
            uris,
            np.concatenate([np.empty(0, np.int32), *moved]),
            np.concatenate([part.rows for part in parts]),
        )

    def where(self, mask: np.ndarray) -> "TopK":
        """The entries that a mask [P] chooses, in their order; a query may have fewer than there are examples then."""
        counts = np.bincount(self.queries[mask], minlength=self.num_queries)
        return dataclasses.replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            scores=self.scores[mask],
            example_ids=self.example_ids.filter(pa.array(mask, pa.bool_())),
            files=self.files[mask],
            rows=self.rows[mask],
        )

    def cut(self, k: int) -> "TopK":
        """The k best of each query's entries; k is at most that of these."""
        place = np.arange(len(self)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return dataclasses.replace(self.where(place < k), k=k)

    def choose(self, numbers: Sequence[int] | np.ndarray) -> "TopK":
        """The rankings of some queries, ascending, counted anew from 0."""
        chosen = np.zeros(self.num_queries, bool)
        chosen[numbers] = True
        part = self.where(chosen[self.queries])
        return dataclasses.replace(part, offsets=part.offsets[np.append(np.flatnonzero(chosen), self.num_queries)])

    def spread(self, numbers: Sequence[int] | np.ndarray, num_queries: int) -> "TopK":
        """What `choose` took out, under the old numbers again: query i becomes `numbers[i]` (ascending) of `num_queries`."""
        counts = np.zeros(num_queries, np.int64)
        counts[numbers] = np.diff(self.offsets)
        return dataclasses.replace(self, offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.offsets) - 1

    @property
    def queries(self) -> np.ndarray:
        """[P] int64, the query of each entry."""
        return np.repeat(np.arange(self.num_queries), np.diff(self.offsets))

    def entries(self, query: int) -> slice:
        """Where the entries of one query are in the arrays."""
        return slice(int(self.offsets[query]), int(self.offsets[query + 1]))

    def kth_scores(self) -> np.ndarray:
        """[Q] float64, each query's last score; −inf (proponents) or +inf where it has fewer than k."""
        full = np.diff(self.offsets) == self.k
        worst = np.full(self.num_queries, -np.inf if self.largest else np.inf)
        worst[full] = self.scores[self.offsets[1:][full] - 1]
        return worst


def _ranks(strings: pa.StringArray) -> np.ndarray:
    """Each string's place among the distinct ones. Arrow orders by UTF-8 bytes, which is the order of code points."""
    if not len(strings):
        return np.empty(0, np.int64)
    encoded = strings.dictionary_encode()
    ranks = np.empty(len(encoded.dictionary), np.int64)
    ranks[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(ranks))
    return ranks[encoded.indices.to_numpy()]
