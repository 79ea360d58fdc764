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
from trackstar.passages import fetch_rows
from trackstar.queries import Change, QuerySet
from trackstar.removal import NOTHING, Removals
from trackstar.results import Query, Ranking, Result, write_results
from trackstar.scan_settings import ScanLimit, ScanSettings
from trackstar.scoring import scan_files
from trackstar.topk import TopK

Tops = tuple[TopK, TopK | None]


@dataclasses.dataclass(frozen=True)
class Passage:
    """What results say of an example, besides its id and score.

    Args:
        text: What was encoded; empty where the index holds no texts.
        shard: Its corpus file.
        position: Where its record lies in the shard.
    """

    text: str
    shard: str = ""
    position: int = 0


Passages = dict[tuple[str, int], Passage]


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
        first: Number of the first group, for progress where several scans share a reporter.
    """

    elements: list[list[DataFile]]
    scan: Scan
    reporter: Reporter
    first: int = 0

    def expand(self, root: Any) -> Any:
        return (
            root
            | OneByOne(list(enumerate(self.elements, self.first)))
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
        sources: Whether to write shards and positions, too.
        fetch: Gives the passages of some rows of one file; by default what the file itself holds.
    """

    queries: list[Query]
    query_set: str
    output: str
    sources: bool = False
    fetch: "Callable[[tuple[str, list[int]]], Passages] | None" = None

    def expand(self, tops: Any) -> Any:
        passages = tops | "FetchPassages" >> FetchPassages(self.fetch or fetch)
        return passages | "Write" >> beam.Map(
            write, beam.pvalue.AsSingleton(tops), self.queries, self.query_set, self.output, self.sources
        )


class ScanFiles(beam.DoFn):
    """A group of files → its best rows for all queries."""

    def __init__(self, scan: Scan, reporter: Reporter):
        self._scan = scan
        self._reporter = reporter
        self._shared = Shared()
        self._loaded: LoadedScan | None = None
        self._rows = Metrics.counter("trackstar", "num_scored_examples")

    def setup(self) -> None:
        """Opens queries and change once a process."""
        threads.use(self._scan.threads)
        self._loaded = self._shared.acquire(lambda: LoadedScan(self._scan), tag=self._scan)

    def process(self, element: tuple[int, list[DataFile]]) -> Iterator[Tops]:
        assert self._loaded is not None
        number, files = element
        loaded = self._loaded
        uris = [file.uri for file in files]
        tops = scan_files(uris, loaded.queries, loaded.settings, loaded.change, loaded.removals, limit=loaded.limit)
        rows = sum(file.num_rows for file in files)
        self._rows.inc(rows)
        self._reporter.report(str(number), sum(file.num_bytes for file in files), rows, finished=True)
        yield tops


class LoadedScan:
    """Queries, change, removals and what is known of the device, as `Shared` needs them: one object that can be referred to
    weakly."""

    def __init__(self, scan: Scan):
        self.queries = QuerySet.load(scan.queries_uri)
        self.change = Change.load(scan.change_uri) if scan.change_uri else None
        self.removals = Removals.read(scan.removals_uri) if scan.removals_uri else NOTHING
        device = choose_device(scan.settings.device)
        self.settings = dataclasses.replace(scan.settings, device=str(device))
        self.limit = ScanLimit(device)


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
    """What the index says of some rows of one file; empty texts where it holds none."""
    uri, rows = needed
    table, metadata = fetch_rows(uri, rows, ("text", "position", "shard"))
    columns = table.to_pydict()
    texts = columns.get("text", [""] * len(rows))
    shards = columns.get("shard", [metadata.get("shard", "")] * len(rows))
    places = zip(rows, texts, shards, columns["position"], strict=True)
    return {(uri, row): Passage(text, shard, position) for row, text, shard, position in places}


def write(
    passages: list[Passages],
    tops: Tops | None,
    queries: list[Query],
    query_set: str,
    output: str,
    sources: bool = False,
) -> None:
    """Writes the results file; with `sources`, shards and positions of the examples in further fields."""
    if tops is None:
        raise TrackStarError("the scan gave nothing: the pipeline lost its elements")
    found = {key: passage for part in passages for key, passage in part.items()}

    def result(number: int, query: Query) -> Result:
        ends = [_passages(top, number, found) for top in tops]
        if sources:
            further = {
                f"{end}_{name}s": [getattr(passage, name) for passage in passages]
                for end, passages in zip(("proponent", "opponent"), ends, strict=True)
                for name in ("shard", "position")
            }
            query = dataclasses.replace(query, fields={**query.fields, **further})
        proponents, opponents = (_ranking(top, number, end) for top, end in zip(tops, ends, strict=True))
        return Result(query, query_set, proponents, opponents)

    write_results(output, (result(number, query) for number, query in enumerate(queries)))


def _passages(top: TopK | None, query: int, found: Passages) -> list[Passage]:
    if top is None:
        return []
    span = top.entries(query)
    places = zip(top.files[span].tolist(), top.rows[span].tolist(), strict=True)
    return [found[top.uris[file], row] for file, row in places]


def _ranking(top: TopK | None, query: int, passages: Sequence[Passage]) -> Ranking:
    if top is None:
        return Ranking()
    span = top.entries(query)
    texts = [passage.text for passage in passages]
    return Ranking(texts, top.example_ids[span].to_pylist(), top.scores[span].tolist())
