"""The corpus flags, and the plan of work items that follows from them."""

import argparse

from pipelines import flag_types
from trackstar import corpus
from trackstar.corpus import Shard, WorkItem


def add_corpus_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--corpus (perhaps not `required`), --item_bytes and --fingerprint."""
    group = parser.add_argument_group("the corpus")
    group.add_argument(
        "--corpus",
        required=required,
        nargs="+",
        metavar="GLOB",
        help="shards: JSONL, JSONL.gz, JSONL.zst, Parquet or plain text, local or gs://; quote the glob",
    )
    group.add_argument(
        "--item_bytes",
        type=flag_types.positive,
        default=16 << 20,
        metavar="N",
        help="bytes of a shard that one work item takes, which is one file of the index; "
        "compressed shards are one item each. Changing it makes other items: keep it for an index's life",
    )
    group.add_argument(
        "--fingerprint",
        choices=("modified", "content"),
        default="modified",
        help="how a local shard's version is told: by size and modification time, or by hashing its content",
    )


def add_reject_argument(parser: argparse.ArgumentParser, verb: str) -> None:
    """--max_reject_fraction; `verb` says what cannot be done with a rejected record."""
    parser.add_argument(
        "--max_reject_fraction",
        type=flag_types.fraction,
        default=0.01,
        metavar="X",
        help=f"the run fails above this share of records that cannot be {verb}, out of those that it takes in",
    )


def planned(args: argparse.Namespace) -> tuple[list[Shard], list[WorkItem]]:
    """The shards that the flags name, and their work items."""
    shards = corpus.expand(args.corpus, args.fingerprint)
    return shards, corpus.plan(shards, args.item_bytes)
