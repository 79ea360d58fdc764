"""A command for tests: holds an index's write lock until it is told to end."""

import argparse
import time

from trackstar.write_lock import WriteLock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("index")


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Holds the lock."""
    with WriteLock(args.index, "hold"):
        print("held", flush=True)
        time.sleep(300)
    return 0
