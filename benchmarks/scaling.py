"""The paper's case and the same corpus with the default recipe, reckoned stage by stage: `python -m benchmarks.scaling`.

Hours, money, storage and shuffle volume of indexing 365M documents (160B tokens) with an 8B-parameter model at d = 65,536 and of
scoring 5,415 queries against all of them (arXiv 2410.17413), by the model of `trackstar.cost` and the machines of a price table.
Runs nothing and measures nothing.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from transformers import LlamaConfig

from benchmarks.common import markdown_table
from pipelines.fit import SPEC_DEFAULTS
from trackstar import covariances, fitting
from trackstar.amounts import human_bytes
from trackstar.attributed import attributing
from trackstar.cost import model
from trackstar.cost.model import Estimate, Stage
from trackstar.cost.prices import Machine, Prices, load_prices
from trackstar.cost.rates import of_machine
from trackstar.cost.shapes import CorpusShape, EncodingShape, ScanShape, WhiteningShape, parameters_of
from trackstar.cost.skeleton import skeleton
from trackstar.models import LoadedModel
from trackstar.recipes import RECIPES, block_shape
from trackstar.spec import Spec

DOCUMENTS, TOKENS, QUERIES, TOP_K = 365e6, 160e9, 5415, 100
LAYERS, WIDTH, KEYS, HEAD, INNER, VOCABULARY = 32, 4096, 1024, 128, 14_336, 128_256
"""A decoder of 8.0B parameters, 7.0B of them in attributed matrices; the paper does not give its model's shapes."""
BYTES_PER_TOKEN = 4.5
"""Of text, as it lies on disk, uncompressed."""
CONTEXT = 8192
PADDING = 1.05
QUERY_TOKENS = 20
ITEM_BYTES = 64 << 20
"""Of text in a work item: four times the default, 11,000 items of 4.4 GB of encodings each."""
SCAN_BYTES = {"paper": 64 << 30, "default": 16 << 30}
"""Of the index in an element of work: more than the default of 4 GiB, so that few candidates are scored again; of a small index
less, so that there is an element for every machine."""
SAMPLE, SAMPLE_TASKS = 65_536, 32
ENCODERS = (("a3-highgpu-8g", 16), ("a2-ultragpu-1g", 256))
SCANNERS = (("n4-standard-80", 64), ("a3-highgpu-8g", 8))


@dataclasses.dataclass(frozen=True)
class Case:
    """A described index and queries."""

    loaded: LoadedModel
    spec: Spec
    shape: EncodingShape
    whitening: WhiteningShape | None
    corpus: CorpusShape
    scan: ScanShape
    queries: CorpusShape
    sample: CorpusShape


@cache
def llama() -> LoadedModel:
    """The model's shapes, without weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=KEYS // HEAD,
        max_position_embeddings=CONTEXT,
    )
    return skeleton(config, "bfloat16")


def spec_of(recipe: str) -> Spec:
    """What `fit --recipe` makes of the model; second moments, where the recipe has them, are an Adafactor state's."""
    flags, others = RECIPES[recipe], dict[str, Any](SPEC_DEFAULTS)
    loaded = attributing(llama(), flags.attributed)
    rows, columns = block_shape(
        loaded.weights,
        flags.layout,
        others["layer_groups"],
        rows=flags.block_rows,
        columns=flags.block_columns,
    )
    return fitting.make_spec(
        loaded,
        attributed=flags.attributed,
        layout=flags.layout,
        normalisation=flags.normalisation,
        projection=flags.projection,
        storage=flags.storage,
        block_rows=rows,
        block_columns=columns,
        max_length=None,
        moments=None,
        moments_pending=flags.moments != "none",
        factored=True,
        precondition=flags.preconditioner == "train",
        **others,
    )


def whitening_of(spec: Spec) -> WhiteningShape | None:
    """The passes that `fit` makes over its sample for whitened projections, on machines that are not this one."""
    if spec.projection != "whitened":
        return None
    loaded = attributing(llama(), spec.attributed)
    parts = covariances.plan_parts(loaded.weights, covariances.shared_inputs(loaded), [])
    return WhiteningShape.of(covariances.plan_passes(parts, fitting.pass_bytes(None)), spec.moments)


def make_case(
    recipe: str = "paper", item_bytes: int = ITEM_BYTES, scan_bytes: int | None = None, changed: bool = True
) -> Case:
    """The paper's corpus and queries under a recipe.

    Args:
        recipe: One of `RECIPES`.
        item_bytes: Bytes of text in a work item.
        scan_bytes: Bytes of the index in an element of the scan; None for `SCAN_BYTES`.
        changed: Whether R_eval is mixed into the preconditioner, where there is one.
    """
    spec = spec_of(recipe)
    shape = EncodingShape.of(llama(), spec)
    text_bytes = TOKENS * BYTES_PER_TOKEN
    items = math.ceil(text_bytes / item_bytes)
    index_bytes = DOCUMENTS * shape.bytes_per_encoding
    # Whole files make an element of work, as many as fit, one at least.
    per_group = max(1, int((scan_bytes or SCAN_BYTES[recipe]) / (index_bytes / items)))
    groups = math.ceil(items / per_group)
    corpus = CorpusShape(items, text_bytes, DOCUMENTS, TOKENS, PADDING * TOKENS)
    query_tokens = float(QUERIES * QUERY_TOKENS)
    share = SAMPLE / DOCUMENTS
    return Case(
        llama(),
        spec,
        shape,
        whitening_of(spec),
        corpus,
        ScanShape(
            DOCUMENTS, items, groups, index_bytes, QUERIES, TOP_K, 2, changed and shape.preconditioned, spec.storage
        ),
        CorpusShape(math.ceil(QUERIES / 64), 0.0, QUERIES, query_tokens, 1.3 * query_tokens),
        CorpusShape(SAMPLE_TASKS, 64 * item_bytes, SAMPLE, TOKENS * share, PADDING * TOKENS * share),
    )


def estimates(case: Case, machine: Machine) -> tuple[Estimate, Estimate, Estimate]:
    """fit, build-index and score on one kind of machine; V, where there is one, comes from the optimizer's state."""
    shape, whitening = case.shape, case.whitening
    loaded_bytes = 2.0 * parameters_of(case.loaded) + shape.preconditioner_bytes
    loaded_bytes += shape.projection_bytes if whitening is not None else 0
    rates = of_machine(machine, loaded_bytes, "bfloat16")
    passes = whitening.passes if whitening is not None else 0
    fit = [model.start_stage(rates, SAMPLE_TASKS, passes + shape.preconditioned)]
    if whitening is not None:
        fit += [
            model.covariance_stage(shape, whitening, case.sample, SAMPLE_TASKS, rates),
            model.whitening_stage(shape, whitening, rates),
        ]
    if shape.preconditioned:
        unconditioned = dataclasses.replace(shape, preconditioned=False)
        fit += [
            model.gram_stage(unconditioned, case.sample, SAMPLE_TASKS, rates),
            model.roots_stage(shape, rates, 1, 1),
        ]
    build = (
        model.start_stage(rates, case.corpus.items),
        model.encode_stage(shape, case.corpus, rates),
        model.commit_stage(case.corpus.items, rates),
    )
    score = [model.start_stage(rates, case.scan.groups, 2), model.query_stage(shape, case.queries, rates)]
    if case.scan.changed:
        score.append(model.roots_stage(shape, rates, 2, 6, QUERIES))
    score += [model.scan_stage(shape, case.scan, rates), model.merge_stage(case.scan, rates)]
    return Estimate("fit", tuple(fit)), Estimate("build-index", build), Estimate("score", tuple(score))


def report(prices: Prices) -> str:
    """The tables, as Markdown."""
    paper, plain, default = make_case("paper"), make_case("paper", changed=False), make_case("default")
    sections = [
        ("Side by side", _side_by_side(paper, plain, default, prices)),
        ("The paper's recipe: what there is to do", markdown_table(("", "amount"), list(_amounts(paper)))),
        ("The paper's recipe: fit and encoding", _table(paper, prices, ENCODERS, (0, 1))),
        ("The paper's recipe: scoring with a mixed R", _table(paper, prices, SCANNERS, (2,))),
        (
            "The paper's recipe: scoring with R_train alone (--task_hessian none)",
            _table(plain, prices, SCANNERS, (2,)),
        ),
        ("The paper's recipe: what --scan_bytes decides", _by_scan_bytes(prices)),
        ("The default: what there is to do", markdown_table(("", "amount"), list(_amounts(default)))),
        ("The default: fit and encoding", _table(default, prices, ENCODERS, (0, 1))),
        ("The default: scoring", _table(default, prices, SCANNERS, (2,))),
    ]
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in sections)


def _side_by_side(paper: Case, plain: Case, default: Case, prices: Prices) -> str:
    cases = (paper, default)
    month = prices.storage.per_gb_month / 1e9

    def flops(case: Case) -> tuple[float, float]:
        tokens, examples = case.corpus.padded_tokens, case.corpus.examples
        return case.shape.floor_flops(tokens), case.shape.projection_flops(tokens, examples)

    def taken(case: Case, machines: tuple[str, int], which: Sequence[int]) -> str:
        name, count = machines
        found = [estimates(case, prices.machine(name))[number] for number in which]
        money = [estimate.money(prices.machine(name), count, prices) for estimate in found]
        hours = _number(sum(estimate.wall_seconds(count) for estimate in found) / 3600)
        demand = sum(m.on_demand or 0.0 for m in money)
        spot = "–" if any(m.spot is None for m in money) else f"{sum(m.spot or 0.0 for m in money):,.0f}"
        return f"{hours} h, {demand:,.0f} {prices.currency} ({spot})"

    rows = [
        ("an encoding", *(case.spec.describe_blocks() for case in cases)),
        ("bytes a document", *(f"{case.shape.bytes_per_encoding:,}" for case in cases)),
        ("the index's encodings", *(human_bytes(case.scan.index_bytes) for case in cases)),
        (
            f"keeping them, {prices.currency} a month",
            *(f"{case.scan.index_bytes * month:,.0f}" for case in cases),
        ),
        ("the documents' texts beside them, before compression", *(human_bytes(c.corpus.text_bytes) for c in cases)),
        ("forward and input-gradient backward", *(f"{flops(case)[0]:.3g} FLOP" for case in cases)),
        ("projections", *(f"{flops(case)[1]:.3g} FLOP" for case in cases)),
    ]
    for machines in ENCODERS:
        title = f"fit and build-index, {machines[1]} × {machines[0]}"
        rows.append((title, *(taken(case, machines, (0, 1)) for case in cases)))
    for machines in SCANNERS:
        title = f"score, {machines[1]} × {machines[0]}"
        rows.append(
            (
                title,
                f"{taken(plain, machines, (2,))}; mixed R: {taken(paper, machines, (2,))}",
                taken(default, machines, (2,)),
            )
        )
    return markdown_table(("", "--recipe paper", "--recipe default"), rows)


def _amounts(case: Case) -> Iterator[tuple[str, str]]:
    shape, corpus, scan, whitening = case.shape, case.corpus, case.scan, case.whitening
    yield "documents, tokens", f"{corpus.examples:.4g}, {corpus.tokens:.4g}"
    yield "text on disk", human_bytes(corpus.text_bytes)
    yield "parameters that multiply", f"{shape.parameters / 1e9:.2f}B"
    yield "attributed of them", f"{shape.attributed / 1e9:.2f}B in {len(shape.matrices):,} matrices"
    yield "work items, files of the index", f"{corpus.items:,}"
    yield "forward and input-gradient backward", f"{shape.floor_flops(corpus.padded_tokens):.3g} FLOP"
    moments = "no V" if shape.moments == "none" else f"{shape.moments} V"
    yield f"projections ({moments})", f"{shape.projection_flops(corpus.padded_tokens, corpus.examples):.3g} FLOP"
    exact = dataclasses.replace(shape, moments="exact")
    yield "projections, were V exact", f"{exact.projection_flops(corpus.padded_tokens, corpus.examples):.3g} FLOP"
    if shape.preconditioned:
        yield "R^(-1/2) E", f"{shape.precondition_flops(corpus.examples):.3g} FLOP"
    yield "one encoding", human_bytes(shape.bytes_per_encoding)
    yield "the index's encodings", human_bytes(scan.index_bytes)
    if shape.preconditioned:
        yield "the preconditioner", human_bytes(shape.preconditioner_bytes)
        yield f"partial sums of R, each of {2 * SAMPLE_TASKS - 1}", human_bytes(shape.gram_bytes)
    if whitening is not None:
        tokens, examples = case.sample.padded_tokens, case.sample.examples
        yield "passes over the sample for covariances", f"{whitening.passes}"
        yield "forward and backward of these passes", f"{whitening.floor_flops(shape, tokens):.3g} FLOP"
        yield "sums of covariances, float32", f"{whitening.sum_flops(tokens, examples):.3g} FLOP"
        yield f"partial sums, each of {2 * SAMPLE_TASKS - 1}, all passes", human_bytes(whitening.sum_bytes)
        yield "inverse roots, float64", f"{len(whitening.roots):,}, {whitening.root_flops(shape):.3g} FLOP"
        yield "the projections", human_bytes(shape.projection_bytes)
    yield "product with 5,415 queries", f"{scan.product_flops(shape.dimension):.3g} FLOP"
    if scan.unpacked_numbers(shape.dimension):
        yield "bits unpacked for it", f"{scan.unpacked_numbers(shape.dimension):.3g}"
    if scan.changed:
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
        case = make_case(scan_bytes=gib << 30, changed=False)
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
        data = {
            recipe: {
                f"{count} × {name}": [
                    {
                        "command": estimate.command,
                        "hours": estimate.wall_seconds(count) / 3600,
                        "machine_hours": estimate.machine_hours(count),
                        **dataclasses.asdict(estimate.money(prices.machine(name), count, prices)),
                    }
                    for estimate in estimates(make_case(recipe), prices.machine(name))
                ]
                for name, count in (*ENCODERS, *SCANNERS)
            }
            for recipe in RECIPES
        }
        print(json.dumps(data, indent=1, ensure_ascii=False))
    else:
        print(report(prices))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
