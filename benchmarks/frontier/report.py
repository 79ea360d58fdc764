"""The benchmark's tables, as Markdown, with JSON and a plot beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, markdown_table, write_results
from benchmarks.fact_tracing.report import show
from benchmarks.fact_tracing.truth import Patches
from benchmarks.frontier.measured import RECALL_10, Measured, own_reference
from benchmarks.frontier.rows import PAPER, Row, papers
from benchmarks.frontier.settings import DAMPING, Size
from benchmarks.frontier.truth import Foretold
from trackstar.evaluation.intervals import Estimate
from trackstar.evaluation.metrics import MRR
from trackstar.tuning.plot import Line, Panel, curves
from trackstar.tuning.run import OVERLAP, SPEARMAN

_HEADING = (
    "encoding",
    "bytes",
    "blocks",
    "seeds",
    "MRR",
    "Recall@10",
    "seeds' MRR",
    "MRR, less the paper's",
    "Spearman",
    "top 10",
)


@dataclasses.dataclass(frozen=True)
class Part:
    """All that was found on one corpus with one model.

    Args:
        name: Of both.
        measured: Rankings and agreement.
        rows: The rows.
        patches: Tail-patch of the principal rows; None where it was not measured.
        lds: LDS of the principal rows; None likewise.
    """

    name: str
    measured: Measured
    rows: Sequence[Row]
    patches: Mapping[str, Patches] | None = None
    lds: Mapping[str, Mapping[str, Foretold]] | None = None

    def parameters(self) -> int:
        """Of the model."""
        return self.measured.bench.loaded.model.num_parameters()


def markdown(parts: Sequence[Part], size: Size, command: str, seconds: Mapping[str, float]) -> str:
    """The whole report."""
    lines = [
        "# Influence per byte",
        "",
        f"`{command}`; {', '.join(f'{name} {value}' for name, value in machine().items())}.",
        "",
        "Bytes are those of a stored encoding, with the scale of int8. MRR and Recall@10 (hit rate) are over the queries that "
        "the model answers, averaged over the seeds of the projection query by query; intervals are of 95 %, by a bootstrap over "
        "queries; beside them the lowest and the highest seed's mean, and the difference to the paper's layout at its largest, "
        "query by query. Spearman and top 10: agreement of the scores with the exact ones that this kind of encoding tends to "
        "as it gets wider (cosine of the full gradients; V, whitening and norms as the encoding's), over a sample of queries and "
        "documents, of the first seed.",
    ]
    for part in parts:
        lines += ["", f"## {part.name.capitalize()}", "", _about(part), *_exact(part)]
        for question in dict.fromkeys(row.question for row in part.rows):
            some = [row for row in part.rows if row.question == question]
            table = markdown_table(_HEADING, [_cells(part, row) for row in some])
            lines += ["", f"### {question}", "", table]
        lines += [*_patches(part), *_lds(part, size)]
    total = sum(seconds.values())
    lines += [
        "",
        "## Time",
        "",
        f"{total / 60:.0f} minutes: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()),
    ]
    return "\n".join(lines) + ".\n"


def write(
    parts: Sequence[Part], size: Size, command: str, seconds: Mapping[str, float], folder: Path, name: str = "frontier"
) -> list[Path]:
    """Markdown, JSON with every figure of it, and the plot."""
    text = markdown(parts, size, command, seconds)
    content = {
        "command": command,
        "size": dataclasses.asdict(size),
        "machine": machine(),
        "seconds": dict(seconds),
        "parts": {part.name: _part(part) for part in parts},
    }
    name = name if size.name == "standard" else f"{name}_{size.name}"
    paths = write_results(name, content, text, folder)
    picture = folder / f"{name}.png"
    curves([Panel(f"MRR, {part.name}", _lines(part)) for part in parts], str(picture))
    return [*paths, picture]


def _part(part: Part) -> dict[str, Any]:
    return {
        "parameters": part.parameters(),
        "documents": len(part.measured.bench.documents),
        "queries": len(part.measured.places),
        "exact": {
            "queries": len(part.measured.exact_places) if part.measured.has_exact else 0,
            "documents": len(part.measured.exact_documents) if part.measured.has_exact else 0,
            "metrics": {
                name: {metric: dataclasses.asdict(estimate) for metric, estimate in found.items()}
                for name, found in part.measured.exact_metrics().items()
            },
        },
        "rows": [_fields(part, row) for row in part.rows],
        "tail_patch": part.patches and {name: dataclasses.asdict(found) for name, found in part.patches.items()},
        "lds": part.lds
        and {name: {kind: dataclasses.asdict(e) for kind, e in found.items()} for name, found in part.lds.items()},
    }


def _fields(part: Part, row: Row) -> dict[str, Any]:
    measured, paper = part.measured, papers(part.rows)
    agreement = measured.agreement(row.candidates[0]) if measured.has_exact else {}
    less = measured.difference(row.files, paper.files) if paper and paper != row else {}
    return {
        "question": row.question,
        "name": row.family.name,
        **dataclasses.asdict(row.family),
        "bytes": row.num_bytes,
        "blocks": row.shape,
        "seeds": len(row.candidates),
        "metrics": {name: dataclasses.asdict(e) for name, e in part.measured.metrics(row.files).items()},
        "by_seed": part.measured.by_seed(row.files),
        "less_the_papers": {name: dataclasses.asdict(e) for name, e in less.items()},
        "own_reference": own_reference(row.family),
        "agreement": {
            reference: {measure: dataclasses.asdict(e) for measure, e in found.items()}
            for reference, found in agreement.items()
        },
    }


def _cells(part: Part, row: Row) -> list[str]:
    metrics, seeds = part.measured.metrics(row.files), part.measured.by_seed(row.files)[MRR]
    reference = own_reference(row.family)
    agreement = part.measured.agreement(row.candidates[0])[reference] if reference and part.measured.has_exact else None
    paper = papers(part.rows)
    less = part.measured.difference(row.files, paper.files)[MRR] if paper and paper != row else None
    return [
        row.family.name,
        f"{row.num_bytes:,}",
        row.shape,
        str(len(row.candidates)),
        show(metrics[MRR]),
        show(metrics[RECALL_10]),
        f"{min(seeds):.3f}–{max(seeds):.3f}" if len(seeds) > 1 else "–",
        show(less) if less else "–",
        show(agreement[SPEARMAN]) if agreement else "–",
        show(agreement[OVERLAP]) if agreement else "–",
    ]


def _about(part: Part) -> str:
    measured = part.measured
    answered = sum(measured.dataset.answered)
    queries = f"{answered:,} queries that the model answers"
    if answered < len(measured.places):
        queries = f"{len(measured.places):,} queries, all there are, since the model answers only {answered:,}"
    exact = f" Exact scores: {len(measured.exact_places):,} queries × {len(measured.exact_documents):,} documents."
    about = f"{len(measured.bench.documents):,} documents, {queries}, {part.parameters():,} parameters."
    return about + (exact if measured.has_exact else "")


def _exact(part: Part) -> list[str]:
    found = part.measured.exact_metrics()
    if not found:
        return []
    rows = [[name, show(metrics[MRR]), show(metrics[RECALL_10])] for name, metrics in found.items()]
    return ["", "### Full gradients, over those queries", "", markdown_table(("cosine", "MRR", "Recall@10"), rows)]


def _patches(part: Part) -> list[str]:
    if part.patches is None:
        return []
    first = next(iter(part.patches.values()))
    names = list(first.estimates)
    rows = [[name, *(show(each.estimates[k], 2) for k in names)] for name, each in part.patches.items()]
    about = f"Change of the target's probability in percentage points, rate {first.rate:g}:"
    return ["", "### Tail-patch", "", about, "", markdown_table(["row", *names], rows)]


def _lds(part: Part, size: Size) -> list[str]:
    if part.lds is None:
        return []
    truth = size.facts.truth
    about = (
        f"On the smaller corpus, over {truth.subsets} random halves × {len(truth.seeds)} seeds, with the gradients of one model "
        f"and with the scores of {truth.models} averaged; whitening damped by {DAMPING:g} where no other "
        "damping is named; differences to the paper's layout query by query:"
    )
    rows = []
    for name, found in part.lds.items():
        cells = [each for kind in ("one model", "averaged") for each in _foretold(found.get(kind))]
        rows.append([name, *cells])
    models = f"{truth.models} models"
    heading = ("row", "one model", "less the paper's", models, f"{models}, less the paper's")
    return ["", "### LDS", "", about, "", markdown_table(heading, rows)]


def _foretold(found: Foretold | None) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    return show(found.lds), show(found.difference) if found.difference else "–"


def _lines(part: Part) -> list[Line]:
    """One a family that was measured at more than one size."""
    families: dict[str, dict[int, Estimate]] = {}
    for row in part.rows:
        name = "the paper's layout" if row.question == PAPER.title else row.family.name
        families.setdefault(name, {})[row.num_bytes] = part.measured.metrics(row.files)[MRR]
    return [Line(name, sorted(points.items())) for name, points in families.items() if len(points) > 1]
