"""Flags of the dry run, the same for every pipeline. `costs` makes the estimate, with all that is heavy."""

import argparse
from collections.abc import Sequence

from pipelines import flag_types, options
from trackstar.cost.prices import HERE
from trackstar.errors import TrackStarError

_DEFAULTS: dict[str, object] = {
    "machine": HERE,
    "num_machines": None,
    "prices": None,
    "calibrate": None,
    "calibration": None,
    "save_calibration": None,
    "json": False,
}
FLAGS = ("dry_run", *_DEFAULTS)
"""What `add_cost_arguments` adds."""


def add_cost_arguments(parser: argparse.ArgumentParser, json: bool = True) -> None:
    """--dry_run and what belongs to it; without --json for a command that has such a flag already."""
    group = parser.add_argument_group("the dry run")
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="run nothing and write nothing: say what a run would do (items, tokens, FLOPs, bytes) and what it would take "
        "(hours, money). At most 512 records of each of 8 work items and 128 MB of the index are read",
    )
    group.add_argument(
        "--machine",
        metavar="NAME",
        default=HERE,
        help=f"machine to reckon for, one of the price table; {HERE} is this one, each worker process counting as one",
    )
    group.add_argument(
        "--num_machines", type=flag_types.positive, metavar="N", help="how many (1; for this one, its worker processes)"
    )
    group.add_argument(
        "--prices", metavar="FILE", help="a price table of your own, TOML (the one that comes with trackstar)"
    )
    group.add_argument(
        "--calibrate",
        type=options.boolean,
        metavar="true|false",
        help="measure this machine's rates on a sample, in half a minute (true for this machine, false for a named one)",
    )
    group.add_argument(
        "--calibration", metavar="FILE", help="take the rates that --save_calibration kept of such a machine"
    )
    group.add_argument("--save_calibration", metavar="FILE", help="keep the rates that are measured there")
    if json:
        group.add_argument("--json", action="store_true", help="print the estimate as one JSON object")


def wanted(args: argparse.Namespace, own: Sequence[str] = ()) -> bool:
    """Whether a dry run is asked for.

    Args:
        args: The command's arguments.
        own: Flags of these that the command has for itself, too.

    Raises:
        TrackStarError: a flag of the dry run is given without it; a real run may cost more than its user wants.
    """
    if args.dry_run:
        return True
    asked = {name: default for name, default in _DEFAULTS.items() if name not in own}
    given = next((name for name, default in asked.items() if getattr(args, name) != default), None)
    if given is not None:
        raise TrackStarError(f"--{given} belongs to --dry_run: give both, or neither")
    return False
