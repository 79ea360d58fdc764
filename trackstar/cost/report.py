"""An estimate as text for people, and as JSON."""

import dataclasses
import json
from typing import Any

from trackstar.amounts import human_bytes, human_time
from trackstar.cost.model import Estimate, Money, Part
from trackstar.cost.prices import HERE, Machine, Prices

_LABEL = 16


def describe(
    estimate: Estimate, machine: Machine | None, machines: int, prices: Prices, assumed: str, table: bool = True
) -> str:
    """Lines for people.

    Args:
        estimate: What is to be done.
        machine: The machine of the table; None for this one, where the table has no price for it.
        machines: How many.
        prices: The table.
        assumed: Where the rates come from, in a sentence.
        table: Whether to list the stages.
    """
    facts = [*estimate.facts]
    if estimate.total("read_bytes"):
        facts.append(("to be read", human_bytes(estimate.total("read_bytes"))))
    facts.append(("to be written", f"about {human_bytes(estimate.total('written_bytes'))}"))
    if estimate.total("shuffle_bytes"):
        facts.append(("to be shuffled", f"at most {human_bytes(estimate.total('shuffle_bytes'))}"))
    facts.append(("FLOPs", f"about {estimate.total('flops'):.3g}"))
    lines = [_line(label, value) for label, value in facts]
    if table:
        lines += ["", *_stages(estimate, machines), ""]
    seconds = estimate.wall_seconds(machines)
    name = machine.name if machine is not None and machine.name != HERE else None
    where = f"on {machines:,} × {name}" if name else f"with {machines:,} worker(s) like this machine's"
    lines.append(_line("time", f"about {human_time(seconds)} {where}"))
    lines.append(_line("machine-hours", f"about {_hours(estimate.machine_hours(machines))}"))
    lines += _money(estimate.money(machine, machines, prices), prices)
    lines.append(_line("rates", assumed))
    if unknown := estimate.unknown():
        lines.append(_line("not counted", "; ".join(unknown)))
    lines += [_line("note", note) for note in estimate.notes]
    return "\n".join(lines)


def to_json(estimate: Estimate, machine: Machine | None, machines: int, prices: Prices, assumed: str) -> str:
    """One JSON object."""
    return json.dumps(as_dict(estimate, machine, machines, prices, assumed), indent=2)


def as_dict(estimate: Estimate, machine: Machine | None, machines: int, prices: Prices, assumed: str) -> dict[str, Any]:
    """What `to_json` writes."""
    totals = ("read_bytes", "written_bytes", "shuffle_bytes", "flops", "object_reads", "object_writes")
    return {
        "command": estimate.command,
        "machine": machine.name if machine is not None else HERE,
        "machines": machines,
        "rates": assumed,
        **dict(estimate.amounts),
        **{name: estimate.total(name) for name in totals},
        "wall_seconds": estimate.wall_seconds(machines),
        "machine_hours": estimate.machine_hours(machines),
        "currency": prices.currency,
        "money": dataclasses.asdict(estimate.money(machine, machines, prices)),
        "not_counted": estimate.unknown(),
        "stages": [
            {
                "name": stage.name,
                "items": stage.items,
                "wall_seconds": stage.wall_seconds(machines),
                "machine_seconds": stage.machine_seconds(machines),
                **{name: getattr(stage, name) for name in totals},
                "parts": [{**dataclasses.asdict(part), "seconds": part.seconds} for part in stage.parts],
            }
            for stage in estimate.stages
        ],
        "notes": list(estimate.notes),
    }


def _stages(estimate: Estimate, machines: int) -> list[str]:
    """The table of parts: amount, rate of one machine, seconds of one machine."""
    rows = [("stage", "part", "amount", "a second", "on one machine")]
    for stage in estimate.stages:
        name = stage.name
        for part in stage.parts:
            if part.amount:
                rows.append((name, part.name, _amount(part), _rate(part), _time(part)))
                name = ""
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _amount(part: Part) -> str:
    if part.unit == "s":
        return ""
    return human_bytes(part.amount) if part.unit == "B" else f"{part.amount:.3g} {part.unit}"


def _rate(part: Part) -> str:
    if part.unit == "s":
        return ""
    if part.rate is None:
        return "unknown"
    return human_bytes(part.rate) if part.unit == "B" else f"{part.rate:.3g}"


def _time(part: Part) -> str:
    share = {"shared": "", "each": " each", "once": " once"}[part.share]
    return "–" if part.is_unknown else human_time(part.seconds) + share


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _money(money: Money, prices: Prices) -> list[str]:
    def amount(value: float) -> str:
        return f"{value:,.0f} {prices.currency}" if value >= 100 else f"{value:,.2f} {prices.currency}"

    lines = []
    known = [("on demand", money.on_demand), ("spot", money.spot), ("Dataflow", money.dataflow)]
    shown = [f"{name} {amount(value)}" for name, value in known if value is not None]
    if shown:
        lines.append(
            _line("money", f"about {', '.join(shown)} (list prices of {prices.as_of}, {prices.region}: check yours)")
        )
    else:
        lines.append(
            _line("money", "no price for this machine: name one of the table with --machine, or give --prices")
        )
    lines.append(
        _line(
            "object store", f"{amount(money.operations)} for requests, {amount(money.storage_month)} a month to keep it"
        )
    )
    return lines


def _line(label: str, value: str) -> str:
    return f"{label:<{_LABEL}} {value}"
