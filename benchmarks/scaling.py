"""The paper's case, reckoned stage by stage: `python -m benchmarks.scaling`.

Hours, money, storage and shuffle volume of indexing 365M documents (160B tokens) with an 8B-parameter model at d = 65,536 and of
scoring 5,415 queries against all of them (arXiv 2410.17413), by the model of `trackstar.cost` and the machines of a price table.
Runs nothing and measures nothing.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.common import markdown_table
from trackstar.amounts import human_bytes
from trackstar.cost import model
from trackstar.cost.model import Estimate, Stage
from trackstar.cost.prices import Machine, Prices, load_prices
from trackstar.cost.rates import of_machine
from trackstar.cost.shapes import CorpusShape, EncodingShape, ScanShape

DOCUMENTS, TOKENS, QUERIES, TOP_K = 365e6, 160e9, 5415, 100
LAYERS, WIDTH, KEYS, INNER, VOCABULARY = 32, 4096, 1024, 14_336, 128_256
"""A decoder of 8.0B parameters, 7.0B of them in attributed matrices; the paper does not give its model's shapes."""
BYTES_PER_TOKEN = 4.5
"""Of text, as it lies on disk, uncompressed."""
PAPER_BLOCKS, DEFAULT_BLOCKS = (16, 64), (224, 17)
"""--recipe paper: d = 65,536; --recipe default, a block for each of 224 weights: d = 64,736."""
PADDING = 1.05
QUERY_TOKENS = 20
ITEM_BYTES = 64 << 20
"""Of text in a work item: four times the default, 11,000 items of 4.4 GB of encodings each."""
SCAN_BYTES = 64 << 30
"""Of the index in an element of work: sixteen times the default, so that few candidates are scored again."""
SAMPLE, SAMPLE_TASKS = 65_536, 32
ENCODERS = (("a3-highgpu-8g", 16), ("a2-ultragpu-1g", 256))
SCANNERS = (("n4-standard-80", 64), ("a3-highgpu-8g", 8))


@dataclasses.dataclass(frozen=True)
class Case:
    """A described index and queries."""

    shape: EncodingShape
    corpus: CorpusShape
    scan: ScanShape
    queries: CorpusShape
    sample: CorpusShape


def paper_case(
    item_bytes: int = ITEM_BYTES,
    scan_bytes: int = SCAN_BYTES,
    changed: bool = True,
    blocks: tuple[int, int] = PAPER_BLOCKS,
) -> Case:
    """The paper's case.

    Args:
        item_bytes: Bytes of text in a work item.
        scan_bytes: Bytes of the index in an element of the scan.
        changed: Whether R_eval is mixed into the preconditioner.
        blocks: How many, and how many rows and columns each has.
    """
    layer = (
        (WIDTH, WIDTH),
        (KEYS, WIDTH),
        (KEYS, WIDTH),
        (WIDTH, WIDTH),
        (INNER, WIDTH),
        (INNER, WIDTH),
        (WIDTH, INNER),
    )
    count, side = blocks
    shape = EncodingShape(
        layer * LAYERS, VOCABULARY * WIDTH, side, side, count, "factored", True, 2 * count * side * side
    )
    text_bytes = TOKENS * BYTES_PER_TOKEN
    items = math.ceil(text_bytes / item_bytes)
    index_bytes = DOCUMENTS * shape.bytes_per_encoding
    # Whole files make an element of work, as many as fit, one at least.
    per_group = max(1, int(scan_bytes / (index_bytes / items)))
    corpus = CorpusShape(items, text_bytes, DOCUMENTS, TOKENS, PADDING * TOKENS)
    query_tokens = float(QUERIES * QUERY_TOKENS)
    share = SAMPLE / DOCUMENTS
    sample = CorpusShape(SAMPLE_TASKS, 64 * item_bytes, SAMPLE, TOKENS * share, PADDING * TOKENS * share)
    return Case(
        shape,
        corpus,
        ScanShape(DOCUMENTS, items, math.ceil(items / per_group), index_bytes, QUERIES, TOP_K, 2, changed),
        CorpusShape(math.ceil(QUERIES / 64), 0.0, QUERIES, query_tokens, 1.3 * query_tokens),
        sample,
    )


def estimates(case: Case, machine: Machine) -> tuple[Estimate, Estimate, Estimate]:
    """fit, build-index and score on one kind of machine; V comes from the optimizer's state."""
    shape = case.shape
    parameters = shape.parameters + VOCABULARY * WIDTH
    rates = of_machine(machine, 2.0 * parameters + shape.preconditioner_bytes, "bfloat16")
    fit = (
        model.start_stage(rates, SAMPLE_TASKS),
        model.gram_stage(dataclasses.replace(shape, preconditioned=False), case.sample, SAMPLE_TASKS, rates),
        model.roots_stage(shape, rates, 1, 1),
    )
    build = (
        model.start_stage(rates, case.corpus.items),
        model.encode_stage(shape, case.corpus, rates),
        model.commit_stage(case.corpus.items, rates),
    )
    score = [model.start_stage(rates, case.scan.groups), model.query_stage(shape, case.queries, rates)]
    if case.scan.changed:
        score.append(model.roots_stage(shape, rates, 2, 6, QUERIES))
    score += [model.scan_stage(shape, case.scan, rates), model.merge_stage(case.scan, rates)]
    return Estimate("fit", fit), Estimate("build-index", build), Estimate("score", tuple(score))


def report(prices: Prices) -> str:
    """The tables, as Markdown."""
    case = paper_case()
    lines = ["### What there is to do", "", markdown_table(("", "amount"), list(_amounts(case)))]
    for title, chosen, which in (
        ("Fit and encoding", ENCODERS, (0, 1)),
        ("Scoring with a mixed R", SCANNERS, (2,)),
    ):
        lines += ["", f"### {title}", "", _table(case, prices, chosen, which)]
    lines += ["", "### Scoring with a mixed R and --recipe default: 224 blocks of 17×17", ""]
    lines.append(_table(paper_case(blocks=DEFAULT_BLOCKS), prices, SCANNERS, (2,)))
    plain = paper_case(changed=False)
    lines += ["", "### Scoring with R_train alone (--task_hessian none)", "", _table(plain, prices, SCANNERS, (2,))]
    lines += ["", "### What --scan_bytes decides", "", _by_scan_bytes(prices)]
    return "\n".join(lines)


def _amounts(case: Case) -> Iterator[tuple[str, str]]:
    shape, corpus, scan = case.shape, case.corpus, case.scan
    yield "documents, tokens", f"{corpus.examples:.4g}, {corpus.tokens:.4g}"
    yield "text on disk", human_bytes(corpus.text_bytes)
    yield "parameters that multiply", f"{shape.parameters / 1e9:.2f}B"
    yield "work items, files of the index", f"{corpus.items:,}"
    yield "forward and input-gradient backward", f"{shape.floor_flops(corpus.padded_tokens):.3g} FLOP"
    yield "projections (factored V)", f"{shape.projection_flops(corpus.padded_tokens, corpus.examples):.3g} FLOP"
    exact = dataclasses.replace(shape, moments="exact")
    yield "projections, were V exact", f"{exact.projection_flops(corpus.padded_tokens, corpus.examples):.3g} FLOP"
    yield "R^(-1/2) E", f"{shape.precondition_flops(corpus.examples):.3g} FLOP"
    yield "one encoding", human_bytes(shape.bytes_per_encoding)
    yield "the index", human_bytes(scan.index_bytes)
    yield "the preconditioner", human_bytes(shape.preconditioner_bytes)
    yield "partial sums of R, each of " + f"{2 * SAMPLE_TASKS - 1}", human_bytes(shape.gram_bytes)
    yield "product with 5,415 queries", f"{scan.product_flops(shape.dimension):.3g} FLOP"
    yield "norms under the mixed R", f"{scan.norm_flops(shape):.3g} FLOP"
    yield "elements of the scan", f"{scan.groups:,}"
    yield "pairs scored in float64", f"{scan.rescored_pairs():.3g}"
    yield "shuffled by the scan, at most", human_bytes(scan.shuffle_bytes())


def _table(case: Case, prices: Prices, chosen: Sequence[tuple[str, int]], which: Sequence[int]) -> str:
    rows: list[tuple[Any, ...]] = []
    for name, count in chosen:
        machine = prices.machine(name)
        found = estimates(case, machine)
        for estimate in (found[number] for number in which):
            for stage in estimate.stages:
                rows.append((f"{count} × {name}", estimate.command, stage.name, *_stage(stage, machine, count, prices)))
            money = estimate.money(machine, count, prices)
            rows.append(
                (
                    f"{count} × {name}",
                    f"**{estimate.command}**",
                    "**all**",
                    f"**{_number(estimate.wall_seconds(count) / 3600)}**",
                    f"**{_number(estimate.machine_hours(count))}**",
                    f"**{money.on_demand:,.0f}**",
                    "–" if money.spot is None else f"**{money.spot:,.0f}**",
                    f"{human_bytes(estimate.total('written_bytes'))}",
                    f"{money.storage_month:,.0f}",
                    "",
                )
            )
    header = (
        "machines",
        "command",
        "stage",
        "hours",
        "machine-hours",
        f"{prices.currency} on demand",
        "spot",
        "written",
        "a month to keep",
        "what takes the time",
    )
    return markdown_table(header, rows)


def _stage(stage: Stage, machine: Machine, count: int, prices: Prices) -> tuple[str, ...]:
    hours = stage.machine_seconds(count) / 3600
    longest = max(stage.parts, key=lambda part: part.seconds)
    share = longest.seconds / max(1e-12, sum(part.seconds for part in stage.parts))
    return (
        _number(stage.wall_seconds(count) / 3600),
        _number(hours),
        f"{hours * machine.price_per_hour:,.0f}",
        "–" if machine.spot_per_hour is None else f"{hours * machine.spot_per_hour:,.0f}",
        human_bytes(stage.written_bytes),
        f"{stage.kept_bytes / 1e9 * prices.storage.per_gb_month:,.0f}",
        f"{longest.name} ({share:.0%})",
    )


def _by_scan_bytes(prices: Prices) -> str:
    name, count = SCANNERS[0]
    rows = []
    for gib in (4, 16, 64, 256):
        case = paper_case(scan_bytes=gib << 30, changed=False)
        estimate = estimates(case, prices.machine(name))[2]
        rows.append(
            (
                f"{gib} GiB",
                f"{case.scan.groups:,}",
                f"{case.scan.rescored_pairs():.3g}",
                human_bytes(case.scan.shuffle_bytes()),
                f"{case.scan.shuffle_bytes() / 1e9 * prices.dataflow.per_shuffle_gb:,.2f}",
                _number(estimate.machine_hours(count)),
            )
        )
    header = (
        "--scan_bytes",
        "elements",
        "pairs in float64",
        "shuffled at most",
        f"{prices.currency} for the shuffle",
        f"machine-hours, {name}",
    )
    return markdown_table(header, rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", help="a price table of your own, TOML; it must have the machines of the tables")
    parser.add_argument("--json", action="store_true", help="print the estimates' numbers as JSON instead")
    args = parser.parse_args()
    prices = load_prices(args.prices)
    if args.json:
        case = paper_case()
        data = {
            name: [
                {
                    "command": estimate.command,
                    "hours": estimate.wall_seconds(count) / 3600,
                    "machine_hours": estimate.machine_hours(count),
                    **dataclasses.asdict(estimate.money(prices.machine(name), count, prices)),
                }
                for estimate in estimates(case, prices.machine(name))
            ]
            for name, count in (*ENCODERS, *SCANNERS)
        }
        print(json.dumps(data, indent=1))
    else:
        print(report(prices))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
