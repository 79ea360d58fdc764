"""Scores of all queries against every row of the index's files: exact top-k, in one pass over the files.

A block of rows is multiplied with all queries in the stored type (`approximate`), what can still matter is kept
(`candidates`), and that little is scored again in float64 (`exact`). The result equals a brute-force search with the float64
scores, ids included, whatever the blocks, files, threads and device.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from trackstar.approximate import QueryProduct
from trackstar.candidates import Candidates, Pairs
from trackstar.encoding_reader import Chunk, EncodingReader
from trackstar.errors import TrackStarError
from trackstar.exact import RowPairs, exact_products
from trackstar.passages import fetch_passages
from trackstar.queries import Change, QuerySet
from trackstar.removal import NOTHING, Removals
from trackstar.row_weights import RowWeights
from trackstar.topk import TopK

__all__ = ["Change", "QuerySet", "ScanSettings", "TopK", "fetch_passages", "scan_file", "scan_files"]

_BLOCK_SCORES = 2**20  # products in one block: small enough to stay in cache while they are compared
_BLOCK_ROWS = (64, 4096)
_CHANGED_ROWS = 1024  # a block's, where rows are transformed before they are multiplied
_EXACT_PRODUCTS = 2**24  # held at a time
_OPEN_FILES = 64  # mapped at a time

OpenFile = Callable[[str, int], EncodingReader]
"""Opens the file at a URI, with encodings of so many dimensions."""


@dataclasses.dataclass(frozen=True)
class ScanSettings:
    """How to score.

    Args:
        top_k: Proponents, and opponents, of a query.
        opponents: Whether to look for the lowest scores too.
        unit_norm: Whether encodings count as unit vectors. If not, scores are multiplied with both gradients' norms (the
            paper's ablation).
        device: "cpu" or a CUDA device.
        max_pairs: Pairs of query and row that may wait for their float64 scores; about 40 bytes each.
        max_bytes: Encodings that are held in memory while they wait, where files cannot be mapped (object stores).
    """

    top_k: int = 100
    opponents: bool = False
    unit_norm: bool = True
    device: str = "cpu"
    max_pairs: int = 2**22
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        for name in ("top_k", "max_pairs", "max_bytes"):
            if getattr(self, name) < 1:
                raise TrackStarError(f"{name} is {getattr(self, name)}; it must be positive")


def scan_files(
    uris: Sequence[str],
    queries: QuerySet,
    settings: ScanSettings,
    change: Change | None = None,
    removals: Removals = NOTHING,
    open_file: OpenFile = EncodingReader,
) -> tuple[TopK, TopK | None]:
    """The k best rows of all files together, for every query.

    Args:
        uris: Parquet files of one index. Scanning several at once is cheaper than one by one: only the winners of all are
            scored in float64.
        queries: Encoded queries; under the other preconditioner if there is a `change` (`Change.apply`).
        settings: How to score.
        change: Change of preconditioner, or None for the index's own.
        removals: What was taken down; the result is that of files without these rows.
        open_file: Gives a file's encodings; another than the default may keep files open from scan to scan.

    Returns:
        Proponents and, if asked for, opponents.

    Raises:
        TrackStarError: a file that is damaged or belongs to another index, or a row with NaN or infinity.
    """
    scan = _Scan(queries, settings, change, removals, open_file)
    for uri in uris:
        scan.file(uri)
    return scan.result()


def scan_file(
    uri: str, queries: QuerySet, settings: ScanSettings, change: Change | None = None, removals: Removals = NOTHING
) -> tuple[TopK, TopK | None]:
    """`scan_files` of one file."""
    return scan_files([uri], queries, settings, change, removals)


@dataclasses.dataclass(frozen=True)
class TimedScan:
    """A scan's rankings, and how long its two halves took."""

    proponents: TopK
    opponents: TopK | None
    rows_seconds: float
    """For reading and multiplying: grows with the rows."""
    settling_seconds: float
    """For float64 scores of what can win: grows with queries and top_k, once each time that candidates are settled."""

    @property
    def seconds(self) -> float:
        """For all of it."""
        return self.rows_seconds + self.settling_seconds


def timed_scan(
    uris: Sequence[str],
    queries: QuerySet,
    settings: ScanSettings,
    change: Change | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TimedScan:
    """`scan_files` with a clock in hand, for estimates of larger scans."""
    started = clock()
    scan = _Scan(queries, settings, change)
    for uri in uris:
        scan.file(uri)
    settling = clock()
    proponents, opponents = scan.result()
    return TimedScan(proponents, opponents, settling - started, clock() - settling)


@dataclasses.dataclass(frozen=True)
class _File:
    """One file: what its rows are called and weighted with, and which of them were taken down."""

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
    file: _File


class _Scan:
    """What a scan knows so far: the winners of what was settled, and the candidates of what was not."""

    def __init__(
        self,
        queries: QuerySet,
        settings: ScanSettings,
        change: Change | None,
        removals: Removals = NOTHING,
        open_file: OpenFile = EncodingReader,
    ):
        vectors = queries.vectors.float()
        if change is not None and change.dimension != vectors.shape[1]:
            raise TrackStarError(
                f"the change of preconditioner has dimension {change.dimension}, the queries {vectors.shape[1]}"
            )
        self._settings = settings
        self._change = change
        self._removals = removals
        self._open_file = open_file
        self._device = torch.device(settings.device)
        if queries.folded and change is None:
            raise TrackStarError("the queries are folded for a change of preconditioner, and none is given")
        self._vectors = (vectors if change is None else queries.fold(change).vectors).contiguous()
        self._scale = None if settings.unit_norm else queries.grad_norm.double().numpy()
        by_block = change is not None and settings.unit_norm and change.normalisation == "block"
        self._parts = change.blocks() if change is not None and by_block else [slice(0, vectors.shape[1])]
        self._products: dict[torch.dtype, QueryProduct] = {}
        self._block_rows = int(np.clip(_BLOCK_SCORES // len(queries), *_BLOCK_ROWS))
        if change is not None:
            self._block_rows = min(self._block_rows, _CHANGED_ROWS)
        ends = (True, False) if settings.opponents else (True,)
        self._candidates = [Candidates(len(queries), settings.top_k, largest) for largest in ends]
        self._best = [TopK.empty(len(queries), settings.top_k, largest) for largest in ends]
        self._held: list[_Held] = []

    def file(self, uri: str) -> None:
        """Takes in one file."""
        if len({held.file.uri for held in self._held}) >= _OPEN_FILES:
            self.settle()
        with contextlib.closing(self._open_file(uri, self._vectors.shape[1])) as reader:
            weights = None
            if self._change is not None or not self._settings.unit_norm:
                norms = None if self._settings.unit_norm else reader.column("grad_norm")
                weights = RowWeights(self._change, norms, uri)
            ids = reader.column("example_id").cast(pa.string())
            removed = self._removals.mask(ids, reader.shard) if self._removals else None
            if removed is not None and removed.all():
                return
            file = _File(uri, ids, weights, reader.max_norm, removed)
            for chunk in reader.chunks():
                held_bytes = sum(held.chunk.vectors.nbytes for held in self._held if held.chunk.owned)
                if chunk.owned and held_bytes and held_bytes + chunk.vectors.nbytes > self._settings.max_bytes:
                    self.settle()
                self._chunk(file, chunk)

    def result(self) -> tuple[TopK, TopK | None]:
        """Proponents and opponents of all files taken in."""
        self.settle()
        return self._best[0], self._best[1] if len(self._best) > 1 else None

    def settle(self) -> None:
        """Scores the candidates in float64, keeps the winners, and lets go of the files."""
        for end, candidates in enumerate(self._candidates):
            sign = 1 if candidates.largest else -1
            # First the likely winners: what they reach exactly rules out most of the rest.
            for take in (candidates.likely, candidates.rest):
                self._best[end] = TopK.merge([self._best[end], self._scored(take(), candidates.largest)])
                candidates.raise_threshold(sign * self._best[end].kth_scores())
        self._held = []

    def _chunk(self, file: _File, chunk: Chunk) -> None:
        product = self._products.get(chunk.vectors.dtype)
        if product is None:
            product = QueryProduct(self._vectors, chunk.vectors.dtype, self._device, self._scale)
            self._products[chunk.vectors.dtype] = product
        held = self._hold(file, chunk)
        for first, end in self._blocks(file, chunk):
            rows = chunk.vectors[first:end].to(self._device)
            if file.weights is not None:
                scores = product.weighted(file.weights.bounds(chunk.row + first, rows))
            else:
                norm = rows.float().norm(dim=1).max().item() * 1.001 if file.max_norm is None else file.max_norm
                scores = product(rows, norm)
            # A NaN or infinity in a row shows in its product with any query.
            if not torch.isfinite(scores.centre[0]).all():
                raise _not_finite(file.uri, chunk.row + first, rows)
            for candidates in self._candidates:
                candidates.add(scores, held.start + first)
            if self._crowded():
                self.settle()
                held = self._hold(file, chunk)

    def _blocks(self, file: _File, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """First row and end of each block of the chunk; they step over the rows that were taken down."""
        spans = [(0, len(chunk.vectors))]
        if file.removed is not None:
            kept = ~file.removed[chunk.row : chunk.row + len(chunk.vectors)]
            edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
            spans = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        for start, end in spans:
            for first in range(start, end, self._block_rows):
                yield first, min(first + self._block_rows, end)

    def _crowded(self) -> bool:
        limit = self._settings.max_pairs
        for candidates in self._candidates:
            if len(candidates) > limit:
                candidates.tighten()
        return any(len(candidates) > limit for candidates in self._candidates)

    def _hold(self, file: _File, chunk: Chunk) -> _Held:
        last = self._held[-1] if self._held else None
        held = _Held(last.start + len(last.chunk.vectors) if last else 0, chunk, file)
        self._held.append(held)
        return held

    def _places(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Which of the chunks in hand each pair's row is in, and where in it."""
        starts = np.array([held.start for held in self._held])
        place = np.searchsorted(starts, pairs.row, side="right") - 1
        return place, pairs.row - starts[place]

    def _row_pairs(self, pairs: Pairs) -> Iterator[tuple[np.ndarray, RowPairs]]:
        """The pairs by storage type: which ones, and where their rows are."""
        if not len(pairs):
            return
        place, in_chunk = self._places(pairs)
        matrices = [held.chunk.vectors for held in self._held]
        for dtype in sorted({matrix.dtype for matrix in matrices}, key=str):
            chosen = np.flatnonzero(np.array([matrix.dtype == dtype for matrix in matrices])[place])
            same = [matrix if matrix.dtype == dtype else matrix.new_empty(0, 0, dtype=dtype) for matrix in matrices]
            yield chosen, RowPairs(pairs.query[chosen], place[chosen], in_chunk[chosen], same)

    def _scored(self, pairs: Pairs, largest: bool) -> TopK:
        """The winners among `pairs` by their float64 scores."""
        num_queries, k = len(self._vectors), self._settings.top_k
        if not len(pairs):
            return TopK.empty(num_queries, k, largest)
        place, in_chunk = self._places(pairs)
        file_row = in_chunk + np.array([held.chunk.row for held in self._held])[place]
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
                self._exact(pairs.where(np.arange(first, min(first + step, len(pairs)))))
                for first in range(0, len(pairs), step)
            ]
        )
        example_ids = pa.concat_arrays(ids).take(pa.array(np.argsort(np.concatenate(order))))
        return TopK.select(num_queries, k, largest, pairs.query, scores, example_ids, uris, file_of, file_row)

    def _exact(self, pairs: Pairs) -> np.ndarray:
        """The float64 scores of `pairs`, [P]."""
        products = np.empty((len(pairs), len(self._parts)))
        for of_type, row_pairs in self._row_pairs(pairs):
            products[of_type] = exact_products(self._vectors, self._parts, row_pairs)
        place, in_chunk = self._places(pairs)
        file_row = in_chunk + np.array([held.chunk.row for held in self._held])[place]
        for file in {held.file.uri: held.file for held in self._held}.values():
            chosen = np.flatnonzero(np.array([held.file.uri == file.uri for held in self._held])[place])
            if file.weights is None or not len(chosen):
                continue
            rows, first, inverse = np.unique(file_row[chosen], return_index=True, return_inverse=True)
            vectors = [self._held[place[pair]].chunk.vectors[in_chunk[pair]] for pair in chosen[first]]
            products[chosen] *= file.weights.exact(rows, vectors)[inverse]
        scores = products[:, 0]
        for part in range(1, products.shape[1]):
            scores = scores + products[:, part]
        return scores if self._scale is None else scores * self._scale[pairs.query]


def _not_finite(uri: str, first: int, rows: torch.Tensor) -> TrackStarError:
    finite = torch.isfinite(rows.float()).all(dim=1)
    if finite.all():
        return TrackStarError(f"{uri}, rows {first} to {first + len(rows) - 1}: scores too large for float32")
    row = first + int((~finite).nonzero()[0])
    return TrackStarError(
        f"{uri}, row {row}: the stored encoding holds NaN or infinity; run `trackstar verify --repair`"
    )
