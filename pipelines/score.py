"""Finds each query's proponents and opponents: the examples with the highest and lowest scores in the whole index.

Every encoding is scored against every query, exactly: no sampling, no pre-filter. Where the index has an R_train (fit
--preconditioner train), --task_hessian auto scores under R = λ R_eval + (1 − λ) R_train, R_eval from these queries; the index
need not be built again for it.

In two passes (--better_index, --better_spec) a cheap index is scanned, and what it proposes is scored again in a better form.
That is exact but for what the cheap one does not propose; --check_recall measures how much that is.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipelines import cli, cost_flags, costs, flag_types, options, runner
from pipelines.build_index import encoder_source
from pipelines.cost_flags import add_cost_arguments
from pipelines.model_flags import add_model_arguments
from pipelines.progress import Progress, Reporter, say
from pipelines.query_parts import encode_queries
from pipelines.scan_flags import (
    add_query_arguments,
    add_ranking_arguments,
    add_scan_arguments,
    add_two_pass_arguments,
    check_two_pass_arguments,
    query_set_of,
)
from pipelines.scanning import Scan, ScanIndex, WriteResults, scan_threads
from pipelines.two_pass import TwoPassScore, open_better
from trackstar import storage
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated, estimate_score
from trackstar.devices import choose_device
from trackstar.encoder import EncoderSource
from trackstar.file_groups import group_files
from trackstar.index import DataFile, Index, Snapshot
from trackstar.query_encoding import prepare_queries, queries_key
from trackstar.removed_items import load_removals
from trackstar.results import Query, read_queries
from trackstar.scoring import ScanSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--index", required=True, metavar="DIR", help="the index that `trackstar build-index` filled")
    add_query_arguments(parser)
    parser.add_argument(
        "--sources",
        type=options.boolean,
        default=False,
        metavar="true|false",
        help="write shard and position of each example into the results, too",
    )
    add_model_arguments(parser)
    add_ranking_arguments(parser)
    add_two_pass_arguments(parser)
    run = parser.add_argument_group("the run")
    run.add_argument("--version", type=flag_types.natural, metavar="N", help="snapshot of the index (the last)")
    add_scan_arguments(run)
    add_cost_arguments(parser)


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Encodes the queries, scans the index, writes the results."""
    check_two_pass_arguments(args)
    index = Index.open(args.index)
    index.spec.check_unit_norm(args.unit_norm)
    snapshot = index.snapshot(args.version)
    queries = read_queries(args.queries)
    source = encoder_source(args, index)
    better = open_better(args, index, snapshot)
    if better is not None:
        two_passes = TwoPassScore(args, beam_args, index, snapshot, queries, source, better)
        return costs.dry_run(args, beam_args, two_passes.estimate) if cost_flags.wanted(args) else two_passes.run()
    if cost_flags.wanted(args):
        return costs.dry_run(
            args, beam_args, lambda basis: estimate(args, index, snapshot, queries, source, beam_args, basis)
        )
    work = storage.join(index.uri, "queries", queries_key(index.spec.hash, queries))
    parts = encode_queries(queries, source, work, beam_args)
    prepared = prepare_queries(index, parts, args.task_hessian, args.task_mixing, args.keep_task_hessian, say)
    settings = ScanSettings(args.top_k, args.opponents, args.unit_norm, args.device)
    removals = load_removals(index)
    scan = Scan(
        *prepared.save(work),
        settings,
        scan_threads(args.scan_threads, beam_args),
        removals.save(work),
    )
    files = [file for file in snapshot.files if file.shard not in removals.shards]
    elements = group_files(files, args.scan_bytes)
    total = float(sum(file.num_bytes for file in files))
    with Progress("scanning", total, len(elements), "examples", enabled=runner.is_local(beam_args)) as progress:
        transform = ScoreIndex(
            elements=elements,
            scan=scan,
            queries=queries,
            query_set=query_set_of(args),
            output=args.output,
            reporter=progress.reporter,
            sources=args.sources,
        )
        runner.run_pipeline(lambda pipeline: pipeline | "ScoreIndex" >> transform, beam_args)
    storage.delete(work)
    what = f"{sum(file.num_rows for file in files):,} examples (version {snapshot.version})"
    without = f", without {len(removals.ids):,} ids that were taken down" if removals.ids else ""
    say(f"{args.output}: {len(queries):,} queries against {what}{without}")
    return cli.EXIT_DONE


def estimate(
    args: argparse.Namespace,
    index: Index,
    snapshot: Snapshot,
    queries: Sequence[Query],
    source: EncoderSource,
    beam_args: Sequence[str],
    basis: Basis,
) -> Estimated:
    """What scoring would take."""
    removed = load_removals(index).shards
    files = [file for file in snapshot.files if file.shard not in removed]
    return estimate_score(
        index.spec,
        files,
        len(group_files(files, args.scan_bytes)),
        queries,
        ScanSettings(args.top_k, args.opponents, args.unit_norm, str(choose_device(args.device))),
        args.task_hessian,
        source,
        scan_threads(args.scan_threads, beam_args),
        basis,
    )


@dataclasses.dataclass
class ScoreIndex(beam.PTransform):
    """Files of the index → results. Scores meet in a merge of top-k arrays; no encoding leaves its worker.

    Args:
        elements: Groups of files, each scanned by one worker.
        scan: What to scan them with.
        queries: The queries, in order.
        query_set: Name of the set.
        output: Results file.
        reporter: Where progress goes.
        sources: Whether to write shards and positions, too.
    """

    elements: list[list[DataFile]]
    scan: Scan
    queries: list[Query]
    query_set: str
    output: str
    reporter: Reporter
    sources: bool = False

    def expand(self, root: Any) -> Any:
        return (
            root
            | ScanIndex(self.elements, self.scan, self.reporter)
            | WriteResults(self.queries, self.query_set, self.output, self.sources)
        )


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.score`."""
    return cli.run_command("score", argv)


if __name__ == "__main__":
    raise SystemExit(main())
