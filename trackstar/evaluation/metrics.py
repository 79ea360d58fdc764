"""Metrics of single queries; means over queries and their intervals are `trackstar.evaluation.intervals`.

Fact tracing (Chang et al., section 4.3), with c_r = 1 where the proponent of rank r states the query's fact:

    MRR          1 / (smallest r with c_r = 1); 0 where no proponent listed is correct
    Recall@k     1 where any of c_1 … c_k is 1, else 0: the paper's hit rate, not the share of gold examples found
    Precision@k  (c_1 + … + c_k) / k, also where fewer than k proponents are listed

Tail-patch (the same section): the mean over the top k proponents of the change of the target's probability after one
training step on the proponent, in percentage points.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trackstar.errors import TrackStarError
from trackstar.results import Result, read_objects

MRR = "MRR"
RECALL = "Recall"
PRECISION = "Precision"
TAIL_PATCH = "Tail-patch"

_TOLERANCE = 1e-4  # Of `after − before` against `change`: float32 probabilities printed with few digits.


def at_k(name: str, k: int) -> str:
    """A metric's full name: "Recall@10"."""
    return f"{name}@{k}"


def fact_metrics(correct: Sequence[Sequence[bool]], at: Sequence[int]) -> dict[str, np.ndarray]:
    """MRR, Recall@k and Precision@k of each query.

    Args:
        correct: N rankings, best first: whether each proponent states the fact. Lengths may differ.
        at: The k's.

    Returns:
        Name of the metric → [N] float64.
    """
    depth = max([1, *at, *map(len, correct)])
    marks = np.zeros((len(correct), depth), bool)  # [N, depth]; what is not listed is not correct
    for row, ranking in zip(marks, correct, strict=True):
        row[: len(ranking)] = ranking
    found = marks.any(axis=1)
    hits = marks.cumsum(axis=1)  # [N, depth]
    return {
        MRR: np.where(found, 1.0 / (1.0 + marks.argmax(axis=1)), 0.0),
        **{at_k(RECALL, k): (hits[:, k - 1] > 0).astype(np.float64) for k in at},
        **{at_k(PRECISION, k): hits[:, k - 1] / k for k in at},
    }


@dataclasses.dataclass(frozen=True)
class Patch:
    """What one training step on a proponent did.

    Args:
        proponent_id: The proponent.
        change: Change of the target's probability given the prompt, from -1 to 1.
    """

    proponent_id: str
    change: float


Patches = dict[str, dict[int, Patch]]
"""Query's example_id → rank, from 1 → what the step did."""


def patches_of(rows: Iterable[Mapping[str, Any]]) -> Patches:
    """Rows as `trackstar tail-patch` writes them, by query and rank."""
    patches: Patches = {}
    for row in rows:
        patches.setdefault(row["example_id"], {})[row["rank"]] = Patch(row["proponent_id"], row["change"])
    return patches


def read_tail_patches(uri: str) -> Patches:
    """Reads tail-patch results: JSONL, one (query, proponent) pair a line.

    Fields: `example_id` (the query's), `proponent_id`, `rank` (from 1), `change` (from -1 to 1), optional `before` and
    `after`, whose difference it is.

    Raises:
        TrackStarError: no such file, no pair in it, a line that is not a JSON object, a missing, mistyped or impossible
            value, or a rank or proponent that a query has twice; with the line's number.
    """
    patches: Patches = {}
    proponents: set[tuple[str, str]] = set()
    for _, where, fields in read_objects(uri):
        query, rank, patch = _patch(fields, where)
        of_query = patches.setdefault(query, {})
        if rank in of_query or (query, patch.proponent_id) in proponents:
            raise TrackStarError(f"{where}: query {query!r} has rank {rank} or proponent {patch.proponent_id!r} twice")
        of_query[rank] = patch
        proponents.add((query, patch.proponent_id))
    if not patches:
        raise TrackStarError(f"{uri}: no tail-patch results in this file")
    return patches


def tail_patch_metrics(
    uri: str, patches: Mapping[str, Mapping[int, Patch]], results: Sequence[Result], at: Sequence[int]
) -> dict[str, np.ndarray]:
    """Tail-patch@k of each query, in percentage points.

    A query whose top k, or the shorter ranking that it has, was not patched in full has no value: NaN.

    Args:
        uri: Where the patches come from, for messages.
        patches: See `read_tail_patches`.
        results: N results.
        at: The k's.

    Returns:
        Name of the metric → [N] float64.

    Raises:
        TrackStarError: a patched proponent is not the one that the result has at that rank.
    """
    columns = {k: np.full(len(results), np.nan) for k in at}
    for row, result in enumerate(results):
        ids = result.proponents.ids
        of_query = patches.get(result.query.example_id, {})
        for rank, patch in of_query.items():
            listed = ids[rank - 1] if rank <= len(ids) else None
            if patch.proponent_id != listed:
                raise TrackStarError(
                    f"{uri}: query {result.query.example_id!r}, rank {rank}: {patch.proponent_id!r} was patched and "
                    f"the results have {repr(listed) if listed is not None else 'no proponent'} there; "
                    "give the tail-patch file that was made from these results"
                )
        changes = [of_query[rank].change for rank in range(1, len(ids) + 1) if rank in of_query]
        first_gap = next((rank for rank in range(1, len(ids) + 1) if rank not in of_query), len(ids) + 1)
        for k, column in columns.items():
            depth = min(k, len(ids))
            if 0 < depth < first_gap:
                column[row] = 100.0 * math.fsum(changes[:depth]) / depth
    return {at_k(TAIL_PATCH, k): column for k, column in columns.items()}


def _patch(fields: dict[str, Any], where: str) -> tuple[str, int, Patch]:
    for name in ("example_id", "proponent_id", "rank", "change"):
        if fields.get(name) is None:
            raise TrackStarError(f"{where}: the field {name!r} is missing")
    rank, change = fields["rank"], fields["change"]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise TrackStarError(f"{where}: 'rank' must be a whole number, 1 for the first proponent; found {rank!r}")
    if not _is_number(change) or not -1.0 <= change <= 1.0:
        raise TrackStarError(f"{where}: 'change' must be a change of a probability, from -1 to 1; found {change!r}")
    before, after = fields.get("before"), fields.get("after")
    if before is not None and after is not None:
        if not _is_number(before) or not _is_number(after):
            raise TrackStarError(f"{where}: 'before' and 'after' must be numbers")
        if not abs(after - before - change) <= _TOLERANCE:
            raise TrackStarError(f"{where}: 'change' is {change!r}, but 'after' less 'before' is {after - before:.4g}")
    return str(fields["example_id"]), rank, Patch(str(fields["proponent_id"]), float(change))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
