"""The benchmark's tables, as Markdown, and JSON beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, markdown_table, write_results
from benchmarks.fact_tracing.ablation import SHOWN, Metrics
from benchmarks.fact_tracing.dataset import Dataset
from benchmarks.fact_tracing.methods import Method
from benchmarks.fact_tracing.settings import Size
from benchmarks.fact_tracing.truth import Patches, Retrained
from trackstar.evaluation.intervals import Estimate


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the ablation: the same method under several projections."""

    name: str
    methods: tuple[Method, ...]
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class DatasetReport:
    """All that was found on one corpus."""

    dataset: Dataset
    about: Mapping[str, Any]
    rows: Sequence[Row]
    patches: Mapping[str, Patches]
    retrained: Retrained | None


def by_seed(methods: Sequence[Method]) -> list[tuple[Method, ...]]:
    """Rows that differ in nothing but the projections' seed, together, in order of first appearance."""
    groups: dict[Method, list[Method]] = {}
    for method in methods:
        key = dataclasses.replace(method, features=dataclasses.replace(method.features, seed=-1))
        groups.setdefault(key, []).append(method)
    return [tuple(group) for group in groups.values()]


def row_name(method: Method) -> str:
    """What the table calls a row."""
    layout = "a block a weight" if method.features.layout == "weights" else "pooled blocks"
    r = {"none": "no R", "train": "R_train", "eval": "R_eval", "mixed": "mixed R"}[method.preconditioner]
    norm = "no unit norm"
    if method.unit_norm:
        first = "weight by weight" if method.features.layout == "weights" else "block by block"
        norm = "unit norm" if method.normalisation == "vector" else f"unit norm {first} first"
    parts = [
        "V" if method.features.moments != "none" else "no V",
        r,
        norm,
        f"{layout} {method.features.side}×{method.features.side}",
    ]
    if method.damping != 0.1:
        parts.append(f"damping {method.damping:g}")
    if method.mixing is not None:
        parts.append(f"λ = {method.mixing:g}")
    return ", ".join(parts)


def show(estimate: Estimate, digits: int = 3) -> str:
    """Mean and interval."""
    if estimate.mean is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def markdown(reports: Sequence[DatasetReport], size: Size, command: str, seconds: Mapping[str, float]) -> str:
    """The whole report."""
    lines = [
        "# Fact tracing",
        "",
        f"`{command}`; {', '.join(f'{name} {value}' for name, value in machine().items())}.",
        "",
    ]
    lines += [
        "Intervals are of 95 %, by a bootstrap over queries, given the corpus, the model and the projections. MRR and Recall (hit"
        " rate) are over the queries that the model answers; gold documents state the fact that the query asks for.",
    ]
    for report in reports:
        lines += ["", f"## {report.dataset.name.capitalize()}", "", *_about(report, size), ""]
        best = sorted(report.rows, key=lambda row: -(row.metrics.answered["MRR"].mean or 0.0))
        heading = ["row", "seeds", *SHOWN, "MRR over all queries"]
        lines += [markdown_table(heading, [_row(row) for row in best])]
        lines += ["", *_patches(report.patches)]
        if report.retrained is not None:
            lines += ["", *_retrained(report.retrained, size)]
    total = sum(seconds.values())
    lines += [
        "",
        "## Time",
        "",
        f"{total / 60:.0f} minutes: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(
    reports: Sequence[DatasetReport], size: Size, text: str, seconds: Mapping[str, float], folder: Path
) -> list[Path]:
    """Markdown, and JSON with every figure of it."""
    content = {
        "size": dataclasses.asdict(size),
        "machine": machine(),
        "seconds": dict(seconds),
        "datasets": {
            report.dataset.name: {
                "about": dict(report.about),
                "answered": sum(report.dataset.answered),
                "queries": len(report.dataset.answered),
                "rows": [
                    {"name": row.name, "methods": [dataclasses.asdict(m) for m in row.methods], **row.metrics.to_dict()}
                    for row in report.rows
                ],
                "tail_patch": {name: dataclasses.asdict(patches) for name, patches in report.patches.items()},
                "retrained": report.retrained and dataclasses.asdict(report.retrained),
            }
            for report in reports
        },
    }
    name = "fact_tracing" if size.name == "standard" else f"fact_tracing_{size.name}"
    return write_results(name, content, text, folder)


def _about(report: DatasetReport, size: Size) -> list[str]:
    kinds = ", ".join(f"{count:,} {kind}s" for kind, count in report.about["documents_by_kind"].items())
    model = size.model
    return [
        f"{report.about['documents']:,} documents ({kinds}); {len(report.dataset.answered):,} queries, of which the model"
        f" answers {sum(report.dataset.answered):,}. A Llama of {model.layers} layers of width {model.hidden_size}, "
        f"{model.steps:,} steps of AdamW with batches of {model.batch_size}; V is that training's own."
    ]


def _row(row: Row) -> list[str]:
    answered = row.metrics.answered
    return [
        row.name,
        str(row.metrics.seeds),
        *(show(answered[name]) for name in SHOWN),
        show(row.metrics.everything["MRR"]),
    ]


def _patches(patches: Mapping[str, Patches]) -> list[str]:
    first = next(iter(patches.values()))
    names = list(first.estimates)
    rows = [[name, *(show(each.estimates[k], 2) for k in names)] for name, each in patches.items()]
    n = next(iter(first.estimates.values())).n
    return [
        f"Tail-patch, {n} queries that the model answers, change of the target's probability in percentage points; step rate · "
        f"g/(√V + ε) at rate {first.rate:g}, the largest in the linear range on the gold documents:",
        "",
        markdown_table(["row", *names], rows),
    ]


def _retrained(found: Retrained, size: Size) -> list[str]:
    truth = size.truth
    rows = []
    for name in sorted(found.lds, key=lambda name: -(found.lds[name].mean or 0.0)):
        effect = found.effects.get(name) or found.effects.get("random documents" if name == "random" else name)
        cells = (
            [show(effect.loss_rise), show(effect.loss_rise_beyond_random), show(effect.probability_drop)]
            if effect
            else ["–"] * 3
        )
        averaged = show(found.lds_of_models[name]) if name in found.lds_of_models else "–"
        rows.append([name, show(found.lds[name]), averaged, *cells])
    lines = [
        f"Retraining, on a smaller corpus ({found.documents:,} documents, {found.queries} queries of which its model answers "
        f"{found.answered}; {truth.model.layers} layers of width {truth.model.hidden_size}, {truth.model.steps} steps): LDS over "
        f"{truth.subsets} random halves × {len(truth.seeds)} seeds, with the gradients of one model and with the scores of "
        f"{truth.models} models averaged; leave-{truth.k}-out in {truth.groups} groups of queries × "
        f"{len(truth.leave_out_seeds)} seeds (rise of the query's loss in nats, the same beyond random documents, drop of the "
        "target's probability)."
    ]
    if found.repeatability is not None:
        lines[0] += (
            f" Losses of the same halves under other seeds correlate with these at {show(found.repeatability)}: what chance of "
            "training leaves to be foretold."
        )
    heading = ["row", "LDS", f"LDS, {truth.models} models", "loss rise", "beyond random", "probability drop"]
    return [*lines, "", markdown_table(heading, rows)]
