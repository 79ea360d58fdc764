"""--dry_run, the same for every pipeline: what a run would do and take, on this machine or on one of the price table."""

import argparse
import time
from collections.abc import Callable, Sequence

import psutil

from pipelines import cli, flag_types, options, runner
from pipelines.progress import say
from trackstar import storage
from trackstar.cost import report
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated
from trackstar.cost.prices import HERE, Prices, load_prices
from trackstar.cost.rates import read_rates
from trackstar.errors import TrackStarError

_IMPORTED_SECONDS = max(0.0, time.time() - psutil.Process().create_time())
"""From the process's start to here, when all that is heavy is imported: what every process like this one needs to start."""
WITH_EXIT = 1.3
"""Times the start: what a process needs to take all of it down again at its end; 1.9 s after a start of 6.6 s as measured."""
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


def wanted(args: argparse.Namespace) -> bool:
    """Whether a dry run is asked for.

    Raises:
        TrackStarError: a flag of the dry run is given without it; a real run may cost more than its user wants.
    """
    if args.dry_run:
        return True
    given = next((name for name, default in _DEFAULTS.items() if getattr(args, name) != default), None)
    if given is not None:
        raise TrackStarError(f"--{given} belongs to --dry_run: give both, or neither")
    return False


def make_basis(args: argparse.Namespace, prices: Prices) -> Basis:
    """What the flags have an estimate reckoned with.

    Raises:
        TrackStarError: an unknown machine, a calibration that cannot be read, or flags that contradict each other.
    """
    machine = None if args.machine == HERE else prices.machine(args.machine)
    calibrates = args.calibrate if args.calibrate is not None else machine is None and args.calibration is None
    if args.save_calibration and not calibrates:
        raise TrackStarError("--save_calibration keeps what is measured: give --calibrate true, too")
    kept = read_rates(args.calibration) if args.calibration else None
    return Basis(machine, calibrates, kept, WITH_EXIT * _IMPORTED_SECONDS)


def dry_run(args: argparse.Namespace, beam_args: Sequence[str], estimate: Callable[[Basis], Estimated]) -> int:
    """Makes the estimate, and shows or prints it.

    Args:
        args: The command's arguments, those of `add_cost_arguments` among them.
        beam_args: Beam's flags.
        estimate: One of `trackstar.cost.commands`, but for the basis.
    """
    prices = load_prices(args.prices)
    basis = make_basis(args, prices)
    found, rates = estimate(basis)
    machines = args.num_machines or (runner.num_local_workers(beam_args) if basis.machine is None else 1)
    priced = basis.machine or prices.machines.get(HERE)
    if args.save_calibration:
        storage.write_bytes(args.save_calibration, rates.to_json().encode())
    if args.json:
        print(report.to_json(found, priced, machines, prices, basis.assumed))
    else:
        say(report.describe(found, priced, machines, prices, basis.assumed))
    return cli.EXIT_DONE
