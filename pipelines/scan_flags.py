"""Flags of the commands that scan the index: the queries, the ranking, the scan. Nothing is imported here that scans."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipelines import flag_types, options
from trackstar.errors import TrackStarError


def add_query_arguments(parser: argparse.ArgumentParser) -> None:
    """--queries, --output and --query_set."""
    parser.add_argument(
        "--queries", required=True, metavar="FILE", help="JSONL: inputs_plaintext, targets_plaintext, …"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="results, JSONL")
    parser.add_argument("--query_set", metavar="NAME", help="the results' field query_set (the queries file's name)")


def query_set_of(args: argparse.Namespace) -> str:
    """Name of the set of queries."""
    return str(args.query_set or PurePosixPath(args.queries).name.split(".")[0])


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    """What is ranked, and by which score."""
    group = parser.add_argument_group("the ranking")
    group.add_argument("--top_k", type=flag_types.positive, default=100, metavar="N", help="proponents a query")
    group.add_argument(
        "--opponents", type=options.boolean, default=True, metavar="true|false", help="look for as many opponents, too"
    )
    group.add_argument(
        "--task_hessian",
        default="auto",
        metavar="auto|none|identity|DIR",
        help="where the index has an R_train: auto: mix R_eval of these queries into it; none: R_train alone; identity: no "
        "preconditioner at all (for comparisons); or the folder of an R_eval",
    )
    group.add_argument("--keep_task_hessian", metavar="DIR", help="keep R_eval there, for --task_hessian of later runs")
    group.add_argument(
        "--task_mixing", type=flag_types.fraction, metavar="X", help="λ of R = λ R_eval + (1−λ) R_train (crossing rule)"
    )
    group.add_argument(
        "--unit_norm",
        type=options.boolean,
        default=True,
        metavar="true|false",
        help="false multiplies each score by the norms that encodings were divided by (for comparisons)",
    )


DEFAULT_OVER_FETCH = 10


def add_two_pass_arguments(parser: argparse.ArgumentParser) -> None:
    """What is proposed by one index and scored by another."""
    group = parser.add_argument_group("two passes: --index, a cheap form, proposes; a better form has the last word")
    group.add_argument(
        "--better_index",
        metavar="DIR",
        help="another index of the same corpus and model, with better encodings: the best top_k × over_fetch of --index are "
        "scored again in it, and results have its scores",
    )
    group.add_argument(
        "--better_version", type=flag_types.natural, metavar="N", help="snapshot of --better_index (the last)"
    )
    group.add_argument(
        "--better_spec",
        metavar="DIR",
        help="instead of --better_index: an index as `trackstar fit` leaves it; the best of --index are encoded again "
        "under its spec, by the model, from their texts",
    )
    group.add_argument(
        "--over_fetch",
        type=flag_types.positive,
        metavar="N",
        help=f"times top_k that the first pass proposes, at each end of the ranking ({DEFAULT_OVER_FETCH})",
    )
    group.add_argument(
        "--check_recall",
        type=flag_types.positive,
        metavar="N",
        help="scan --better_index alone, too, for N of the queries, and say how many of its best the two passes found",
    )
    group.add_argument(
        "--max_missing_fraction",
        type=flag_types.fraction,
        default=0.0,
        metavar="X",
        help="largest share of the examples that only one of the two indexes may hold, by whole shards; they are left out "
        "and named (0)",
    )


def check_two_pass_arguments(args: argparse.Namespace) -> None:
    """Raises TrackStarError where flags of the two passes contradict each other or lack what they belong to."""
    if args.better_index and args.better_spec:
        raise TrackStarError("--better_index reads better encodings and --better_spec computes them: give one of them")
    if not args.better_index:
        alone = {"better_version": None, "check_recall": None, "max_missing_fraction": 0.0}
        for name, default in alone.items():
            if getattr(args, name) != default:
                raise TrackStarError(f"--{name} belongs to --better_index: give both, or neither")
    if not args.better_index and not args.better_spec:
        if args.over_fetch is not None:
            raise TrackStarError("--over_fetch belongs to --better_index or --better_spec: give one of them, too")
        return
    if args.task_hessian not in ("auto", "none", "identity"):
        raise TrackStarError(
            f"--task_hessian {args.task_hessian}: an R_eval that was kept belongs to one index, and here there are two; give "
            "auto, none or identity"
        )
    if args.keep_task_hessian:
        raise TrackStarError("--keep_task_hessian keeps the R_eval of one index, and here there are two: leave it out")


def over_fetch(args: argparse.Namespace) -> int:
    """Times top_k that the first pass proposes."""
    return int(args.over_fetch or DEFAULT_OVER_FETCH)


def add_scan_arguments(parser: argparse._ActionsContainer) -> None:
    """--scan_bytes and --scan_threads."""
    parser.add_argument(
        "--scan_bytes",
        type=flag_types.positive,
        default=4 << 30,
        metavar="N",
        help="bytes of the index that one element of work scans",
    )
    parser.add_argument(
        "--scan_threads", type=flag_types.natural, default=0, metavar="N", help="threads a worker; 0: the cores' share"
    )


@dataclasses.dataclass(frozen=True)
class Scanning:
    """How a run scans.

    Args:
        device: "auto", "cpu" or a CUDA device.
        scan_bytes: Bytes that one element of work scans.
        scan_threads: Threads a worker; 0: the cores' share.
        beam_args: Beam's flags.
    """

    device: str = "auto"
    scan_bytes: int = 4 << 30
    scan_threads: int = 0
    beam_args: Sequence[str] = ()

    @classmethod
    def of(cls, args: argparse.Namespace, beam_args: Sequence[str]) -> "Scanning":
        """As the flags say."""
        return cls(args.device, args.scan_bytes, args.scan_threads, beam_args)
