"""Scores in two passes: the scan of a cheap index proposes, and what it proposes is scored again in a better form.

The better form is another index of the same corpus, of whose encodings only the proposed rows are read; or it is computed, by
encoding the proposed examples once more under the spec of an index that holds nothing.
"""

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence

import apache_beam as beam

from pipelines import cli, runner
from pipelines.build_index import encoder_source
from pipelines.progress import Progress, Reporter, say
from pipelines.query_parts import encode_queries
from pipelines.scan_flags import over_fetch, query_set_of
from pipelines.scanning import Scan, ScanIndex, WriteResults, scan_threads
from pipelines.second_pass import RescoreEncoded, RescoreStored, TextsElsewhere, TwoPasses
from trackstar import index_pair, storage
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated
from trackstar.cost.two_pass import PlannedPasses, estimate_two_pass
from trackstar.devices import choose_device
from trackstar.encoder import EncoderSource
from trackstar.file_groups import group_files
from trackstar.index import DataFile, Index, Snapshot
from trackstar.index_pair import IndexPair
from trackstar.queries import QuerySet
from trackstar.query_encoding import prepare_queries, queries_key
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.two_pass import TwoPassReport, TwoPassRun, report_uri, sample_queries

_GROUP_PAIRS = 512
"""Pairs of query and example that one element of work scores again, about: so many rows at most."""
_ENCODED_AS_BYTES = 10e6
"""Of a scan, which take about as long as encoding an example does: for the bar alone."""


@dataclasses.dataclass(frozen=True)
class Better:
    """The better form.

    Args:
        index: Its index.
        snapshot: What scores come from; None where encodings are computed.
        source: Its encoder.
        pair: The two indexes, compared.
    """

    index: Index
    snapshot: Snapshot | None
    source: EncoderSource
    pair: IndexPair


def open_better(args: argparse.Namespace, index: Index, snapshot: Snapshot) -> Better | None:
    """The better form that the flags name, held against the index that is scanned; None where none is asked for.

    Raises:
        TrackStarError: indexes that do not belong together.
    """
    uri = args.better_index or args.better_spec
    if uri is None:
        return None
    better = Index.open(uri)
    index_pair.check_specs(index, better)
    better.spec.check_unit_norm(args.unit_norm)
    source = encoder_source(args, better)
    if args.better_spec:
        return Better(better, None, source, index_pair.alone(index, snapshot))
    better_snapshot = better.snapshot(args.better_version)
    pair = index_pair.pair(index, snapshot, better, better_snapshot)
    pair.check(args.max_missing_fraction, index.uri, better.uri)
    if better.spec.bytes_per_encoding <= index.spec.bytes_per_encoding:
        say(
            f"note: {better.uri} ({better.spec.describe_storage()}) is no larger than {index.uri} "
            f"({index.spec.describe_storage()}), all of which is scanned: are --index and --better_index the wrong way round?"
        )
    return Better(better, better_snapshot, source, pair)


@dataclasses.dataclass(frozen=True)
class TwoPassScore:
    """A run of `score` in two passes.

    Args:
        args: The command's arguments.
        beam_args: Beam's flags.
        index: The index that is scanned.
        snapshot: Of it.
        queries: The queries.
        source: The index's encoder.
        better: The better form.
    """

    args: argparse.Namespace
    beam_args: Sequence[str]
    index: Index
    snapshot: Snapshot
    queries: list[Query]
    source: EncoderSource
    better: Better

    def run(self) -> int:
        """Encodes the queries for both forms, scans, scores again, writes results and report."""
        for line in self._notes():
            say(line)
        first = self._scan(self.index, self.source, self._proposing)
        second = self._scan(self.better.index, self.better.source, self._settings)
        where, output = report_uri(self.args.output), self.args.output
        elements, checked = self._elements, self._checked_elements
        work = sum(file.num_bytes for group in (*elements, *checked) for file in group) + self._pairs * self._pair_work
        count = len(elements) + len(checked) + self._groups
        with Progress("scoring", work, count, "examples", enabled=runner.is_local(self.beam_args)) as progress:
            links = self._save_links()
            transform = TwoPasses(
                first=ScanIndex(elements, first, progress.reporter),
                links_uri=links,
                groups=self._groups,
                rescore=self._rescore(second, progress.reporter),
                check=self._check(second, progress.reporter),
                results=self._results(output, links),
                described=self._described(),
                chosen=self._chosen,
                report_uri=where,
            )
            runner.run_pipeline(lambda pipeline: pipeline | "TwoPasses" >> transform, self.beam_args)
        for index in (self.index, self.better.index):
            storage.delete(self._work(index))
        for line in TwoPassReport.load(where).describe(where):
            say(line)
        say(f"{output}: {len(self.queries):,} queries; what was done: {where}")
        return cli.EXIT_DONE

    def estimate(self, basis: Basis) -> Estimated:
        """What both passes, and the check if there is one, would take."""
        args, better = self.args, self.better
        device = str(choose_device(args.device))
        planned = PlannedPasses(
            files=better.pair.cheap_files,
            groups=len(self._elements),
            better_files=better.pair.better_files,
            better_groups=len(group_files(better.pair.better_files, args.scan_bytes)),
            pairs=self._pairs,
            second_groups=self._groups,
            checked=len(self._chosen),
            computes=better.snapshot is None,
        )
        return estimate_two_pass(
            (self.index.spec, self.source, dataclasses.replace(self._proposing, device=device)),
            (better.index.spec, better.source, dataclasses.replace(self._settings, device=device)),
            planned,
            self.queries,
            args.task_hessian,
            scan_threads(args.scan_threads, self.beam_args),
            basis,
        )

    @property
    def _settings(self) -> ScanSettings:
        args = self.args
        return ScanSettings(args.top_k, args.opponents, args.unit_norm, args.device)

    @property
    def _proposing(self) -> ScanSettings:
        plain, top_k = self._settings, self.args.top_k * over_fetch(self.args)
        # Twice what is found may wait, or a scan for so many would score in float64 after every block.
        return dataclasses.replace(
            plain, top_k=top_k, max_pairs=max(plain.max_pairs, 2 * len(self.queries) * self._depth)
        )

    @property
    def _depth(self) -> int:
        """Examples that are proposed of a query, at one end."""
        rows = sum(file.num_rows for file in self.better.pair.cheap_files)
        return min(self.args.top_k * over_fetch(self.args), rows)

    @property
    def _elements(self) -> list[list[DataFile]]:
        return group_files(self.better.pair.cheap_files, self.args.scan_bytes)

    @property
    def _checked_elements(self) -> list[list[DataFile]]:
        return group_files(self.better.pair.better_files, self.args.scan_bytes) if self._chosen else []

    @property
    def _chosen(self) -> list[int]:
        """Numbers of the queries whose recall is measured."""
        return sample_queries(len(self.queries), self.args.check_recall or 0)

    @property
    def _pairs(self) -> int:
        """Pairs that the first pass proposes at most."""
        return len(self.queries) * (2 if self.args.opponents else 1) * self._depth

    @property
    def _groups(self) -> int:
        """Elements of work of the second pass."""
        return max(1, min(len(self.better.pair.cheap_files), math.ceil(self._pairs / _GROUP_PAIRS)))

    @property
    def _pair_work(self) -> float:
        """Work of one pair in the second pass, in bytes of a scan."""
        return float(self.better.index.spec.bytes_per_encoding) if self.better.snapshot else _ENCODED_AS_BYTES

    def _notes(self) -> Iterator[str]:
        pair = self.better.pair
        if pair.differences:
            yield f"left out, since the two indexes do not both hold it: {pair.describe()}"
        for uri, count in pair.one_sided.items():
            yield (
                f"{count:,} ids or shards that were taken down of the other index were not taken down of {uri}; this run leaves "
                f"them out: take them down there, too (`trackstar remove --index {uri} …`)"
            )

    def _work(self, index: Index) -> str:
        """Folder for what workers read, for as long as the run takes."""
        return storage.join(index.uri, "queries", queries_key(index.spec.hash, self.queries) + "-two-pass")

    def _scan(self, index: Index, source: EncoderSource, settings: ScanSettings) -> Scan:
        """Encodes the queries for one of the two."""
        args, work = self.args, self._work(index)
        parts = encode_queries(self.queries, source, work, self.beam_args, index.uri)
        # Of the two, one alone may have an R to mix.
        mixing = None if index.spec.preconditioner == "none" else args.task_mixing
        prepared = prepare_queries(index, parts, args.task_hessian, mixing, None, say)
        return Scan(
            *prepared.save(work),
            settings,
            scan_threads(args.scan_threads, self.beam_args),
            self.better.pair.removals.save(work),
        )

    def _save_links(self) -> str:
        content = json.dumps(self.better.pair.links).encode()
        uri = storage.join(self._work(self.index), f"links-{hashlib.sha256(content).hexdigest()[:16]}.json")
        storage.write_bytes(uri, content)
        return uri

    def _rescore(self, scan: Scan, reporter: Reporter) -> beam.DoFn:
        better = self.better
        if better.snapshot is None:
            return RescoreEncoded(better.source, scan, self._pair_work, reporter)
        return RescoreStored(better.index.uri, scan, self._pair_work, reporter)

    def _check(self, scan: Scan, reporter: Reporter) -> ScanIndex | None:
        """The scan of the better index alone, for some of the queries."""
        if not self._chosen:
            return None
        uri = storage.join(self._work(self.better.index), "checked.safetensors")
        QuerySet.load(scan.queries_uri).choose(self._chosen).save(uri)
        scan = dataclasses.replace(scan, queries_uri=uri)
        return ScanIndex(self._checked_elements, scan, reporter, len(self._elements))

    def _results(self, output: str, links: str) -> WriteResults:
        """Writes results; with texts of the scanned index where the other holds none."""
        better, spec = self.better, self.index.spec
        elsewhere = better.snapshot is not None and spec.stores_text and not better.index.spec.stores_text
        fetch = TextsElsewhere(links, spec.dimension).fetch if elsewhere else None
        return WriteResults(self.queries, query_set_of(self.args), output, self.args.sources, fetch)

    def _described(self) -> TwoPassRun:
        better, pair = self.better, self.better.pair
        return TwoPassRun(
            index=self.index.uri,
            version=self.snapshot.version,
            storage=self.index.spec.storage,
            better=better.index.uri,
            better_version=None if better.snapshot is None else better.snapshot.version,
            better_storage=better.index.spec.storage,
            queries=len(self.queries),
            top_k=self.args.top_k,
            over_fetch=over_fetch(self.args),
            examples=sum(file.num_rows for file in pair.cheap_files),
            differences=pair.differences,
            missing_fraction=pair.missing,
            one_sided=pair.one_sided,
            checked=tuple(self.queries[number].example_id for number in self._chosen),
        )
