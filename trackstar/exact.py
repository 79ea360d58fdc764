"""Scores in float64, to the last bit the same on every machine, for the few pairs of query and row that matter.

The stored number and the query's float32 have together fewer bits than a float64, so each product is exact; the products of a
part are summed by NumPy's pairwise sum, whose order depends on their number alone, not on threads, neighbours or vector units.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

_ROWS = 8  # at a time: their float64 copies stay in cache
_COLUMNS = 16384  # copied at a time: below the size at which torch would start threads of its own


def exact_products(
    queries: torch.Tensor,
    parts: list[slice],
    query_of: np.ndarray,
    row: Callable[[int], torch.Tensor],
    threads: int,
) -> np.ndarray:
    """φ_p(z)·q_p of pairs of query and row, for every part p.

    Args:
        queries: [Q, d] float32.
        parts: Ranges of columns.
        query_of: [P] integers, the query of each pair; pairs of one query stand together.
        row: Gives the [d] stored encoding of a pair.
        threads: How many threads share the queries.

    Returns:
        [P, parts] float64.
    """
    products = np.empty((len(query_of), len(parts)))
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(query_of)) + 1, [len(query_of)]])
    groups = list(itertools.pairwise(bounds.tolist())) if len(query_of) else []

    def score(groups: list[tuple[int, int]]) -> None:
        stored = torch.empty(_ROWS, queries.shape[1], dtype=torch.float64)
        terms = np.empty((_ROWS, queries.shape[1]))
        for start, end in groups:
            query = queries[query_of[start]].double().numpy()
            for first in range(start, end, _ROWS):
                count = min(_ROWS, end - first)
                for i in range(count):
                    _copy(stored[i], row(first + i))
                np.multiply(stored.numpy()[:count], query, out=terms[:count])
                for number, columns in enumerate(parts):
                    np.add.reduce(terms[:count, columns], axis=1, out=products[first : first + count, number])

    if threads == 1 or len(groups) < 2:
        score(groups)
    else:
        shares = [groups[i::threads] for i in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(score, shares))
    return products


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    if len(source) <= _COLUMNS:
        target.copy_(source)
        return
    for start in range(0, len(source), _COLUMNS):
        target[start : start + _COLUMNS].copy_(source[start : start + _COLUMNS])
