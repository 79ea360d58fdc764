"""What an estimate is reckoned with: a machine of the table, a calibration that was kept, or one that is made now."""

import dataclasses
import time

from trackstar.cost.prices import HERE, Machine
from trackstar.cost.rates import Rates, of_machine
from trackstar.cost.sample import Clock


@dataclasses.dataclass(frozen=True)
class Basis:
    """Where rates come from.

    Args:
        machine: A machine of the table, or None for this one.
        calibrates: Whether rates are measured here and now.
        kept: A calibration that was kept; it wins over the table, and what is measured now wins over it.
        start_seconds: What a process like this one takes to start and to end, apart from its work.
        clock: What times the calibration.
    """

    machine: Machine | None
    calibrates: bool
    kept: Rates | None = None
    start_seconds: float = 0.0
    clock: Clock = time.perf_counter

    def rates(self, model_bytes: float = 0.0, dtype: str = "float32") -> Rates:
        """What is known before anything is measured.

        Args:
            model_bytes: What a worker loads.
            dtype: Type the model runs in.
        """
        if self.machine is None:
            rates = Rates(HERE, start_seconds=self.start_seconds)
        else:
            rates = of_machine(self.machine, model_bytes, dtype)
        if self.kept is None:
            return rates
        found = dataclasses.replace(self.kept.over(rates), machine=rates.machine)
        if self.machine is None:
            return found
        # A calibration ran where its machine was up already.
        return dataclasses.replace(found, start_seconds=rates.start_seconds, restart_seconds=rates.restart_seconds)

    @property
    def assumed(self) -> str:
        """Where the rates come from, in a sentence."""
        parts = []
        if self.calibrates:
            parts.append("measured here on a sample")
        if self.kept is not None:
            parts.append("from the calibration that was given")
        if self.machine is not None:
            parts.append(f"the table's assumptions for {self.machine.name}")
        return "; else ".join(parts) or "none: calibrate, or name a machine of the table with --machine"
