"""The pairs of query and row that can still be among a query's k best, while a scan goes on.

A pair whose upper bound is below what k others reach for certain is out. Nothing else is dropped, so no over-fetch is guessed.
"""

import dataclasses
import itertools

import numpy as np
import torch

from trackstar.approximate import Bounded

_TIGHTEN = 2.0  # when the pool has grown by this factor


@dataclasses.dataclass
class Pairs:
    """P pairs, sorted by query: query [P] int32, row [P] int64 (in the order of the scan), bounds [P] float32."""

    query: np.ndarray
    row: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def none(cls) -> "Pairs":
        """No pairs."""
        return cls(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))

    @classmethod
    def concatenate(cls, parts: "list[Pairs]") -> "Pairs":
        """All pairs, sorted by query."""
        if len(parts) == 1:
            return parts[0]
        query = np.concatenate([part.query for part in parts])
        order = np.argsort(query, kind="stable")  # of sorted runs: a merge
        row, lower, upper = (
            np.concatenate([getattr(part, name) for part in parts])[order] for name in ("row", "lower", "upper")
        )
        return cls(query[order], row, lower, upper)

    def __len__(self) -> int:
        return len(self.query)

    def where(self, chosen: np.ndarray) -> "Pairs":
        """The pairs that a mask or an index array chooses."""
        return Pairs(self.query[chosen], self.row[chosen], self.lower[chosen], self.upper[chosen])

    def moved(self, by: int) -> "Pairs":
        """The same with other numbers of rows: `by` higher."""
        return dataclasses.replace(self, row=self.row + by)

    def groups(self, num_queries: int) -> np.ndarray:
        """[Q + 1], where each query's pairs begin."""
        return np.searchsorted(self.query, np.arange(num_queries + 1))


class Candidates:
    """The pairs that may be among the k best of one end of the ranking.

    Args:
        num_queries: Q.
        k: How many a query wants.
        largest: Whether high scores are best. If not, scores are negated inside: bounds are of the negated score.
    """

    def __init__(self, num_queries: int, k: int, largest: bool):
        self.k = k
        self.largest = largest
        self._num_queries = num_queries
        self._parts: list[Pairs] = []
        self._count = 0
        self._tight_count = 0
        self._threshold = np.full(num_queries, -np.inf, np.float32)  # what k rows reach for certain

    def __len__(self) -> int:
        return self._count

    def find(self, scores: Bounded, rows: np.ndarray) -> Pairs:
        """What can matter of a block of rows; takes nothing in, so it can be asked again.

        Args:
            scores: Of the block.
            rows: [rows] int64, the rows' numbers.
        """
        centre = scores.centre if self.largest else -scores.centre
        constant = scores.constant.cpu().numpy()
        if not self._count and centre.shape[1] >= self.k:
            surely = centre if scores.radius is None else centre - scores.radius
            last = centre.shape[1] - self.k
            kth = np.partition(surely.cpu().numpy(), last, axis=1)[:, last] - constant
            self._threshold = np.maximum(self._threshold, kth)
        reach = centre if scores.radius is None else centre + scores.radius
        chosen = _places(reach, np.nextafter(self._threshold - constant, -np.float32(np.inf)))
        if not len(chosen):
            return Pairs.none()
        query = (chosen // centre.shape[1]).astype(np.int32)
        middle, radius = _at(centre, chosen), constant[query]
        if scores.radius is not None:
            radius = radius + _at(scores.radius, chosen)
        return Pairs(query, rows[chosen % centre.shape[1]], middle - radius, middle + radius)

    def add(self, pairs: Pairs) -> None:
        """Takes in what `find` found, with the rows' numbers in the scan."""
        if not len(pairs):
            return
        self._parts.append(pairs)
        self._count += len(pairs)
        if self._count >= max(self._num_queries * self.k, _TIGHTEN * self._tight_count):
            self.tighten()

    def tighten(self) -> None:
        """Raises each query's threshold to the k-th of its lower bounds, and drops the pairs that it leaves behind."""
        pairs = Pairs.concatenate(self._parts) if self._parts else Pairs.none()
        starts = pairs.groups(self._num_queries)
        for query in np.flatnonzero(np.diff(starts) >= self.k):
            lower = pairs.lower[starts[query] : starts[query + 1]]
            kth = np.partition(lower, len(lower) - self.k)[len(lower) - self.k]
            self._threshold[query] = max(self._threshold[query], kth)
        self._keep(pairs)

    def raise_threshold(self, scores: np.ndarray) -> None:
        """Sets thresholds to scores that k rows are known to reach, [Q] float64 (negated for the lowest), −inf if none."""
        known = np.nextafter(scores.astype(np.float32), -np.float32(np.inf))
        self._threshold = np.maximum(self._threshold, known)

    def likely(self) -> Pairs:
        """Takes out each query's k pairs with the highest middles: the likely winners."""
        self.tighten()
        [pairs] = self._parts
        starts = pairs.groups(self._num_queries)
        chosen = []
        for start, end in itertools.pairwise(starts):
            if end - start > self.k:
                middle = pairs.lower[start:end] + pairs.upper[start:end]
                chosen.append(start + np.argpartition(middle, end - start - self.k)[end - start - self.k :])
            else:
                chosen.append(np.arange(start, end))
        mask = np.zeros(len(pairs), bool)
        mask[np.concatenate(chosen)] = True
        self._parts = [pairs.where(~mask)]
        self._count = len(self._parts[0])
        return pairs.where(mask)

    def rest(self) -> Pairs:
        """Takes out the pairs that are left above the thresholds."""
        self._keep(Pairs.concatenate(self._parts) if self._parts else Pairs.none())
        [pairs] = self._parts
        self._parts, self._count, self._tight_count = [], 0, 0
        return pairs

    def _keep(self, pairs: Pairs) -> None:
        kept = pairs.where(pairs.upper >= self._threshold[pairs.query])
        self._parts, self._count, self._tight_count = [kept], len(kept), len(kept)


def _places(scores: torch.Tensor, least: np.ndarray) -> np.ndarray:
    """Where [Q, rows] scores are at least `least` [Q], as flat positions in ascending order."""
    if scores.device.type == "cpu":  # NumPy is several times as fast at this as torch
        return np.flatnonzero(scores.numpy() >= least[:, None])
    mask = scores >= torch.from_numpy(least).to(scores.device)[:, None]
    return mask.reshape(-1).nonzero().reshape(-1).cpu().numpy()


def _at(scores: torch.Tensor, places: np.ndarray) -> np.ndarray:
    if scores.device.type == "cpu":
        return scores.numpy().reshape(-1)[places]
    return scores.reshape(-1)[torch.from_numpy(places).to(scores.device)].cpu().numpy()
