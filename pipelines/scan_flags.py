"""Flags of the commands that scan the index: the queries, the ranking, the scan. Nothing is imported here that scans."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipelines import flag_types, options


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
        help="auto: mix R_eval of these queries into the preconditioner; none: R_train alone; identity: no preconditioner at "
        "all (for comparisons); or the folder of an R_eval",
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
