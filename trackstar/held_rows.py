"""The rows of a scan that may be asked for again, until it settles: their scores in float64, their ids.

A score in float64: Σ c·q over the stored numbers c and the query's, in `exact_kernel`'s order, part by part; each times the row's
factor, then times the part's weight (`row_weights`); the parts added from the first on; times the query's norm where it counts.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from trackstar.candidates import Pairs
from trackstar.encoding_reader import Chunk
from trackstar.exact import RowPairs, exact_products
from trackstar.queries import Change, QuerySet
from trackstar.row_weights import RowWeights
from trackstar.stored_forms import StoredRows
from trackstar.topk import TopK

_EXACT_PRODUCTS = 2**24  # held at a time


@dataclasses.dataclass(frozen=True)
class ScannedFile:
    """One file: what its rows are called and weighted with, and which of them were taken down.

    Args:
        uri: The file.
        ids: [rows] example ids.
        weights: The rows' weights; None where they are 1, but for the factor of their form.
        max_norm: An upper bound of the encodings' norms; None where it is not known.
        removed: [rows] bool, which were taken down; None for none.
    """

    uri: str
    ids: pa.StringArray
    weights: RowWeights | None
    max_norm: float | None
    removed: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Held:
    """A chunk whose rows may be asked for again; `start` is its first row's number since the last settling."""

    start: int
    chunk: Chunk
    file: ScannedFile


class HeldRows:
    """Chunks in hand.

    Args:
        vectors: [Q, d] float32, the queries as they are multiplied.
        parts: Ranges of columns that have weights of their own.
        scale: [Q] float64, what the scores of each query are multiplied with; None for 1.
    """

    def __init__(self, vectors: torch.Tensor, parts: Sequence[slice], scale: np.ndarray | None):
        self.vectors = vectors
        self._parts = parts
        self.scale = scale
        self._held: list[_Held] = []
        self.num_scored = 0  # pairs
        self.num_weighed = 0  # rows whose weights were computed in float64

    @classmethod
    def of(cls, queries: QuerySet, change: Change | None, unit_norm: bool) -> "HeldRows":
        """Nothing in hand yet, for scores with some queries.

        Args:
            queries: As for `scoring.scan_files`.
            change: See there.
            unit_norm: As in `scoring.ScanSettings`.

        Raises:
            TrackStarError: queries and change do not belong to each other.
        """
        vectors = queries.for_scan(change).vectors.float()
        by_block = change is not None and unit_norm and change.normalisation == "block"
        return cls(
            vectors.contiguous(),
            change.blocks() if change is not None and by_block else [slice(0, vectors.shape[1])],
            None if unit_norm else queries.grad_norm.double().numpy(),
        )

    @property
    def num_files(self) -> int:
        """Files that the chunks are of."""
        return len({held.file.uri for held in self._held})

    @property
    def owned_bytes(self) -> int:
        """Bytes of memory that the chunks take for themselves."""
        return sum(held.chunk.stored.nbytes for held in self._held if held.chunk.owned)

    def hold(self, file: ScannedFile, chunk: Chunk) -> int:
        """Takes a chunk in hand; returns the number of its first row, counted since the last `clear`."""
        last = self._held[-1] if self._held else None
        self._held.append(_Held(last.start + len(last.chunk) if last else 0, chunk, file))
        return self._held[-1].start

    def clear(self) -> None:
        """Lets go of all chunks."""
        self._held = []

    def best(self, pairs: Pairs, k: int, largest: bool) -> TopK:
        """The winners among `pairs`, whose rows are numbered as `hold` does, by their float64 scores."""
        num_queries = len(self.vectors)
        if not len(pairs):
            return TopK.empty(num_queries, k, largest)
        self.num_scored += len(pairs)
        place, in_chunk = self._places(pairs)
        file_row = self._file_rows(place, in_chunk)
        files = {held.file.uri: held.file for held in self._held}
        uris = sorted(files)
        number = {uri: i for i, uri in enumerate(uris)}
        file_of = np.array([number[held.file.uri] for held in self._held])[place]
        ids: list[pa.StringArray] = []
        order: list[np.ndarray] = []
        for i, uri in enumerate(uris):
            chosen = np.flatnonzero(file_of == i)
            order.append(chosen)
            ids.append(files[uri].ids.take(pa.array(file_row[chosen])))
        step = max(1, _EXACT_PRODUCTS // len(self._parts))
        scores = np.concatenate(
            [
                self._scores(pairs.where(np.arange(first, min(first + step, len(pairs)))))
                for first in range(0, len(pairs), step)
            ]
        )
        example_ids = pa.concat_arrays(ids).take(pa.array(np.argsort(np.concatenate(order))))
        return TopK.select(num_queries, k, largest, pairs.query, scores, example_ids, uris, file_of, file_row)

    def _places(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Which of the chunks in hand each pair's row is in, and where in it."""
        starts = np.array([held.start for held in self._held])
        place = np.searchsorted(starts, pairs.row, side="right") - 1
        return place, pairs.row - starts[place]

    def _file_rows(self, place: np.ndarray, in_chunk: np.ndarray) -> np.ndarray:
        """Numbers of rows in their files."""
        return in_chunk + np.array([held.chunk.row for held in self._held])[place]

    def _row_pairs(
        self, pairs: Pairs, place: np.ndarray, in_chunk: np.ndarray
    ) -> Iterator[tuple[np.ndarray, RowPairs]]:
        """The pairs by the type of what is stored: which ones, and where their rows are."""
        matrices = [held.chunk.stored.matrix for held in self._held]
        for dtype in sorted({matrix.dtype for matrix in matrices}, key=str):
            chosen = np.flatnonzero(np.array([matrix.dtype == dtype for matrix in matrices])[place])
            same = [matrix if matrix.dtype == dtype else matrix.new_empty(0, 0, dtype=dtype) for matrix in matrices]
            yield chosen, RowPairs(pairs.query[chosen], place[chosen], in_chunk[chosen], same)

    def _scores(self, pairs: Pairs) -> np.ndarray:
        """The float64 scores of `pairs`, [P]."""
        products = np.empty((len(pairs), len(self._parts)))
        place, in_chunk = self._places(pairs)
        for of_type, row_pairs in self._row_pairs(pairs, place, in_chunk):
            products[of_type] = exact_products(self.vectors, self._parts, row_pairs)
        self._multiply_factors(products, place, in_chunk)
        file_row = self._file_rows(place, in_chunk)
        for file in {held.file.uri: held.file for held in self._held}.values():
            if file.weights is None:
                continue
            chosen = np.flatnonzero(np.array([held.file.uri == file.uri for held in self._held])[place])
            if not len(chosen):
                continue
            rows, first, inverse = np.unique(file_row[chosen], return_index=True, return_inverse=True)

            def numbers(wanted: Sequence[int], some: np.ndarray = chosen[first]) -> torch.Tensor:
                return torch.cat([self._row(place[some[i]], in_chunk[some[i]]).numbers() for i in wanted])

            before = file.weights.num_exact
            products[chosen] *= file.weights.exact(rows, numbers)[inverse]
            self.num_weighed += file.weights.num_exact - before
        scores = products[:, 0]
        for part in range(1, products.shape[1]):
            scores = scores + products[:, part]
        return scores if self.scale is None else scores * self.scale[pairs.query]

    def _multiply_factors(self, products: np.ndarray, place: np.ndarray, in_chunk: np.ndarray) -> None:
        """Multiplies [P, parts] products with the factors of their rows, where these count."""
        for number in np.unique(place):
            held = self._held[number]
            factors = held.chunk.stored.factors()
            if factors is None or not (held.file.weights is None or held.file.weights.needs_factors):
                continue
            chosen = np.flatnonzero(place == number)
            products[chosen] *= factors.expand(len(held.chunk)).numpy()[in_chunk[chosen], None]

    def _row(self, place: int, row: int) -> StoredRows:
        """One row of a chunk in hand."""
        return self._held[place].chunk.stored.rows(row, row + 1)
