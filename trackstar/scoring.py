"""Scores of all queries against every row of the index's files: exact top-k, in one pass over the files.

A block of rows is multiplied with all queries, unpacked a little at a time where few bits are stored (`approximate`), what can
still matter is kept (`candidates`), and that little is scored again in float64 (`held_rows`). The result equals a brute-force
search with the float64 scores, ids included, whatever the blocks, files, threads and device. Where memory runs out, smaller
blocks are multiplied, and then fewer queries at a time (`ScanLimit`).
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from trackstar.approximate import Bounded, DirectProduct, QueryProduct, tile_rows
from trackstar.candidates import Candidates, Pairs
from trackstar.device_memory import explained
from trackstar.encoding_reader import Chunk, EncodingReader
from trackstar.errors import TrackStarError
from trackstar.held_rows import HeldRows, ScannedFile
from trackstar.passages import fetch_passages
from trackstar.queries import Change, QuerySet
from trackstar.removal import NOTHING, Removals
from trackstar.row_weights import RowWeights
from trackstar.scan_settings import ScanLimit, ScanSettings
from trackstar.stored_forms import StoredForm, StoredRows
from trackstar.threads import Shares
from trackstar.topk import TopK

__all__ = ["Change", "QuerySet", "ScanLimit", "ScanSettings", "TopK", "fetch_passages", "scan_file", "scan_files"]

_BLOCK_SCORES = 2**20  # products in one block: small enough to stay in cache while they are compared
_BLOCK_ROWS = (64, 4096)
_CHANGED_ROWS = 1024  # a block's, where rows are transformed before they are multiplied
_UNPACKED_BYTES = 2**25  # a block's, where rows are unpacked and weighted, but not transformed
_OPEN_FILES = 64  # mapped at a time

OpenFile = Callable[[str, int], EncodingReader]
"""Opens the file at a URI, with encodings of so many dimensions."""


def scan_files(
    uris: Sequence[str],
    queries: QuerySet,
    settings: ScanSettings,
    change: Change | None = None,
    removals: Removals = NOTHING,
    open_file: OpenFile = EncodingReader,
    limit: ScanLimit | None = None,
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
        limit: What is known of the device's memory; None: nothing yet.

    Returns:
        Proponents and, if asked for, opponents.

    Raises:
        TrackStarError: a file that is damaged or belongs to another index, a row with NaN or infinity, or a device whose memory
            does not even take one query and a few rows.
    """
    folded = queries.for_scan(change)
    known = limit or ScanLimit(torch.device(settings.device))

    def scan_some(first: int, end: int) -> tuple[np.ndarray, tuple[TopK, TopK | None]]:
        """The rankings of some queries: each half of them reads all files anew."""
        numbers = np.arange(first, end)
        some = folded if len(numbers) == len(folded) else folded.choose(numbers.tolist())
        try:
            scan = _Scan(some, settings, change, removals, open_file, known)
            for uri in uris:
                scan.file(uri)
            return numbers, scan.result()
        except (RuntimeError, MemoryError):
            known.more_rows()
            raise

    remedy = "scan on the CPU (--device cpu)" if known.device.type != "cpu" else "fit an index of fewer dimensions"
    with explained("a scan of the index for one query", known.device, remedy):
        parts = list(known.queries.parts(0, len(folded), scan_some))
    if len(parts) == 1:
        return parts[0][1]
    proponents = [tops[0].spread(numbers, len(folded)) for numbers, tops in parts]
    opponents = [tops[1].spread(numbers, len(folded)) for numbers, tops in parts if tops[1] is not None]
    return TopK.merge(proponents), TopK.merge(opponents) if opponents else None


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
        limit: ScanLimit | None = None,
    ):
        self._settings = settings
        self._change = change
        self._removals = removals
        self._open_file = open_file
        self._device = torch.device(settings.device)
        self._limit = limit or ScanLimit(self._device)
        self._held = HeldRows.of(queries, change, settings.unit_norm)
        self._vectors = self._held.vectors
        self._products: dict[torch.dtype, QueryProduct] = {}
        self._direct: dict[str, DirectProduct] = {}
        self._shares = Shares()
        ends = (True, False) if settings.opponents else (True,)
        self._candidates = [Candidates(len(queries), settings.top_k, largest) for largest in ends]
        self._best = [TopK.empty(len(queries), settings.top_k, largest) for largest in ends]

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
            for found in self._limit.rows.parts(first, end, functools.partial(self._found, file, chunk)):
                for candidates, pairs in zip(self._candidates, found, strict=True):
                    candidates.add(pairs.moved(start))
                if self._crowded():
                    self.settle()
                    start = self._held.hold(file, chunk)

    def _found(self, file: ScannedFile, chunk: Chunk, first: int, end: int) -> list[Pairs]:
        """What can matter of some rows of the chunk, for each end of the ranking, in numbers of the chunk's rows.

        Rows that were taken down are multiplied with their neighbours, for many short blocks would take longer; then they are
        left out.
        """
        kept = np.arange(first, end)
        if file.removed is not None:
            kept = kept[~file.removed[chunk.row + first : chunk.row + end]]
            if not len(kept):
                return [Pairs.none() for _ in self._candidates]
        rows = chunk.stored.rows(first, end).to(self._device)
        scores = self._bounded(file, chunk.row + first, rows)
        if len(kept) < end - first:
            if not scores.is_finite():  # what is gone cannot spoil a scan: only rows that are kept, run by run
                runs = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
                parts = [self._found(file, chunk, int(run[0]), int(run[-1]) + 1) for run in runs]
                return [Pairs.concatenate(list(of_end)) for of_end in zip(*parts, strict=True)]
            scores = scores.rows(kept - first)
        # A NaN or infinity in a row shows in its product with any query.
        if not torch.isfinite(scores.centre[0]).all():
            raise _not_finite(file.uri, chunk.row + first, rows)
        return [candidates.find(scores, kept) for candidates in self._candidates]

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
            product = QueryProduct(self._vectors, form.tile_type, self._device, self._held.scale)
            self._products[form.tile_type] = product
        return product

    def _is_direct(self, form: StoredForm) -> bool:
        """Whether rows are multiplied as they lie, where they have no weights."""
        return self._device.type == "cpu" and len(self._vectors) <= form.direct_queries

    def _blocks(self, file: ScannedFile, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """First row and end of each block of the chunk, without those whose rows were all taken down."""
        size = self._block_rows(file, chunk.stored.form)
        for first in range(0, len(chunk), size):
            end = min(first + size, len(chunk))
            if file.removed is None or not file.removed[chunk.row + first : chunk.row + end].all():
                yield first, end

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
