"""Scores in float64, to the last bit the same on every machine, for the few pairs of query and row that matter.

The stored number and the query's float32 have together fewer bits than a float64, so each product is exact; the products of a
part are summed by NumPy's pairwise sum, whose order depends on their number alone, not on threads, neighbours or vector units.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

_ROWS = 32  # at a time
_ROUGH_ROWS = 64


@dataclasses.dataclass(frozen=True)
class RowPairs:
    """P pairs of a query and a stored row.

    Args:
        query: [P] integers; pairs of one query stand together.
        matrix: [P] integers, which of `matrices` holds the row.
        row: [P] integers, the row in it.
        matrices: [rows, d] stored encodings each, all of one type.
    """

    query: np.ndarray
    matrix: np.ndarray
    row: np.ndarray
    matrices: Sequence[torch.Tensor]

    def __len__(self) -> int:
        return len(self.query)


def exact_products(queries: torch.Tensor, parts: Sequence[slice], pairs: RowPairs) -> np.ndarray:
    """φ_p(z)·q_p for every pair and every part p.

    Args:
        queries: [Q, d] float32.
        parts: Ranges of columns.
        pairs: The pairs.

    Returns:
        [P, parts] float64.
    """
    products = np.empty((len(pairs), len(parts)))
    dimension = queries.shape[1]
    single = queries.numpy()

    def worker() -> _Multiply:
        query, terms = np.empty(dimension), np.empty((_ROWS, dimension))
        wide = torch.from_numpy(terms)

        def multiply(number: int, rows: torch.Tensor, at: slice) -> None:
            np.copyto(query, single[number])
            count = len(rows)
            wide[:count].copy_(rows)
            np.multiply(terms[:count], query, out=terms[:count])
            for column, part in enumerate(parts):
                np.add.reduce(terms[:count, part], axis=1, out=products[at, column])

        return multiply

    _for_rows(pairs, _ROWS, worker)
    return products


def rough_products(queries: torch.Tensor, pairs: RowPairs) -> np.ndarray:
    """z·q for every pair, in the stored type, rounded to it: [P] float32.

    Args:
        queries: [Q, d] in the stored type.
        pairs: The pairs.
    """
    products = np.empty(len(pairs), np.float32)

    def worker() -> _Multiply:
        def multiply(number: int, rows: torch.Tensor, at: slice) -> None:
            products[at] = torch.mm(rows, queries[number][:, None])[:, 0].float().numpy()

        return multiply

    _for_rows(pairs, _ROUGH_ROWS, worker)
    return products


_Multiply = Callable[[int, torch.Tensor, slice], None]
"""Takes a query's number, some rows [n, d] in the stored type, and which pairs these are."""


def _for_rows(pairs: RowPairs, size: int, worker: Callable[[], _Multiply]) -> None:
    """Gathers the rows of each query's pairs, `size` at a time; torch's threads share the queries, one thread a worker."""
    if not len(pairs):
        return
    edges = np.concatenate([[0], np.flatnonzero(np.diff(pairs.query)) + 1, [len(pairs)]])
    groups = list(itertools.pairwise(edges.tolist()))
    # NumPy copies single rows faster than torch, but knows no bfloat16.
    dtype = pairs.matrices[0].dtype
    raw_type = torch.int16 if dtype == torch.bfloat16 else torch.int32
    raw = [matrix.view(raw_type).numpy() for matrix in pairs.matrices]

    def work(groups: list[tuple[int, int]]) -> None:
        multiply = worker()
        rows = torch.empty(size, raw[0].shape[1], dtype=dtype)
        raw_rows = rows.view(raw_type).numpy()
        for start, end in groups:
            matrix_of, row_of = pairs.matrix[start:end].tolist(), pairs.row[start:end].tolist()
            for first in range(0, end - start, size):
                count = min(size, end - start - first)
                for i in range(count):
                    raw_rows[i] = raw[matrix_of[first + i]][row_of[first + i]]
                multiply(int(pairs.query[start]), rows[:count], slice(start + first, start + first + count))

    threads = torch.get_num_threads()
    if threads == 1 or len(groups) == 1:
        work(groups)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, [groups[i::threads] for i in range(threads)]))
    finally:
        torch.set_num_threads(threads)  # part of the setting is the process's, not the thread's
