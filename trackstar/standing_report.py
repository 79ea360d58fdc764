"""What an update changed among the proponents of standing queries: who is new, who is gone, whose score is another."""

import collections
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from trackstar import storage
from trackstar.results import Query
from trackstar.standing_state import State
from trackstar.standing_update import Contents

_SHOWN = 3  # of the strongest new proponents, in the summary


@dataclasses.dataclass(frozen=True)
class Proponent:
    """One proponent in one state.

    Args:
        rank: From 1.
        proponent_id: Its identifier.
        score: Its score.
        shard: URI of its shard.
        is_there: Whether its row is in the index now.
    """

    rank: int
    proponent_id: str
    score: float
    shard: str
    is_there: bool


@dataclasses.dataclass(frozen=True)
class Change:
    """What changed in one query's ranking.

    Args:
        query: The query.
        new: Proponents that were none before.
        gone: Those that are none any more, with their rank and score then, and whether they were outranked or left the index
            (their shard was changed or dropped, or they were taken down).
        rescored: Those that are proponents still and were encoded from another text since, with their score before.
    """

    query: Query
    new: list[Proponent]
    gone: list[tuple[Proponent, str]]
    rescored: list[tuple[Proponent, float]]

    def to_dict(self, version: int, previous: int) -> dict[str, Any]:
        """The report's line."""
        return {
            "example_id": self.query.example_id,
            "inputs_plaintext": self.query.prompt,
            "targets_plaintext": self.query.target,
            "version": version,
            "previous_version": previous,
            "new": [_fields(proponent) for proponent in self.new],
            "gone": [{**_fields(proponent), "reason": reason} for proponent, reason in self.gone],
            "rescored": [{**_fields(proponent), "previous_score": score} for proponent, score in self.rescored],
        }


def compare(before: State, after: State, contents: Contents, queries: Sequence[Query], top_k: int) -> list[Change]:
    """What changed from one state to the other, query by query; queries whose proponents are the same are left out.

    A proponent is the same if its identifier and its shard are. So an example stays itself when its shard's file is encoded
    again; with another score, its text is another.

    Args:
        before: A state.
        after: A later one.
        contents: What `after` is of.
        queries: The queries.
        top_k: Proponents of each that count.
    """
    changes = []
    rankings = zip(queries, _rankings(before, top_k, contents), _rankings(after, top_k, contents), strict=True)
    for query, old, new in rankings:
        unmatched = collections.defaultdict(list)
        for proponent in old:
            unmatched[_identity(proponent)].append(proponent)
        fresh, rescored = [], []
        for proponent in new:
            same = unmatched[_identity(proponent)]
            if not same:
                fresh.append(proponent)
                continue
            match = next((one for one in same if one.score == proponent.score), same[0])
            same.remove(match)
            if match.score != proponent.score:
                rescored.append((proponent, match.score))
        left = sorted((one for rest in unmatched.values() for one in rest), key=lambda one: one.rank)
        gone = [(one, "outranked" if one.is_there else "no longer in the index") for one in left]
        if fresh or gone or rescored:
            changes.append(Change(query, fresh, gone, rescored))
    return changes


def write(uri: str, changes: Sequence[Change], version: int, previous: int) -> None:
    """Writes one JSON object a query that changed; an empty file where none did."""
    lines = [json.dumps(change.to_dict(version, previous), ensure_ascii=False) + "\n" for change in changes]
    storage.write_bytes(uri, "".join(lines).encode("utf-8", "backslashreplace"))


def summary(changes: Sequence[Change], num_queries: int) -> list[str]:
    """A few lines for a terminal: how many queries have new proponents, and the strongest of these."""
    new = [(proponent, change.query) for change in changes for proponent in change.new]
    gone = sum(len(change.gone) for change in changes)
    count = sum(bool(change.new) for change in changes)
    lines = [
        f"{count:,} of {num_queries:,} queries have new proponents: {len(new):,} new, {gone:,} gone, "
        f"{sum(len(change.rescored) for change in changes):,} with another score"
    ]
    strongest = sorted(new, key=lambda pair: (-pair[0].score, pair[0].proponent_id, pair[1].example_id))
    for proponent, query in strongest[:_SHOWN]:
        asked = " → ".join(part.strip() for part in (query.prompt, query.target) if part.strip())
        lines.append(
            f"  new: {proponent.score:.4f} {proponent.proponent_id} of {proponent.shard}, rank {proponent.rank} for "
            f"{query.example_id!r} ({_short(asked)})"
        )
    return lines


def _rankings(state: State, top_k: int, contents: Contents) -> Iterator[list[Proponent]]:
    top = state.tops(top_k)[0]
    is_there = contents.rows(top).tolist()
    ids, scores, files = top.example_ids.to_pylist(), top.scores.tolist(), top.files.tolist()
    for query in range(top.num_queries):
        span = top.entries(query)
        yield [
            Proponent(i - span.start + 1, ids[i], scores[i], state.shards[top.uris[files[i]]], is_there[i])
            for i in range(span.start, span.stop)
        ]


def _identity(proponent: Proponent) -> tuple[str, str]:
    return proponent.proponent_id, proponent.shard


def _fields(proponent: Proponent) -> dict[str, Any]:
    fields = dataclasses.asdict(proponent)
    del fields["is_there"]
    return fields


def _short(text: str, length: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
