"""Two passes as a pipeline: files of the index that is scanned → proposals → scores in the better form → results, and a report.

What travels through it are small rows; encodings never leave the worker that read or made them.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from pipelines.progress import Reporter
from pipelines.scanning import LoadedScan, MergeTops, Passages, Scan, ScanIndex, Tops, WriteResults, fetch
from pipelines.workers import EncoderDoFn
from trackstar import storage, threads
from trackstar.encoder import EncoderSource
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.recomputing import best_of_encoded
from trackstar.rescoring import Missing, Proposed, SecondPass, proposals, texts_elsewhere
from trackstar.two_pass import TwoPassRun, report

Rescored = tuple[Tops, list[Missing]]


@dataclasses.dataclass
class TwoPasses(beam.PTransform):
    """Files of two indexes → results, and a report of what was done.

    Args:
        first: The scan that proposes.
        links_uri: JSON: by file of the cheap index, the files of the better one that can hold the same records.
        groups: Elements of work of the second pass.
        rescore: The second pass.
        check: A scan of the better index alone for some queries, or None.
        results: Writes the results.
        described: What is known before.
        chosen: Numbers of the queries that are checked.
        report_uri: The report.
    """

    first: ScanIndex
    links_uri: str
    groups: int
    rescore: beam.DoFn
    check: ScanIndex | None
    results: WriteResults
    described: TwoPassRun
    chosen: list[int]
    report_uri: str

    def expand(self, root: Any) -> Any:
        proposed = root | "FirstPass" >> self.first
        rescored = (
            proposed
            | "Propose" >> beam.FlatMap(propose, self.links_uri, self.groups)
            | "ToAnyWorker" >> beam.Reshuffle()
            | "SecondPass" >> beam.ParDo(self.rescore)
        )
        missing = rescored | "Missing" >> beam.FlatMap(missing_of) | "AllMissing" >> beam.combiners.ToList()
        tops = (
            rescored
            | "Tops" >> beam.Map(tops_of)
            | "MergeTops" >> beam.CombineGlobally(MergeTops())
            | "CheckSomeAreFound" >> beam.Map(checked_tops, beam.pvalue.AsSingleton(missing))
        )
        exact = root | (
            "NoCheck" >> beam.Create([None], reshuffle=False) if self.check is None else "Check" >> self.check
        )
        written = tops | "WriteResults" >> self.results
        _ = tops | "Report" >> beam.Map(
            write_report,
            beam.pvalue.AsSingleton(proposed | "CountPairs" >> beam.Map(count_pairs)),
            beam.pvalue.AsSingleton(missing),
            beam.pvalue.AsSingleton(exact),
            self.described,
            self.chosen,
            self.report_uri,
        )
        return written


class _Rescore:
    """What both kinds of second pass share: queries that are opened once a process, and progress."""

    def __init__(self, scan: Scan, each: float, reporter: Reporter):
        self._scan = scan
        self._each = each
        self._reporter = reporter
        self._shared_scan = Shared()
        self._loaded: LoadedScan | None = None
        self._pairs = Metrics.counter("trackstar", "num_rescored_pairs")
        self._missing = Metrics.counter("trackstar", "num_missing_examples")

    def load(self) -> None:
        self._loaded = self._shared_scan.acquire(lambda: LoadedScan(self._scan), tag=self._scan)

    def second_pass(self) -> SecondPass:
        assert self._loaded is not None
        return SecondPass(self._loaded.queries, self._loaded.settings, self._loaded.change)

    def count(self, number: int, proposed: Iterable[Proposed], missing: Sequence[Missing]) -> None:
        pairs = sum(one.num_pairs for one in proposed)
        self._pairs.inc(pairs)
        self._missing.inc(len(missing))
        self._reporter.report(f"second-{number}", self._each * pairs, 0, finished=True)


class RescoreStored(beam.DoFn):
    """Proposed rows → the best of them by the encodings of another index.

    Args:
        index_uri: The better index.
        scan: Its queries, as for a scan.
        each: Work of one pair, for progress.
        reporter: Where progress goes.
    """

    def __init__(self, index_uri: str, scan: Scan, each: float, reporter: Reporter):
        self._index_uri = index_uri
        self._parts = _Rescore(scan, each, reporter)
        self._threads = scan.threads
        self._index: Index | None = None

    def setup(self) -> None:
        """Opens queries and index."""
        threads.use(self._threads)
        self._parts.load()
        self._index = Index.open(self._index_uri, follow=False)

    def process(self, element: tuple[int, list[Proposed]]) -> Iterator[Rescored]:
        assert self._index is not None
        number, proposed = element
        tops, missing = self._parts.second_pass().of_index(proposed, self._index)
        self._parts.count(number, proposed, missing)
        yield tops, missing


class RescoreEncoded(EncoderDoFn):
    """Proposed rows → the best of them by encodings that are made here.

    Args:
        source: The better encoder.
        scan: Its queries, as for a scan.
        each: Work of one pair, for progress.
        reporter: Where progress goes.
    """

    def __init__(self, source: EncoderSource, scan: Scan, each: float, reporter: Reporter):
        super().__init__(source)
        self._parts = _Rescore(scan, each, reporter)

    def setup(self) -> None:
        super().setup()
        self._parts.load()

    def process(self, element: tuple[int, list[Proposed]]) -> Iterator[Rescored]:
        number, proposed = element
        tops, missing = best_of_encoded(self._parts.second_pass(), proposed, self.loaded())
        self._parts.count(number, proposed, missing)
        yield tops, missing


def propose(tops: Tops | None, links_uri: str, groups: int) -> Iterator[tuple[int, list[Proposed]]]:
    """The elements of the second pass."""
    if tops is None:
        raise TrackStarError("the scan gave nothing: the pipeline lost its elements")
    ends = [top for top in tops if top is not None]
    yield from enumerate(proposals(ends, read_links(links_uri), groups))


def tops_of(rescored: Rescored) -> Tops:
    """The rankings of one element."""
    return rescored[0]


def missing_of(rescored: Rescored) -> list[Missing]:
    """What one element could not score."""
    return rescored[1]


def count_pairs(tops: Tops) -> int:
    """Pairs of query and example in the rankings."""
    return sum(len(top) for top in tops if top is not None)


def checked_tops(tops: Tops | None, missing: list[Missing]) -> Tops:
    """The rankings; an error where nothing of what was proposed could be scored."""
    if tops is None:
        raise TrackStarError("the second pass gave nothing: the pipeline lost its elements")
    if missing and not count_pairs(tops):
        first = missing[0]
        raise TrackStarError(
            f"none of the {len(missing):,} proposed examples can be scored again; {first.example_id} ({first.shard}, position "
            f"{first.position}): {first.reason}"
        )
    return tops


def write_report(
    tops: Tops,
    proposed: int,
    missing: list[Missing],
    exact: Tops | None,
    described: TwoPassRun,
    chosen: list[int],
    uri: str,
) -> None:
    """Writes the report."""
    report(described, proposed, tops, missing, exact, chosen).save(uri)


def read_links(uri: str) -> dict[str, list[str]]:
    """Files of the better index by file of the cheap one."""
    return dict(json.loads(storage.read_bytes(uri)))


@dataclasses.dataclass(frozen=True)
class TextsElsewhere:
    """Texts of ranked rows, where the better index holds none and the cheap one does.

    Args:
        links_uri: As in `TwoPasses`.
        dimension: d of the cheap index.
    """

    links_uri: str
    dimension: int

    @functools.cached_property
    def _cheap_files(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for cheap, others in read_links(self.links_uri).items():
            for other in others:
                found.setdefault(other, []).append(cheap)
        return found

    def fetch(self, needed: tuple[str, list[int]]) -> Passages:
        """Passages of some rows of one file of the better index."""
        uri, rows = needed
        texts = texts_elsewhere(uri, rows, self._cheap_files[uri], self.dimension)
        found = fetch(needed)
        return {
            (uri, row): dataclasses.replace(found[uri, row], text=text) for row, text in zip(rows, texts, strict=True)
        }
