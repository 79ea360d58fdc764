"""Queries against all files of an index in this process, group after group."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from trackstar.file_groups import group_files
from trackstar.index import DataFile
from trackstar.kept_files import KeptFiles
from trackstar.passages import fetch_rows
from trackstar.queries import Change, QuerySet
from trackstar.removal import Removals
from trackstar.scan_settings import ScanLimit, ScanSettings
from trackstar.scoring import scan_files
from trackstar.topk import TopK
from trackstar.trace import RankedExample, TraceProgress

_GROUP_BYTES = 256 << 20
"""Bytes that are scanned between two reports: a twentieth of a second from memory."""
_COLUMNS = ("example_id", "text", "shard", "position", "loss", "num_tokens")

OnProgress = Callable[[TraceProgress], None]


class IndexScan:
    """The k best rows of all files, for every query; as `scoring.scan_files` of all of them.

    Iterating over it scans, and tells how far it is: before the first group of files, and after each. The rankings are those of
    what was scanned so far.

    Args:
        files: Files of one index.
        queries: Encoded queries; best folded already, which otherwise happens once a group.
        settings: How to score.
        change: Change of preconditioner, or None for the index's own.
        removals: What was taken down.
        kept: Opens the files.
        limit: What is known of the device's memory.
    """

    def __init__(
        self,
        files: Sequence[DataFile],
        queries: QuerySet,
        settings: ScanSettings,
        change: Change | None,
        removals: Removals,
        kept: KeptFiles,
        limit: ScanLimit | None = None,
    ):
        self.proponents = TopK.empty(len(queries), settings.top_k)
        self.opponents = TopK.empty(len(queries), settings.top_k, largest=False) if settings.opponents else None
        self._files = files
        self._queries = queries
        self._settings = settings
        self._change = change
        self._removals = removals
        self._kept = kept
        self._limit = limit or ScanLimit(torch.device(settings.device))

    def __iter__(self) -> Iterator[TraceProgress]:
        """Scans, group after group.

        Raises:
            TrackStarError: as `scoring.scan_files`.
        """
        total, done, num_examples = sum(file.num_bytes for file in self._files), 0, 0
        yield TraceProgress("scanning", 0, total, 0)
        for group in group_files(self._files, _GROUP_BYTES) if self._files else []:
            uris = [file.uri for file in group]
            found = scan_files(
                uris, self._queries, self._settings, self._change, self._removals, self._kept.open, self._limit
            )
            self.proponents = TopK.merge([self.proponents, found[0]])
            if self.opponents is not None and found[1] is not None:
                self.opponents = TopK.merge([self.opponents, found[1]])
            done += sum(file.num_bytes for file in group)
            num_examples += sum(file.num_rows for file in group)
            yield TraceProgress("scanning", done, total, num_examples)


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
