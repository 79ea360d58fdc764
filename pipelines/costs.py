"""--dry_run, the same for every pipeline: what a run would do and take, on this machine or on one of the price table."""

import argparse
import time
from collections.abc import Callable, Sequence

import psutil

from pipelines import cli, runner
from pipelines.progress import say
from trackstar import storage
from trackstar.cost import report
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated
from trackstar.cost.prices import HERE, Prices, load_prices
from trackstar.cost.rates import read_rates
from trackstar.errors import TrackStarError

_IMPORTED_SECONDS = max(0.0, time.time() - psutil.Process().create_time())
"""From the process's start to here, when all that is heavy is imported: what every process like this one needs to start. So a
command that imports this module late imports it before it does anything else."""
WITH_EXIT = 1.3
"""Times the start: what a process needs to take all of it down again at its end; 1.9 s after a start of 6.6 s as measured."""


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
        args: The command's arguments, those of `cost_flags` among them.
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
