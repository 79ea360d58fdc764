"""How good the demo's proponents are, by the annotations, and a table of a few of them for people to read."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trackstar.demo.facts import WELL_KNOWN
from trackstar.errors import TrackStarError


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well the proponents of some queries are those that state the fact.

    Attributes:
        queries: How many queries were counted.
        recall_at_10: Share of them with a stating document among the first ten proponents.
        mrr: Mean of 1 / rank of the first stating document; 0 where none is among the listed proponents.
    """

    queries: int
    recall_at_10: float
    mrr: float


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        TrackStarError: The file is missing or a line is not JSON.
    """
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise TrackStarError(f"{path}: cannot be read as JSONL ({error})") from error


def read_stating(facts: Path) -> dict[str, frozenset[str]]:
    """Fact id → ids of the documents that state the fact, from the `facts.jsonl` of `write_corpus`."""
    return {fact["fact_id"]: frozenset(fact["stating"]) for fact in read_jsonl(facts)}


def first_stating_rank(result: Mapping[str, Any], stating: Mapping[str, frozenset[str]]) -> int | None:
    """Rank, from 1, of the first proponent that states the query's fact; None where none of those listed does."""
    wanted = stating[result["fact_id"]]
    for rank, example_id in enumerate(result["proponent_ids"], start=1):
        if example_id in wanted:
            return rank
    return None


def measure(results: Iterable[Mapping[str, Any]], stating: Mapping[str, frozenset[str]]) -> Quality:
    """Recall@10 and mean reciprocal rank of results whose queries have a `fact_id`."""
    ranks = [first_stating_rank(result, stating) for result in results]
    if not ranks:
        return Quality(0, 0.0, 0.0)
    return Quality(
        queries=len(ranks),
        recall_at_10=sum(rank is not None and rank <= 10 for rank in ranks) / len(ranks),
        mrr=sum(1 / rank for rank in ranks if rank is not None) / len(ranks),
    )


def with_marks(result: Mapping[str, Any], stating: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """The result with `proponent_correct`: for every proponent, whether it states the fact."""
    wanted = stating[result["fact_id"]]
    return {**result, "proponent_correct": [example_id in wanted for example_id in result["proponent_ids"]]}


_PHRASINGS = {"seen": "as in some training sentence", "unseen": "as in no training sentence"}


def summary_table(
    methods: Mapping[str, Sequence[Mapping[str, Any]]],
    stating: Mapping[str, frozenset[str]],
) -> Table:
    """One row a method and phrasing, over the queries that the model answers correctly.

    Args:
        methods: Name of a method → its results for all queries, each with `fact_id`, `phrasing` and `answered`.
        stating: See `read_stating`.
    """
    table = Table(
        title="Is a sentence that states the fact among the top 10 proponents?",
        caption="Over the queries that the model answers correctly, of all that were asked.",
    )
    table.add_column("method")
    table.add_column("query phrased", no_wrap=True)
    for name in ("queries", "Recall@10", "MRR"):
        table.add_column(name, justify="right", no_wrap=True)
    for method, results in methods.items():
        parts = {"either way": results}
        parts |= {label: [r for r in results if r["phrasing"] == kind] for kind, label in _PHRASINGS.items()}
        for label, part in parts.items():
            quality = measure([result for result in part if result["answered"]], stating)
            table.add_row(
                method if part is results else "",
                label,
                f"{quality.queries} of {len(part)}",
                f"{quality.recall_at_10:.2f}",
                f"{quality.mrr:.2f}",
                end_section=label == _PHRASINGS["unseen"],
            )
    return table


def query_line(result: Mapping[str, Any]) -> Text:
    """A query for people: its prompt, an arrow, its target, and how it is phrased."""
    return Text.assemble(
        result["inputs_plaintext"],
        (" → ", "dim"),
        (result["targets_plaintext"].strip(), "bold"),
        ("   (a phrasing of the corpus)" if result["phrasing"] == "seen" else "   (a new phrasing)", "dim"),
        overflow="fold",
    )


def proponents_table(result: Mapping[str, Any], stating: Mapping[str, frozenset[str]], top: int = 5) -> Table:
    """The top proponents of one query, each marked whether it states the fact."""
    marked = with_marks(result, stating)
    table = Table(show_edge=False)
    table.add_column("score", justify="right")
    table.add_column("states it", justify="center")
    table.add_column("proponent", overflow="fold")
    rows = zip(
        marked["proponent_scores"][:top], marked["proponent_correct"][:top], marked["proponents"][:top], strict=True
    )
    for score, correct, text in rows:
        mark = Text("yes", style="green") if correct else Text("no", style="red")
        table.add_row(f"{score:.3f}", mark, Text(text))
    return table


def handful(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results shown: one a well-known fact, in both phrasings by turns; only queries that the model answers."""
    right = {(result["fact_id"], result["phrasing"]): result for result in results if result["answered"]}
    shown: list[Mapping[str, Any]] = []
    for place, fact_id in enumerate(WELL_KNOWN):
        phrasings = ("seen", "unseen") if place % 2 == 0 else ("unseen", "seen")
        shown += [right[fact_id, phrasing] for phrasing in phrasings if (fact_id, phrasing) in right][:1]
    return shown or list(right.values())[: len(WELL_KNOWN)]


def show(
    methods: Mapping[str, Sequence[Mapping[str, Any]]],
    facts: Path,
    console: Console | None = None,
) -> None:
    """Prints the top proponents of a handful of queries by the first method, and the summary of all methods."""
    stating = read_stating(facts)
    tables: list[RenderableType] = []
    for result in handful(next(iter(methods.values()))):
        tables += [query_line(result), proponents_table(result, stating), ""]
    (console or Console()).print(Group(*tables, summary_table(methods, stating)))
