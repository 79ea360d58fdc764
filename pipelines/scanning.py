"""Scans of the index as transforms: files → top-k arrays, merged → results with their texts.

Scores meet in a merge of arrays; no encoding leaves the worker that read it. `score`, `standing` and `baseline` share this.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from pipelines import runner
from pipelines.elements import OneByOne
from pipelines.progress import Reporter
from trackstar import threads
from trackstar.devices import choose_device
from trackstar.errors import TrackStarError
from trackstar.index import DataFile
from trackstar.passages import fetch_passages
from trackstar.queries import Change, QuerySet
from trackstar.removal import NOTHING, Removals
from trackstar.results import Query, Ranking, Result, write_results
from trackstar.scoring import ScanSettings, scan_files
from trackstar.topk import TopK

Tops = tuple[TopK, TopK | None]
Passages = dict[tuple[str, int], str]


def scan_threads(wanted: int, beam_args: Sequence[str]) -> int:
    """Threads of torch in each scanning worker; 0 wants the cores' share."""
    return wanted or max(1, threads.cores() // runner.num_local_workers(beam_args))


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a worker needs to scan files; the large parts are files that it opens once.

    Args:
        queries_uri: A `QuerySet`.
        change_uri: A `Change`, or None.
        settings: How to score.
        threads: Threads of torch.
        removals_uri: `Removals`, or None.
    """

    queries_uri: str
    change_uri: str | None
    settings: ScanSettings
    threads: int
    removals_uri: str | None = None


@dataclasses.dataclass
class ScanIndex(beam.PTransform):
    """Files of the index → one element, the top-k of all of them together.

    Args:
        elements: Groups of files, each scanned by one worker.
        scan: What to scan them with.
        reporter: Where progress goes.
    """

    elements: list[list[DataFile]]
    scan: Scan
    reporter: Reporter

    def expand(self, root: Any) -> Any:
        return (
            root
            | OneByOne(list(enumerate(self.elements)))
            | "ScanFiles" >> beam.ParDo(ScanFiles(self.scan, self.reporter))
            | "MergeTops" >> beam.CombineGlobally(MergeTops())
        )


@dataclasses.dataclass
class WriteResults(beam.PTransform):
    """The top-k, one element → the results file, with the texts.

    Args:
        queries: The queries, in order.
        query_set: Name of the set.
        output: Results file.
    """

    queries: list[Query]
    query_set: str
    output: str

    def expand(self, tops: Any) -> Any:
        passages = tops | "FetchPassages" >> FetchPassages(fetch)
        return passages | "Write" >> beam.Map(
            write, beam.pvalue.AsSingleton(tops), self.queries, self.query_set, self.output
        )


class ScanFiles(beam.DoFn):
    """A group of files → its best rows for all queries."""

    def __init__(self, scan: Scan, reporter: Reporter):
        self._scan = scan
        self._reporter = reporter
        self._shared = Shared()
        self._loaded: _Loaded | None = None
        self._rows = Metrics.counter("trackstar", "num_scored_examples")

    def setup(self) -> None:
        """Opens queries and change once a process."""
        threads.use(self._scan.threads)
        self._loaded = self._shared.acquire(lambda: _Loaded(self._scan), tag=self._scan)

    def process(self, element: tuple[int, list[DataFile]]) -> Iterator[Tops]:
        assert self._loaded is not None
        number, files = element
        loaded = self._loaded
        tops = scan_files([file.uri for file in files], loaded.queries, loaded.settings, loaded.change, loaded.removals)
        rows = sum(file.num_rows for file in files)
        self._rows.inc(rows)
        self._reporter.report(str(number), sum(file.num_bytes for file in files), rows, finished=True)
        yield tops


class _Loaded:
    """Queries, change and removals, as `Shared` needs them: one object that can be referred to weakly."""

    def __init__(self, scan: Scan):
        self.queries = QuerySet.load(scan.queries_uri)
        self.change = Change.load(scan.change_uri) if scan.change_uri else None
        self.removals = Removals.read(scan.removals_uri) if scan.removals_uri else NOTHING
        self.settings = dataclasses.replace(scan.settings, device=str(choose_device(scan.settings.device)))


class MergeTops(beam.CombineFn):
    """Merges top-k arrays; the result does not depend on how they are grouped."""

    def create_accumulator(self) -> list[Tops]:
        return []

    def add_input(self, accumulator: list[Tops], element: Tops) -> list[Tops]:
        return [_merged([*accumulator, element])]

    def merge_accumulators(self, accumulators: Iterable[list[Tops]]) -> list[Tops]:
        tops = [element for accumulator in accumulators for element in accumulator]
        return [_merged(tops)] if tops else []

    def extract_output(self, accumulator: list[Tops]) -> Tops | None:
        return accumulator[0] if accumulator else None


def _merged(tops: Sequence[Tops]) -> Tops:
    opponents = [part for _, part in tops if part is not None]
    return TopK.merge([part for part, _ in tops]), TopK.merge(opponents) if opponents else None


@dataclasses.dataclass
class FetchPassages(beam.PTransform):
    """Merged rankings → the texts that they need, as one list.

    Args:
        fetch: Gives the texts of some rows of one file.
    """

    fetch: Callable[[tuple[str, list[int]]], Passages]

    def expand(self, tops: Any) -> Any:
        return (
            tops
            | "Winners" >> beam.FlatMap(winners)
            | "WinnersToAnyWorker" >> beam.Reshuffle()
            | "Fetch" >> beam.Map(self.fetch)
            | "AllPassages" >> beam.combiners.ToList()
        )


def winners(tops: Tops) -> Iterator[tuple[str, list[int]]]:
    """The rows whose texts are needed, file by file."""
    rows: dict[str, set[int]] = {}
    for top in tops:
        if top is not None:
            for file, row in zip(top.files.tolist(), top.rows.tolist(), strict=True):
                rows.setdefault(top.uris[file], set()).add(row)
    for uri in sorted(rows):
        yield uri, sorted(rows[uri])


def fetch(needed: tuple[str, list[int]]) -> Passages:
    """Texts of some rows of one file; empty strings where the index holds none."""
    uri, rows = needed
    _, texts, _ = fetch_passages(uri, rows)
    return {(uri, row): text for row, text in zip(rows, texts or [""] * len(rows), strict=True)}


def write(passages: list[Passages], tops: Tops | None, queries: list[Query], query_set: str, output: str) -> None:
    """Writes the results file."""
    if tops is None:
        raise TrackStarError("the scan gave nothing: the pipeline lost its elements")
    texts = {key: text for part in passages for key, text in part.items()}
    write_results(
        output,
        (
            Result(query, query_set, _ranking(tops[0], number, texts), _ranking(tops[1], number, texts))
            for number, query in enumerate(queries)
        ),
    )


def _ranking(top: TopK | None, query: int, texts: Passages) -> Ranking:
    if top is None:
        return Ranking()
    span = top.entries(query)
    places = [(top.uris[f], row) for f, row in zip(top.files[span].tolist(), top.rows[span].tolist(), strict=True)]
    return Ranking([texts[place] for place in places], top.example_ids[span].to_pylist(), top.scores[span].tolist())
