"""One query against all files of an index in this process: group after group, with progress, until somebody cancels."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from trackstar.index import DataFile
from trackstar.kept_files import KeptFiles
from trackstar.passages import fetch_rows
from trackstar.queries import Change, QuerySet
from trackstar.removal import Removals
from trackstar.scoring import ScanSettings, scan_files
from trackstar.topk import TopK
from trackstar.trace import RankedExample, TraceCancelledError, TraceProgress

_GROUP_BYTES = 256 << 20
"""Bytes that are scanned between two looks at `cancel`: a twentieth of a second from memory."""
_COLUMNS = ("example_id", "text", "shard", "position", "loss", "num_tokens")

OnProgress = Callable[[TraceProgress], None]
Tops = tuple[TopK, TopK | None]


def scan_index(
    files: Sequence[DataFile],
    queries: QuerySet,
    settings: ScanSettings,
    change: Change | None,
    removals: Removals,
    kept: KeptFiles,
    tell: OnProgress,
    cancel: Callable[[], bool] | None = None,
) -> Tops:
    """The k best rows of all files, for one query; as `scoring.scan_files` of all of them.

    Args:
        files: Files of one index.
        queries: One encoded query.
        settings: How to score.
        change: Change of preconditioner, or None for the index's own.
        removals: What was taken down.
        kept: Opens the files.
        tell: Told after each group of files how far the scan is.
        cancel: Asked before each group; says True to stop.

    Raises:
        TrackStarError: as `scoring.scan_files`.
        TraceCancelledError: cancelled.
    """
    folded = queries if change is None else queries.fold(change)  # once, and not once a group
    best: Tops = (
        TopK.empty(len(queries), settings.top_k),
        TopK.empty(len(queries), settings.top_k, largest=False) if settings.opponents else None,
    )
    total, done, num_examples = sum(file.num_bytes for file in files), 0, 0
    tell(TraceProgress("scanning", 0, total, 0))
    for group in _groups(files):
        check_cancelled(cancel)
        uris = [file.uri for file in group]
        best = _merged(best, scan_files(uris, folded, settings, change, removals, kept.open))
        done += sum(file.num_bytes for file in group)
        num_examples += sum(file.num_rows for file in group)
        tell(TraceProgress("scanning", done, total, num_examples))
    check_cancelled(cancel)
    return best


def read_ranking(top: TopK) -> tuple[RankedExample, ...]:
    """A ranking of one query, with what the index says of its examples.

    Raises:
        TrackStarError: a file is damaged or gone.
    """
    found: dict[int, RankedExample] = {}
    for number, uri in enumerate(top.uris):
        places = np.flatnonzero(top.files == number)
        if not len(places):
            continue
        rows = top.rows[places].tolist()
        table, metadata = fetch_rows(uri, rows, _COLUMNS)
        columns = table.to_pydict()
        texts = columns.get("text", [""] * len(rows))
        shards = columns.get("shard", [metadata.get("shard", "")] * len(rows))
        for at, place in enumerate(places.tolist()):
            found[place] = RankedExample(
                rank=place + 1,
                example_id=columns["example_id"][at],
                score=float(top.scores[place]),
                text=texts[at],
                shard=shards[at],
                position=columns["position"][at],
                loss=columns["loss"][at],
                num_tokens=columns["num_tokens"][at],
                file=uri,
                row=rows[at],
            )
    return tuple(found[place] for place in range(len(top)))


def check_cancelled(cancel: Callable[[], bool] | None) -> None:
    """Raises TraceCancelledError where `cancel` says so."""
    if cancel is not None and cancel():
        raise TraceCancelledError("the trace was cancelled")


def _groups(files: Sequence[DataFile]) -> Iterator[list[DataFile]]:
    """Neighbouring files, as many as stay under `_GROUP_BYTES`; at least one."""
    group: list[DataFile] = []
    size = 0
    for file in files:
        if group and size + file.num_bytes > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(file)
        size += file.num_bytes
    if group:
        yield group


def _merged(one: Tops, other: Tops) -> Tops:
    opponents = [top for top in (one[1], other[1]) if top is not None]
    return TopK.merge([one[0], other[0]]), TopK.merge(opponents) if opponents else None
