"""Several queries answered by one scan of an index: reading it is most of what a trace costs, and a further query costs little.

Each query is encoded by itself, and the scan's rankings are exact, so each gets the very numbers that it would get alone.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from trackstar.batching import Example
from trackstar.completion import check_unicode
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.index import DataFile
from trackstar.index_scan import IndexScan, OnProgress, read_ranking
from trackstar.kept_files import KeptFiles
from trackstar.queries import Change, QuerySet
from trackstar.removal import Removals
from trackstar.results import Query
from trackstar.scan_settings import ScanLimit, ScanSettings
from trackstar.tokenization import UnusableRecordError
from trackstar.topk import TopK
from trackstar.trace import Trace, TraceCancelledError, TraceProgress

Outcome = Trace | TrackStarError
"""What became of a query; a TraceCancelledError where its `cancel` said so."""


@dataclasses.dataclass(frozen=True)
class TraceQuery:
    """One of the queries that share a scan.

    Args:
        prompt: What the model was given; may be empty.
        target: What it said; its loss is differentiated.
        top_k: Proponents, and opponents.
        opponents: Whether to look for the lowest scores too.
        example_id: The query's name; None: a hash of prompt and target.
        on_progress: Told how far it is, in the thread that scans.
        cancel: Asked some twenty times a second of scanning; says True to stop, which leaves the others as they are.
    """

    prompt: str
    target: str
    top_k: int = 10
    opponents: bool = False
    example_id: str | None = None
    on_progress: OnProgress | None = None
    cancel: Callable[[], bool] | None = None

    def tell(self, progress: TraceProgress) -> None:
        """Tells whoever wants to know."""
        if self.on_progress is not None:
            self.on_progress(progress)

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` says so."""
        return self.cancel is not None and self.cancel()

    @property
    def as_query(self) -> Query:
        """The query as results name it."""
        name = hashlib.sha256(repr((self.prompt, self.target)).encode()).hexdigest()[:12]
        return Query(self.example_id or name, self.prompt, self.target)


@dataclasses.dataclass(frozen=True)
class TraceSource:
    """What a batch is asked of, fixed while it runs.

    Args:
        encoder: The model with all that encodes, under the preconditioner that scores are taken with.
        files: Files of the snapshot, without those that were taken down whole.
        version: The snapshot's.
        removals: What was taken down.
        kept: Opens the files.
        change: Change of preconditioner, or None for the index's own.
        scored_with: As in `Trace`.
        limit: What is known of the device's memory.
    """

    encoder: Encoder
    files: Sequence[DataFile]
    version: int
    removals: Removals
    kept: KeptFiles
    change: Change | None
    scored_with: str
    limit: ScanLimit | None = None

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_examples(self) -> int:
        """In all files."""
        return sum(file.num_rows for file in self.files)


@dataclasses.dataclass(frozen=True, eq=False)
class _Encoded:
    """A query that is ready for the scan."""

    number: int
    query: TraceQuery
    example: Example
    vectors: QuerySet
    """Of this one query; folded where there is a change of preconditioner."""
    loss: float


def trace_batch(source: TraceSource, queries: Sequence[TraceQuery]) -> Iterator[tuple[int, Outcome]]:
    """Answers queries by one scan.

    Args:
        source: What is asked.
        queries: The queries.

    Returns:
        The number of each query with what became of it, once each, as soon as that is known: errors of single queries first,
        those that are cancelled when they are, the others after the scan, in their order.
    """
    started = time.perf_counter()
    encoded: list[_Encoded] = []
    for number, query in enumerate(queries):
        query.tell(TraceProgress("encoding", 0, source.num_bytes, 0))
        try:
            one = _encode(source, number, query)
        except TrackStarError as error:
            yield number, error
            continue
        if query.is_cancelled:
            yield number, _cancelled()
        else:
            encoded.append(one)
    if not encoded:
        return
    scan = _scan_of(source, encoded)
    waiting = list(encoded)
    try:
        for progress in scan:
            for one in list(waiting):
                one.query.tell(progress)
                if one.query.is_cancelled:
                    waiting.remove(one)
                    yield one.number, _cancelled()
            if not waiting:
                return
    except TrackStarError as error:  # of a file, so of all that is left
        for one in waiting:
            yield one.number, error
        return
    for one in waiting:
        one.query.tell(TraceProgress("reading", source.num_bytes, source.num_bytes, source.num_examples))
        yield one.number, _outcome(source, one, encoded.index(one), scan, started)


def query_example(encoder: Encoder, prompt: str, target: str) -> Example:
    """A query's tokens.

    Raises:
        TrackStarError: it cannot be used, or is too long to be used whole.
    """
    tokenization = encoder.tokenization
    check_unicode(prompt + target)
    try:
        whole = dataclasses.replace(tokenization, max_length=len(prompt) + len(target) + (1 << 20))
        example = whole.query("", prompt, target)
    except UnusableRecordError as error:
        raise TrackStarError(f"this query cannot be traced: {error}") from error
    count, most = len(example.input_ids), tokenization.max_length
    if count > most:
        raise TrackStarError(
            f"prompt and target have {count:,} tokens, {example.num_targets:,} of them the target's, and the index "
            f"was fitted for {most:,} (max_length): shorten the prompt by {count - most:,} tokens or more"
        )
    return example


def _encode(source: TraceSource, number: int, query: TraceQuery) -> _Encoded:
    """φ of one query, and its loss. Never of several together: batches round otherwise."""
    ScanSettings(query.top_k)  # raises where it is not positive
    encoder = source.encoder
    example = query_example(encoder, query.prompt, query.target)
    projected = encoder.project([example])
    for reason in projected.too_large.values():
        raise TrackStarError(f"this query cannot be traced: {reason}; shorten it")
    vectors, norms = encoder.finish(projected.gradients)
    norm, loss = float(norms[0]), float(projected.losses[0])
    if not 0.0 < norm < float("inf"):
        raise TrackStarError(f"this query cannot be traced: its gradient has norm {norm} (loss {loss:.6g})")
    found = QuerySet(vectors.cpu(), norms.cpu())
    return _Encoded(number, query, example, found if source.change is None else found.fold(source.change), loss)


def _scan_of(source: TraceSource, encoded: Sequence[_Encoded]) -> IndexScan:
    """One scan for as many proponents, and opponents, as any of them asks for."""
    settings = ScanSettings(
        max(one.query.top_k for one in encoded),
        any(one.query.opponents for one in encoded),
        device=str(source.encoder.loaded.device),
    )
    together = QuerySet(
        torch.cat([one.vectors.vectors for one in encoded]),
        torch.cat([one.vectors.grad_norm for one in encoded]),
        folded=source.change is not None,
    )
    return IndexScan(source.files, together, settings, source.change, source.removals, source.kept, source.limit)


def _outcome(source: TraceSource, one: _Encoded, place: int, scan: IndexScan, started: float) -> Outcome:
    """A query's part of what the scan has found, with the examples' texts."""

    def own(top: TopK) -> TopK:
        return top.choose([place]).cut(one.query.top_k)

    try:
        proponents = read_ranking(own(scan.proponents))
        wanted = scan.opponents if one.query.opponents else None
        opponents = () if wanted is None else read_ranking(own(wanted))
    except TrackStarError as error:
        return error
    return Trace(
        one.query.as_query,
        proponents,
        opponents,
        loss=one.loss,
        num_target_tokens=one.example.num_targets,
        version=source.version,
        num_examples=source.num_examples,
        seconds=time.perf_counter() - started,
        scored_with=source.scored_with,
    )


def _cancelled() -> TraceCancelledError:
    return TraceCancelledError("the trace was cancelled")
