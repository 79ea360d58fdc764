"""The frontier as a table for the terminal, as Markdown, as JSON, and as a plot."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from trackstar.evaluation.intervals import Estimate
from trackstar.tuning.candidates import Candidate, fit_words
from trackstar.tuning.plan import Plan, Settings
from trackstar.tuning.plot import Line, Panel, curves
from trackstar.tuning.run import OVERLAP, PEARSON, SPEARMAN, Row, Tuned

_SHOWN_A_SIZE = 3
_LINES = 10


def show(tuned: Tuned, settings: Settings, console: Console | None = None) -> None:
    """Prints the best encodings of each size, and the paper's layout beside them."""
    table = Table(
        title=f"Agreement with the exact scores ({settings.describe_exact})",
        caption=f"The best {_SHOWN_A_SIZE} at each size, the paper's layout, and > the one recommended for {settings.budget:,} "
        "bytes. Means over the queries; examples a second in this process. With intervals: tune.md.",
    )
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("encoding", min_width=24)
    table.add_column("Spearman", justify="right", no_wrap=True)
    table.add_column(f"top {settings.top_k}", justify="right", no_wrap=True)
    table.add_column("ex./s", justify="right", no_wrap=True)
    for row in chosen(tuned, settings):
        table.add_row(
            f"{row.candidate.num_bytes:,}",
            ">" if row is tuned.recommended else "",
            row.candidate.family.name,
            _mean(row.agreement[SPEARMAN]),
            _mean(row.agreement[OVERLAP]),
            f"{row.examples_per_second:,.1f}",
            style="bold" if row is tuned.recommended else None,
        )
    (console or Console()).print(table)


def show_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints the encodings that would be compared."""
    table = Table(title="Encodings that would be compared")
    for name in ("bytes", "encoding", "numbers"):
        table.add_column(name, justify="left" if name == "encoding" else "right", no_wrap=name != "encoding")
    for candidate in sorted(plan.candidates, key=lambda each: (each.num_bytes, each.family.name)):
        table.add_row(f"{candidate.num_bytes:,}", candidate.family.name, _numbers(candidate))
    (console or Console()).print(table)


def chosen(tuned: Tuned, settings: Settings) -> list[Row]:
    """The rows that the terminal shows, by bytes."""
    kept: list[Row] = []
    for rows in by_size(tuned.rows, settings.sizes).values():
        best = sorted(rows, key=lambda row: -row.quality)[:_SHOWN_A_SIZE]
        best += [row for row in rows if row.candidate.family.has_papers_layout and row not in best]
        kept += best
    if tuned.recommended not in kept:
        kept.append(tuned.recommended)
    return sorted(kept, key=lambda row: (row.candidate.num_bytes, -row.quality))


def by_size(rows: Sequence[Row], sizes: Sequence[int]) -> dict[int, list[Row]]:
    """Rows under the smallest of the sizes that they fit into."""
    found: dict[int, list[Row]] = {size: [] for size in sorted(sizes)}
    for row in rows:
        found[next(size for size in sorted(sizes) if row.candidate.num_bytes <= size)].append(row)
    return {size: some for size, some in found.items() if some}


def markdown(tuned: Tuned, settings: Settings, command: str) -> str:
    """Every row, and the command that the budget is best spent with."""
    header = ["bytes", "encoding", "numbers", "Spearman", "Pearson", f"top {settings.top_k}", "examples/s"]
    lines = ["| " + " | ".join(header) + " |", "| ---: | --- |" + " ---: |" * 5]
    for row in tuned.rows:
        estimates = [shown(row.agreement[name]) for name in (SPEARMAN, PEARSON, OVERLAP)]
        cells = [
            f"{row.candidate.num_bytes:,}",
            row.candidate.family.name,
            _numbers(row.candidate),
            *estimates,
            f"{row.examples_per_second:,.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    recommended = tuned.recommended
    return "\n".join(
        [
            "# Influence a byte",
            "",
            f"Agreement of scores with the exact ones ({settings.describe_exact}) over {tuned.documents:,} documents: means over "
            "the queries with 95 % intervals. Examples a second: encoded and stored in one process on this machine.",
            "",
            *lines,
            "",
            f"Recommended for {settings.budget:,} bytes: {recommended.candidate.family.name}, "
            f"{recommended.candidate.num_bytes:,} bytes.",
            "",
            f"```\n{command}\n```",
            *(["", "Not compared:", "", *(f"- {line}" for line in tuned.left_out)] if tuned.left_out else []),
            "",
        ]
    )


def as_json(tuned: Tuned, settings: Settings, about: Mapping[str, Any], words: Sequence[str]) -> str:
    """All figures.

    Args:
        tuned: What was found.
        settings: Of the comparison.
        about: The run: model, corpus, queries.
        words: The command line of the recommended `fit`.
    """
    content = {
        **about,
        "settings": dataclasses.asdict(settings),
        "exact": settings.describe_exact,
        "documents": tuned.documents,
        "rows": [_fields(row) for row in tuned.rows],
        "recommended": {**_fields(tuned.recommended), "fit": list(words)},
        "left_out": list(tuned.left_out),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def plot(tuned: Tuned, settings: Settings, uri: str) -> None:
    """Draws Spearman's correlation and the overlap against bytes: the families best within the budget, and the paper's."""
    panels = []
    for name, title in ((SPEARMAN, "Spearman correlation"), (OVERLAP, f"overlap of the {settings.top_k} best")):
        lines = [
            Line(family, [(row.candidate.num_bytes, row.agreement[name]) for row in rows])
            for family, rows in _best_families(tuned, settings).items()
        ]
        panels.append(Panel(f"{title} with the exact scores", lines, settings.budget))
    curves(panels, uri)


def _best_families(tuned: Tuned, settings: Settings) -> dict[str, list[Row]]:
    """Name → rows by bytes, of those families that are best within the budget, and of the paper's layout."""
    families: dict[str, list[Row]] = {}
    for row in tuned.rows:
        families.setdefault(row.candidate.family.name, []).append(row)

    def quality(rows: Sequence[Row]) -> float:
        return max((row.quality for row in rows if row.candidate.num_bytes <= settings.budget), default=-2.0)

    ordered = sorted(families, key=lambda name: (-quality(families[name]), name))
    kept = ordered[:_LINES] + [
        name for name in ordered[_LINES:] if families[name][0].candidate.family.has_papers_layout
    ]
    return {name: families[name] for name in kept}


def _fields(row: Row) -> dict[str, Any]:
    spec = row.candidate.spec
    return {
        "name": row.candidate.family.name,
        **dataclasses.asdict(row.candidate.family),
        "bytes": row.candidate.num_bytes,
        "dimension": spec.dimension,
        "num_blocks": spec.num_blocks,
        "block_rows": spec.block_rows,
        "block_columns": spec.block_columns,
        "agreement": {name: dataclasses.asdict(estimate) for name, estimate in row.agreement.items()},
        "examples_per_second": row.examples_per_second,
        "fit_flags": fit_words(row.candidate),
    }


def _numbers(candidate: Candidate) -> str:
    spec = candidate.spec
    return f"{spec.num_blocks}×{spec.block_rows}×{spec.block_columns}"


def _mean(estimate: Estimate) -> str:
    return "–" if estimate.mean is None else f"{estimate.mean:.3f}"


def shown(estimate: Estimate) -> str:
    """ "0.412 [0.380, 0.444]"."""
    if estimate.mean is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
