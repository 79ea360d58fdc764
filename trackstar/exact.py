"""Scores in float64, to the last bit the same on every machine, for the few pairs of query and row that matter.

The rows stay where the scan found them, usually in the file's own pages; `exact_kernel` says what is summed in which order.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from trackstar.exact_kernel import dot_products

_NUMBERS = {  # NumPy knows no bfloat16: its bits
    torch.bfloat16: np.uint16,
    torch.float32: np.float32,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
}
_SHARE = 256  # pairs that are worth another thread


@dataclasses.dataclass(frozen=True)
class RowPairs:
    """P pairs of a query and a stored row.

    Args:
        query: [P] integers; pairs of one query stand together, or else it takes longer.
        matrix: [P] integers, which of `matrices` holds the row.
        row: [P] integers, the row in it.
        matrices: [rows, d] stored numbers each, or [rows, ⌈d/8⌉] bytes (uint8) of bits that stand for ±1, all of one type, rows
            side by side in memory, any alignment.
    """

    query: np.ndarray
    matrix: np.ndarray
    row: np.ndarray
    matrices: Sequence[torch.Tensor]

    def __len__(self) -> int:
        return len(self.query)

    def addresses(self, dimension: int) -> np.ndarray:
        """[P] int64, where each row of `dimension` numbers begins.

        Raises:
            IndexError: a row that its matrix does not have.
            ValueError: a matrix of another dimension, not on the CPU, or whose rows do not lie side by side.
        """
        length = -(-dimension // 8) if self.matrices[0].dtype == torch.uint8 else dimension
        for matrix in self.matrices:
            if len(matrix) and matrix.shape[1] != length:
                raise ValueError(f"rows have {matrix.shape[1]} numbers, queries {length}")
            if matrix.device.type != "cpu" or not matrix.is_contiguous():
                raise ValueError("rows must lie side by side in the CPU's memory")
        lengths = np.array([len(matrix) for matrix in self.matrices])
        if not ((self.matrix >= 0) & (self.row >= 0) & (self.row < lengths[self.matrix])).all():
            raise IndexError("a pair names a row that its matrix does not have")
        starts = np.array([matrix.data_ptr() for matrix in self.matrices], np.int64)
        return starts[self.matrix] + self.row.astype(np.int64) * (length * self.matrices[0].element_size())


def exact_products(queries: torch.Tensor, parts: Sequence[slice], pairs: RowPairs) -> np.ndarray:
    """c_p(z)·q_p for every pair and every part p, without the rows' factors. torch's number of threads share the pairs.

    Args:
        queries: [Q, d] float32.
        parts: Ranges of columns.
        pairs: The pairs.

    Returns:
        [P, parts] float64.

    Raises:
        IndexError: a pair whose row or query there is none of.
        ValueError: parts beyond the columns, or rows that are not as `RowPairs` says.
    """
    products = np.empty((len(pairs), len(parts)))
    if not len(pairs):
        return products
    vectors = queries.contiguous().numpy()
    numbers = pairs.query.astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= len(vectors):
        raise IndexError("a pair names a query that there is none of")
    edges = np.array([(part.start, part.stop) for part in parts], np.int64)
    if not ((edges[:, 0] >= 0) & (edges[:, 0] <= edges[:, 1]) & (edges[:, 1] <= vectors.shape[1])).all():
        raise ValueError(f"parts {parts} of {vectors.shape[1]} columns")
    addresses = pairs.addresses(queries.shape[1])
    dtype = _NUMBERS[pairs.matrices[0].dtype]

    def share(edge: tuple[int, int]) -> None:
        some = slice(*edge)
        dot_products(addresses[some], numbers[some], vectors, edges, dtype, products[some])

    threads = min(torch.get_num_threads(), 1 + len(pairs) // _SHARE)
    if threads == 1:
        share((0, len(pairs)))
        return products
    cuts = np.linspace(0, len(pairs), threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, itertools.pairwise(cuts)))
    return products
