"""The table of machines and prices: read, checked, and turned into money.

The one that comes with the program is `prices.toml` beside this file; `--prices FILE` replaces it.
"""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from trackstar import storage
from trackstar.errors import TrackStarError

HERE = "here"
"""Stands for the machine that the dry run runs on; it may have a price in the table, too."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine shape: what it has, reaches and costs. Rates are of the whole machine, prices in `Prices.currency`."""

    name: str
    vcpus: float
    memory_gib: float
    price_per_hour: float
    peak_bfloat16: float
    """FLOP/s."""
    peak_float32: float
    achieved_encode: float
    """Share of the peak that encoding reaches; an assumption, as all of these."""
    achieved_scan: float
    achieved_other: float
    store_bytes_per_second: float
    """To and from the object store."""
    tokenize_bytes_per_second: float
    rescore_numbers_per_second: float
    """Pairs × d that are multiplied in float64 a second."""
    start_seconds: float
    accelerator: str = ""
    accelerators: int = 0
    spot_per_hour: float | None = None
    dataflow_accelerator_per_hour: float | None = None


@dataclasses.dataclass(frozen=True)
class StoragePrices:
    """An object store's prices."""

    per_gb_month: float
    per_1000_writes: float
    per_1000_reads: float


@dataclasses.dataclass(frozen=True)
class DataflowPrices:
    """Dataflow's prices; they stand in place of the machine's own."""

    per_vcpu_hour: float
    per_gib_hour: float
    per_disk_gb_hour: float
    per_shuffle_gb: float


@dataclasses.dataclass(frozen=True)
class Prices:
    """The whole table."""

    source: str
    """Where it was read from."""
    currency: str
    region: str
    as_of: str
    storage: StoragePrices
    dataflow: DataflowPrices
    machines: Mapping[str, Machine]

    def machine(self, name: str) -> Machine:
        """The machine called `name`.

        Raises:
            TrackStarError: there is none; the message lists those that there are.
        """
        if name not in self.machines:
            nearest = difflib.get_close_matches(name, self.machines, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise TrackStarError(
                f"--machine {name}: {self.source} does not know it{hint} "
                f"It has: {', '.join(sorted(self.machines))}; or {HERE}, which is this machine. "
                "Add yours to a copy of the table and give that with --prices"
            )
        return self.machines[name]

    def dataflow_per_hour(self, machine: Machine, disk_gb: float) -> float | None:
        """What an hour of a machine costs on Dataflow; None where its accelerators have no price there."""
        if machine.accelerators and machine.dataflow_accelerator_per_hour is None:
            return None
        return (
            machine.vcpus * self.dataflow.per_vcpu_hour
            + machine.memory_gib * self.dataflow.per_gib_hour
            + disk_gb * self.dataflow.per_disk_gb_hour
            + (machine.dataflow_accelerator_per_hour or 0.0)
        )


def load_prices(uri: str | None = None) -> Prices:
    """Reads a table; without a name, the one that comes with the program.

    Raises:
        TrackStarError: no such file, not TOML, a key that is missing or unknown, or a value that is not a number of zero or more
            (a rate: above zero), with its place.
    """
    if uri is None:
        source = "the table that comes with trackstar"
        content = (resources.files("trackstar.cost") / "prices.toml").read_bytes()
    else:
        source, content = uri, storage.read_bytes(uri)
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrackStarError(f"{source}: not a TOML file ({error})") from error
    texts = {name: _text(table, name, source) for name in ("currency", "region", "as_of")}
    unknown = set(table) - {*texts, "storage", "dataflow", "machines"}
    if unknown:
        raise TrackStarError(f"{source}: unknown key {sorted(unknown)[0]!r}")
    machines = _section(table, "machines", source)
    if not machines:
        raise TrackStarError(f"{source}: [machines] is empty; describe one machine at least")
    return Prices(
        source=source,
        **texts,
        storage=_filled(StoragePrices, _section(table, "storage", source), f"{source}, [storage]"),
        dataflow=_filled(DataflowPrices, _section(table, "dataflow", source), f"{source}, [dataflow]"),
        machines={
            name: _filled(Machine, {**_section(machines, name, source), "name": name}, f"{source}, [machines.{name}]")
            for name in machines
        },
    )


_MAY_BE_ZERO = ("per_", "price_", "spot_", "dataflow_", "accelerators", "start_")
"""How fields begin that may be zero; the others are divided by."""


def _filled(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """An object of a dataclass from a section's values, each of the field's type."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        nearest = difflib.get_close_matches(unknown[0], fields, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise TrackStarError(f"{where}: unknown key {unknown[0]!r}{hint}")
    missing = [n for n, field in fields.items() if n not in values and field.default is dataclasses.MISSING]
    if missing:
        raise TrackStarError(f"{where}: {missing[0]} is missing")
    for name, value in values.items():
        if fields[name].type is str:
            if not isinstance(value, str):
                raise TrackStarError(f"{where}: {name} is {value!r}, not a text")
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TrackStarError(f"{where}: {name} is {value!r}, not a number")
        if value < 0:
            raise TrackStarError(f"{where}: {name} is {value}; it cannot be negative")
        if value == 0 and not name.startswith(_MAY_BE_ZERO):
            raise TrackStarError(f"{where}: {name} is 0; it must be above zero")
        if name.startswith("achieved_") and value > 1:
            raise TrackStarError(f"{where}: {name} is {value}; it is a share of the peak, at most 1")
    return cls(**values)


def _section(table: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    section = table.get(name)
    if not isinstance(section, dict):
        raise TrackStarError(f"{source}: the section [{name}] is missing")
    return section


def _text(table: Mapping[str, Any], name: str, source: str) -> str:
    value = table.get(name)
    if not isinstance(value, str):
        raise TrackStarError(f"{source}: {name} is missing, or not a text in quotes")
    return value
