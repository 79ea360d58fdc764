"""A whole tail-patch run: the learning rate, every pair, and the file and summary that come of them.

How tasks are run is the caller's: here (`tail_patch_tasks.run_here`), or by workers of a pipeline.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.evaluation.intervals import Bootstrap
from trackstar.evaluation.linear_range import LinearRange, Rung, ladder, moved
from trackstar.evaluation.metrics import patches_of, tail_patch_metrics
from trackstar.evaluation.tail_patch_plan import Plan, chunks
from trackstar.evaluation.tail_patch_tasks import (
    DescribeTask,
    Description,
    Group,
    MeasureTask,
    Outcome,
    Runner,
    SlopeTask,
)

Tell = Callable[[str], None]
RateChoice = float | Literal["auto", "saved"]
"""A stated rate; the one that the optimizer was saved with; or the largest in the linear range."""

_MOST_LADDERS = 4
_KS = (1, 3, 5, 10)
_NOT_FINITE = "the target's probability is not a number {} the step"


@dataclasses.dataclass(frozen=True)
class TailPatches:
    """What a run found.

    Args:
        plan: Its pairs.
        description: Its kind of step.
        rate: Its learning rate.
        linear: The ladder of rates, or None where none was measured.
        outcomes: (index of the result, rank) → outcome, with one probability after the step.
        drifts: Index of the result → change of the query's probability by a step with a zero gradient.
    """

    plan: Plan
    description: Description
    rate: float
    linear: LinearRange | None
    outcomes: Mapping[tuple[int, int], Outcome]
    drifts: Mapping[int, float | None]

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Lines of the output, one a measured pair in the order of the results; and of the rejects, one a pair that could
        not be measured, with the reason."""
        rows, rejects = [], []
        for (number, rank), outcome in sorted(self.outcomes.items()):
            result = self.plan.results[number]
            pair = {
                "example_id": result.query.example_id,
                "query_set": result.query_set,
                "proponent_id": result.proponents.ids[rank - 1],
                "rank": rank,
            }
            before, after = outcome.before, outcome.after[0] if outcome.after else None
            if before is None or after is None:
                reason = outcome.reason or _NOT_FINITE.format("before" if before is None else "after")
                rejects.append({**pair, "reason": reason})
                continue
            rows.append({**pair, "before": before, "after": after, "change": after - before})
            if self.description.has_drift:
                rows[-1]["drift"] = self.drifts.get(number)
            rows[-1] |= {"step": self.description.kind, "learning_rate": self.rate}
        return rows, rejects

    def summary(self) -> list[str]:
        """Lines for people: means and intervals, and whatever was left out."""
        rows, rejects = self.rows()
        lines = [self._means(rows)] if rows else []
        drifts = [drift for drift in self.drifts.values() if drift is not None]
        if self.description.has_drift and drifts:
            lines.append(
                f"momentum and weight decay alone, with no gradient: {100 * float(np.mean(drifts)):+.3g} points on average; "
                "a part of every change, the same for all of a query's proponents (field drift)"
            )
        if empty := self.plan.without_proponents:
            lines.append(
                f"{len(empty):,} of {len(self.plan.results):,} queries have no proponents and are left out: {_some(empty)}"
            )
        if cut := sum(outcome.cut for outcome in self.outcomes.values()):
            lines.append(f"{cut:,} of {len(self.outcomes):,} pairs have a proponent that was cut to the length limit")
        if rejects:
            reasons = "\n  ".join(f"query {r['example_id']}, rank {r['rank']}: {r['reason']}" for r in rejects[:5])
            lines.append(
                f"warning: {len(rejects):,} of {len(self.outcomes):,} pairs could not be measured; the first:\n  {reasons}"
            )
        return lines

    def _means(self, rows: Sequence[Mapping[str, Any]]) -> str:
        deepest = max(rank for _, rank in self.outcomes)
        ks = sorted({k for k in _KS if k < deepest} | {deepest})
        columns = tail_patch_metrics("", patches_of(rows), self.plan.results, ks)
        parts = []
        for k, estimate in zip(ks, Bootstrap().estimates(columns).values(), strict=True):
            if estimate.mean is None:
                parts.append(f"  top {k:<4} no query whose first {k} proponents could all be measured")
                continue
            ends = "" if estimate.low is None else f"  [{estimate.low:+.3f}, {estimate.high:+.3f}]"
            parts.append(f"  top {k:<4} {estimate.mean:+.3f}{ends}  ({estimate.n:,} queries)")
        heading = (
            f"tail-patch, {self.description.kind} step at learning rate {self.rate:g}: mean change of the target's probability "
            "in percentage points, with its 95 % interval"
        )
        return "\n".join([heading, *parts])


def measure(
    plan: Plan, run: Runner, rate: RateChoice, sample_size: int = 64, tell: Tell = lambda line: None
) -> TailPatches:
    """Finds or judges the learning rate, then measures every pair of a plan.

    Args:
        plan: The pairs.
        run: Runs tasks.
        rate: The rate, or how to find it. Rates that were found on the results of two methods may differ, and so would the
            changes: to compare methods, find one and state it for all.
        sample_size: Pairs that rates are judged on; 0 takes a stated one as it is.
        tell: Told which rate is used, and what is wrong with it.

    Raises:
        TrackStarError: no rate is stated and none can be found, or no pair can be measured.
    """
    description, used, linear = choose_rate(plan, run, rate, sample_size, tell)
    usable = plan.usable()
    tasks = [MeasureTask(part, (used,)) for part in chunks([plan.groups[number] for number in usable])]
    drift_groups = plan.drift_groups() if description is None or description.has_drift else []
    drift_tasks = [MeasureTask((group,), (used,)) for _, group in drift_groups]
    if description is None:
        # In the same run: starting workers takes longer than a small run does.
        description, *found = run([DescribeTask(), *tasks, *drift_tasks], "measuring")
        tell(_described(description))
    else:
        found = run([*tasks, *drift_tasks], "measuring")
    by_group = list(itertools.chain(*found[: len(tasks)]))
    outcomes = {
        place: Outcome(reason="proponent: no text in the results, and not in the corpus")
        for places in plan.places
        for place in places
    }
    for number, group_outcomes in zip(usable, by_group, strict=True):
        outcomes.update(zip(plan.places[number], group_outcomes, strict=True))
    drifts: dict[int, float | None] = {}
    for (numbers, _), [group_outcomes] in zip(drift_groups, found[len(tasks) :], strict=True):
        drifts.update(zip(numbers, map(_change, group_outcomes), strict=True))
    patches = TailPatches(plan, description, used, linear, outcomes, drifts)
    rows, rejects = patches.rows()
    if not rows:
        raise TrackStarError(
            f"none of the {plan.num_pairs:,} pairs could be measured; the first: {rejects[0]['reason']}"
        )
    return patches


def choose_rate(
    plan: Plan, run: Runner, rate: RateChoice, sample_size: int, tell: Tell
) -> tuple[Description | None, float, LinearRange | None]:
    """The learning rate to use, with the kind of step and the ladder that was measured; both None where none had to be."""
    sample = plan.sample(sample_size) if sample_size else []
    if not sample and rate == "auto":
        raise TrackStarError(
            "no learning rate is stated and there is no pair to find one on: state --learning_rate"
            + ("" if sample_size else ", or give --linear_sample pairs")
        )
    if not sample and rate != "saved":
        return None, float(rate), None
    description, *slopes = run([DescribeTask(), *(SlopeTask(part) for part in chunks(sample))], "looking at the sample")
    tell(_described(description))
    if rate == "saved":
        rate = description.saved_rate or "auto"
        if rate == "auto":
            useless = "the optimizer was saved with a learning rate of zero or none, which is of no use"
            if not sample:
                raise TrackStarError(f"{useless}: state --learning_rate")
            tell(f"warning: {useless}: one is looked for")
    if not sample:
        return description, float(rate), None
    stated = None if rate == "auto" else float(rate)
    linear = _linear_range(sample, list(itertools.chain(*slopes)), run, stated)
    tell(linear.table())
    if stated is not None:
        if warning := linear.warning(stated):
            tell(f"warning: {warning}")
        return description, stated, linear
    if linear.largest is None:
        raise TrackStarError(
            "no learning rate was found at which changes are proportional to it (see the table above); state --learning_rate "
            "if one of these will do"
        )
    tell(
        f"learning rate {linear.largest:g}: the largest in the linear range"
        + (", which may go on above" * linear.is_open)
    )
    return description, linear.largest, linear


def _linear_range(
    sample: Sequence[Group], outcomes: Sequence[Sequence[Outcome]], run: Runner, stated: float | None
) -> LinearRange:
    """Measures ladders of rates, each above or below the last, until the linear range's upper end is inside."""
    found = [
        (group, outcome.before, outcome.slope)
        for group, [outcome] in zip(sample, outcomes, strict=True)
        if outcome.before is not None and outcome.slope is not None
    ]
    if not found:
        first = outcomes[0][0].reason or _NOT_FINITE.format("before")
        raise TrackStarError(
            f"no learning rate can be judged: none of {len(sample)} pairs can be measured; the first: {first}"
        )
    groups, probabilities, slopes = zip(*found, strict=True)
    rates = ladder(slopes, probabilities)
    rungs: list[Rung] = []
    for number in range(_MOST_LADDERS):
        asked = tuple(sorted({*rates, *([stated] if stated is not None and number == 0 else [])}))
        measured = itertools.chain(*run([MeasureTask(part, asked) for part in chunks(groups)], "trying learning rates"))
        pairs = [outcome for [outcome] in measured]
        for i, rate in enumerate(asked):
            rungs.append(Rung.of(rate, slopes, [_change(outcome, i) for outcome in pairs]))
        linear = LinearRange.of(rungs, len(groups))
        if linear.largest is not None and linear.largest < max(rates):
            break
        rates = moved(rates, up=linear.largest is not None)
    return linear


def write(uri: str, patches: TailPatches) -> str | None:
    """Writes the output, and the pairs that could not be measured beside it; returns where these are, if there are any."""
    rows, rejects = patches.rows()
    beside = f"{uri.removesuffix('.jsonl')}.rejects.jsonl"
    storage.write_bytes(uri, _jsonl(rows))
    if not rejects:
        storage.delete(beside)  # of an earlier run
        return None
    storage.write_bytes(beside, _jsonl(rejects))
    return beside


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "backslashreplace")


def _change(outcome: Outcome, number: int = 0) -> float | None:
    """Of one of the rates; None where it is not to be had."""
    if outcome.before is None or not outcome.after:
        return None
    after = outcome.after[number]
    return None if after is None else after - outcome.before


def _described(description: Description) -> str:
    if description.steps is None:
        return f"{description.kind} steps, with no optimizer state"
    if description.saved_rate is None:
        rate = "no learning rate is kept with it"
    else:
        rate = f"saved with a learning rate of {description.saved_rate:g}"
        if description.first_rate is not None and description.first_rate != description.saved_rate:
            rate += f" (its schedule is relative to {description.first_rate:g})"
    return f"{description.kind} steps, from the optimizer's state after {description.steps:,} steps; {rate}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
