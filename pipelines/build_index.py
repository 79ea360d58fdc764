"""Encodes the corpus into the index: one file a work item, then one commit.

Items whose file exists are done, so a run that broke off is taken up by starting it again.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipelines import cli, cost_flags, costs, runner
from pipelines.corpus import add_corpus_arguments, add_reject_argument, planned
from pipelines.cost_flags import add_cost_arguments
from pipelines.elements import OneByOne
from pipelines.model_flags import add_model_arguments
from pipelines.progress import Progress, Reporter, say
from pipelines.rewriting import rewrite_items
from pipelines.workers import EncoderDoFn
from trackstar import checkpoint_files, manifest, storage
from trackstar.corpus import Shard, WorkItem
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated, estimate_build
from trackstar.encoder import EncoderSource
from trackstar.errors import ShardError
from trackstar.index import Index
from trackstar.indexing import encode_item, take_failure, write_failure
from trackstar.item_footer import ItemCounts, ItemFile
from trackstar.manifest import Manifest
from trackstar.removal import NOTHING, Removals
from trackstar.removed_items import base_key, discover, load_removals, without_removed
from trackstar.spec import Spec
from trackstar.write_lock import WriteLock

_READERS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--index", required=True, metavar="DIR", help="the index that `trackstar fit` made")
    add_corpus_arguments(parser)
    add_model_arguments(parser)
    add_reject_argument(parser, "encoded")
    add_cost_arguments(parser)


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Encodes what is missing and commits the snapshot."""
    index = Index.open(args.index)
    shards, items = planned(args)
    source = encoder_source(args, index)
    if cost_flags.wanted(args):
        return costs.dry_run(args, beam_args, lambda basis: estimate(index, shards, items, source, basis))
    with WriteLock(index.uri, "build-index") as lock:
        index.remove_partial_files()
        encoded = encode_items(index, items, source, beam_args)
        encoded.check_failures()
        encoded.check_rejects(index, args.max_reject_fraction)
        manifest.save(index, Manifest.of(index.spec.hash, shards, encoded.items, args.item_bytes, args.fingerprint))
        lock.check()
        version = index.commit(encoded.files)
    what = f"{encoded.counts.examples:,} examples in {len(encoded.files)} files"
    say(f"{args.index}: version {version}: {what}; next: trackstar score")
    return cli.EXIT_DONE


def estimate(
    index: Index,
    shards: Sequence[Shard],
    items: Sequence[WorkItem],
    source: EncoderSource,
    basis: Basis,
    command: str = "build-index",
) -> Estimated:
    """What encoding the items that have no file yet would take."""
    present = index.existing_keys()
    missing = [item for item in items if item.key(index.spec.hash) not in present]
    return estimate_build(index.spec, shards, missing, len(items) - len(missing), source, basis, command)


def encoder_source(args: argparse.Namespace, index: Index) -> EncoderSource:
    """Where workers find the encoder of an index."""
    return EncoderSource.of_index(
        index.uri, index.spec, args.model, args.device, args.threads_per_worker, args.allow_low_coverage
    )


@dataclasses.dataclass
class Encoded:
    """What came of encoding a corpus; of the items, as they are without what was taken down."""

    files: list[ItemFile]
    counts: ItemCounts
    failures: list[str]
    items: list[WorkItem] = dataclasses.field(default_factory=list)

    def check_failures(self) -> None:
        """Raises where a shard could not be read; what was encoded stays for the next run."""
        if self.failures:
            shown = "\n  ".join(self.failures[:20])
            raise runner.PipelineError(
                f"{len(self.failures)} work item(s) failed, nothing was committed:\n  {shown}\n"
                f"The other {len(self.files)} are kept: mend or leave out these shards and run the command again."
            )

    def check_rejects(self, index: Index, limit: float) -> None:
        """Raises where too many records were rejected."""
        counts = self.counts
        if counts.truncated:
            say(
                f"{counts.truncated:,} documents were cut to {index.spec.max_length} tokens (--long_documents split keeps all)"
            )
        if not counts.rejected:
            return
        fraction = counts.rejected / max(1, counts.records)
        summary = (
            f"{counts.rejected:,} of {counts.records:,} records ({fraction:.2%}) could not be encoded; "
            f"each with its reason in {storage.join(index.uri, 'rejects')}"
        )
        first = itertools.islice(index.rejects([file.key for file in self.files]), 5)
        reasons = "\n  ".join(f"{reject.shard}:{reject.position}: {reject.reason}" for reject in first)
        if fraction > limit:
            raise runner.PipelineError(
                f"{summary}. The limit is {limit:.2%}, so nothing was committed; the first:\n  {reasons}\n"
                "Mend them, or raise --max_reject_fraction and run again: what is encoded is kept."
            )
        say(f"{summary}; the first:\n  {reasons}")


def encode_items(index: Index, items: Sequence[WorkItem], source: EncoderSource, beam_args: Sequence[str]) -> Encoded:
    """Makes the files of the items, those that there are not yet, and gathers all.

    None of them holds what was taken down, up to the moment when this returns: commit soon after.
    """
    tried: set[str] = set()
    while True:
        items = without_removed(index, items)
        rewrite_items(index, items, beam_args)
        keys = {item.key(index.spec.hash): item for item in items}
        missing = {key: keys[key] for key in keys.keys() - index.existing_keys() - tried}
        if not missing:
            return gather(index, items)
        if len(missing) < len(keys) and not tried:
            say(f"{len(keys) - len(missing)} of {len(keys)} work items are done already")
        tried |= missing.keys()
        _run(index, [item for key, item in keys.items() if key in missing], source, beam_args)


def _run(index: Index, items: Sequence[WorkItem], source: EncoderSource, beam_args: Sequence[str]) -> None:
    """Runs the pipeline over the items; its workers hold the model against the index's spec."""
    checkpoint = checkpoint_files.fingerprints(source.model)
    removals_uri = load_removals(index).save(storage.join(index.uri, "removed", "lists"))
    total = sum(item.num_bytes for item in items)
    with Progress("encoding", total, len(items), "examples", enabled=runner.is_local(beam_args)) as progress:
        fields = [item.to_dict() for item in items]
        transform = EncodeItems(fields, source, index.uri, progress.reporter, removals_uri)
        runner.run_pipeline(lambda pipeline: pipeline | "EncodeItems" >> transform, beam_args)
    checkpoint_files.record(index.uri, checkpoint)
    if removals_uri:
        storage.delete(removals_uri)


def check_model(source: EncoderSource, beam_args: Sequence[str]) -> None:
    """Has a worker load the encoder and do nothing with it.

    Raises:
        PipelineError: the model is not the one that the index was made with; the message says what differs.
    """
    load = "LoadEncoder" >> beam.ParDo(LoadEncoder(source))
    runner.run_pipeline(lambda pipeline: pipeline | OneByOne([None]) | load, beam_args)


def gather(index: Index, items: Sequence[WorkItem]) -> Encoded:
    """Files and counts of items; those that have neither file nor failure note fail, too."""
    files, failures, counts = [], [], ItemCounts()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:  # in an object store, some requests an item
        found = list(pool.map(lambda item: index.has_item(item.key(index.spec.hash)), items))
    for item, file in zip(items, found, strict=True):
        if file is None:
            note = take_failure(index, base_key(index, item))
            failures.append(note or f"{item.shard}: no file was written for it")
            continue
        files.append(file)
        counts += ItemCounts.of(file.metadata)
    return Encoded(files, counts, failures, list(items))


@dataclasses.dataclass
class EncodeItems(beam.PTransform):
    """Work items → files of the index. Encodings never leave the worker that made them.

    Args:
        items: `WorkItem`s as dictionaries.
        source: The encoder.
        index_uri: The index.
        reporter: Where progress goes.
        removals_uri: `Removals`, or None.
        replace: Whether files that exist are written anew.
    """

    items: list[dict[str, Any]]
    source: EncoderSource
    index_uri: str
    reporter: Reporter
    removals_uri: str | None = None
    replace: bool = False

    def expand(self, root: Any) -> Any:
        encode = EncodeItem(self.source, self.index_uri, self.reporter, self.removals_uri, self.replace)
        return root | OneByOne(self.items) | "EncodeItem" >> beam.ParDo(encode)


class LoadEncoder(EncoderDoFn):
    """Has the encoder, which raises where one of its parts is not the index's."""

    def process(self, element: None) -> Iterator[str]:
        yield self.loaded().spec.hash


class EncodeItem(EncoderDoFn):
    """Encodes one work item into its file; a shard that cannot be read leaves a note and fails nothing else."""

    def __init__(
        self,
        source: EncoderSource,
        index_uri: str,
        reporter: Reporter,
        removals_uri: str | None = None,
        replace: bool = False,
    ):
        super().__init__(source)
        self._index_uri = index_uri
        self._removals_uri = removals_uri
        self._replace = replace
        self._removals = NOTHING
        self._reporter = reporter
        self._index: Index | None = None
        self._rows = Metrics.counter("trackstar", "num_inferences")
        self._rejected = Metrics.counter("trackstar", "num_rejects")
        self._failed = Metrics.counter("trackstar", "num_failed_items")

    def setup(self) -> None:
        super().setup()
        self._index = Index(self._index_uri, Spec.from_json(self._source.spec_json))
        if self._removals_uri:
            self._removals = Removals.read(self._removals_uri)

    def process(self, fields: dict[str, Any]) -> Iterator[tuple[str, int]]:
        assert self._index is not None
        item = WorkItem.from_dict(fields)
        key = base_key(self._index, item)
        try:
            item = discover(self._index, item, self._removals)
            file, existed = encode_item(
                self.loaded(),
                self._index,
                item,
                lambda work, count: self._reporter.report(key, work, count),
                self._replace,
            )
        except ShardError as error:
            self._failed.inc()
            write_failure(self._index, key, str(error))
            return
        self._reporter.report(key, item.num_bytes, file.num_rows, finished=True)
        if not existed:
            counts = ItemCounts.of(file.metadata)
            self._rows.inc(counts.examples)
            self._rejected.inc(counts.rejected)
        yield file.key, file.num_rows


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.build_index`."""
    return cli.run_command("build-index", argv)


if __name__ == "__main__":
    raise SystemExit(main())
