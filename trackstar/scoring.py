"""Scores of all queries against every row of the index's files: exact top-k, in one pass over the files.

A block of rows is multiplied with all queries, unpacked a little at a time where few bits are stored (`approximate`), what can
still matter is kept (`candidates`), and that little is scored again in float64 (`held_rows`). The result equals a brute-force
search with the float64 scores, ids included, whatever the blocks, files, threads and device.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from trackstar.approximate import Bounded, DirectProduct, QueryProduct, tile_rows
from trackstar.candidates import Candidates
from trackstar.encoding_reader import Chunk, EncodingReader
from trackstar.errors import TrackStarError
from trackstar.held_rows import HeldRows, ScannedFile
from trackstar.passages import fetch_passages
from trackstar.queries import Change, QuerySet
from trackstar.removal import NOTHING, Removals
from trackstar.row_weights import RowWeights
from trackstar.stored_forms import StoredForm, StoredRows
from trackstar.threads import Shares
from trackstar.topk import TopK

__all__ = ["Change", "QuerySet", "ScanSettings", "TopK", "fetch_passages", "scan_file", "scan_files"]

_BLOCK_SCORES = 2**20  # products in one block: small enough to stay in cache while they are compared
_BLOCK_ROWS = (64, 4096)
_CHANGED_ROWS = 1024  # a block's, where rows are transformed before they are multiplied
_UNPACKED_BYTES = 2**25  # a block's, where rows are unpacked and weighted, but not transformed
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
    num_scored: int
    """Pairs of query and row that were scored in float64."""
    num_weighed: int
    """Rows whose norms under another preconditioner were computed in float64."""

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
    seconds, counts = clock() - settling, scan._held
    return TimedScan(proponents, opponents, settling - started, seconds, counts.num_scored, counts.num_weighed)


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
        self._direct: dict[str, DirectProduct] = {}
        self._shares = Shares()
        ends = (True, False) if settings.opponents else (True,)
        self._candidates = [Candidates(len(queries), settings.top_k, largest) for largest in ends]
        self._best = [TopK.empty(len(queries), settings.top_k, largest) for largest in ends]
        self._held = HeldRows(self._vectors, self._parts, self._scale)

    def file(self, uri: str) -> None:
        """Takes in one file."""
        if self._held.num_files >= _OPEN_FILES:
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
            file = ScannedFile(uri, ids, weights, reader.max_norm, removed)
            for chunk in reader.chunks():
                held_bytes = self._held.owned_bytes
                if chunk.owned and held_bytes and held_bytes + chunk.stored.nbytes > self._settings.max_bytes:
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
                found = self._held.best(take(), self._settings.top_k, candidates.largest)
                self._best[end] = TopK.merge([self._best[end], found])
                candidates.raise_threshold(sign * self._best[end].kth_scores())
        self._held.clear()

    def _chunk(self, file: ScannedFile, chunk: Chunk) -> None:
        start = self._held.hold(file, chunk)
        for first, end in self._blocks(file, chunk):
            rows = chunk.stored.rows(first, end).to(self._device)
            scores = self._bounded(file, chunk.row + first, rows)
            # A NaN or infinity in a row shows in its product with any query.
            if not torch.isfinite(scores.centre[0]).all():
                raise _not_finite(file.uri, chunk.row + first, rows)
            for candidates in self._candidates:
                candidates.add(scores, start + first)
            if self._crowded():
                self.settle()
                start = self._held.hold(file, chunk)

    def _bounded(self, file: ScannedFile, first: int, rows: StoredRows) -> Bounded:
        """The approximate scores of a block, the first row of which is row `first` of the file."""
        if file.weights is not None:
            weighted = file.weights.bounds(first, rows.numbers(shares=self._shares), rows.factors())
            return self._product(rows.form).weighted(weighted)
        norm = rows.norms().max().item() * 1.001 if file.max_norm is None else file.max_norm
        if self._is_direct(rows.form):
            direct = self._direct.get(rows.form.name)
            if direct is None:
                direct = self._direct[rows.form.name] = DirectProduct(self._vectors, rows.form)
            return direct(rows, norm)
        return self._product(rows.form)(rows, norm)

    def _product(self, form: StoredForm) -> QueryProduct:
        product = self._products.get(form.tile_type)
        if product is None:
            product = QueryProduct(self._vectors, form.tile_type, self._device, self._scale)
            self._products[form.tile_type] = product
        return product

    def _is_direct(self, form: StoredForm) -> bool:
        """Whether rows are multiplied as they lie, where they have no weights."""
        return self._device.type == "cpu" and len(self._vectors) <= form.direct_queries

    def _blocks(self, file: ScannedFile, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """First row and end of each block of the chunk; they step over the rows that were taken down."""
        spans = [(0, len(chunk))]
        if file.removed is not None:
            kept = ~file.removed[chunk.row : chunk.row + len(chunk)]
            edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
            spans = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        size = self._block_rows(file, chunk.stored.form)
        for start, end in spans:
            for first in range(start, end, size):
                yield first, min(first + size, end)

    def _block_rows(self, file: ScannedFile, form: StoredForm) -> int:
        """Rows of a block: so many that the scores, and what is made of the rows on the way, stay small."""
        rows, dimension = int(np.clip(_BLOCK_SCORES // len(self._vectors), *_BLOCK_ROWS)), self._vectors.shape[1]
        if self._change is not None:
            return min(rows, _CHANGED_ROWS)
        if not form.is_packed:
            return rows
        if file.weights is not None:
            return min(rows, max(1, _UNPACKED_BYTES // (2 * dimension)))
        return rows if self._is_direct(form) else min(rows, tile_rows(dimension))

    def _crowded(self) -> bool:
        limit = self._settings.max_pairs
        for candidates in self._candidates:
            if len(candidates) > limit:
                candidates.tighten()
        return any(len(candidates) > limit for candidates in self._candidates)


def _not_finite(uri: str, first: int, rows: StoredRows) -> TrackStarError:
    finite = torch.isfinite(rows.values(torch.float32)).all(dim=1)
    if finite.all():
        return TrackStarError(f"{uri}, rows {first} to {first + len(rows) - 1}: scores too large for float32")
    row = first + int((~finite).nonzero()[0])
    return TrackStarError(
        f"{uri}, row {row}: the stored encoding holds NaN or infinity; run `trackstar verify --repair`"
    )
