"""Estimates for baselines and tail-patch, as in `trackstar.cost.commands`."""

from collections.abc import Sequence

from trackstar.corpus import Shard, WorkItem
from trackstar.cost import calibrate, model
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated
from trackstar.cost.model import Estimate
from trackstar.cost.sample import sample_corpus
from trackstar.cost.shapes import ScanShape, StepsShape, parameters_of
from trackstar.cost.skeleton import load_skeleton
from trackstar.errors import TrackStarError
from trackstar.evaluation.corpus_scan import Method
from trackstar.evaluation.tail_patch import TailPatchSource
from trackstar.evaluation.tail_patch_plan import Plan, chunks
from trackstar.evaluation.tail_patch_tasks import Group
from trackstar.tokenization import Tokenization, UnusableRecordError

_RUNGS = 7
"""Learning rates that are tried on each pair of a tail-patch's sample, about."""


def estimate_baseline(
    name: str,
    items: Sequence[WorkItem],
    shards: Sequence[Shard],
    method: Method,
    num_queries: int,
    top_k: int,
    basis: Basis,
) -> Estimated:
    """Passes over the corpus's text."""
    sample = sample_corpus(None, items, basis.clock)
    num_bytes = float(sum(item.num_bytes for item in items))
    documents = len(sample.records) * num_bytes / sample.sampled_bytes if sample.sampled_bytes else 0.0
    rates = basis.rates()
    if basis.calibrates:
        rates = rates.with_measured(text_bytes=calibrate.text_rate(method, sample, top_k, basis.clock))
    passes = 2 if method.needs_statistics else 1
    scan = ScanShape(documents, len(items), len(items), num_bytes, num_queries, top_k, 1, False)
    stages = (model.start_stage(rates, len(items)), model.text_stage(name, len(items), num_bytes, passes, scan, rates))
    facts = (
        ("shards", f"{len(shards):,}"),
        ("work items", f"{len(items):,}" + (", read twice" if passes == 2 else "")),
        ("examples", f"about {documents:,.0f}"),
        ("queries", f"{num_queries:,}"),
    )
    amounts = (("items", float(len(items))), ("examples", documents), ("queries", float(num_queries)))
    notes = ("winners are read once more for their texts",)
    return Estimate("baseline", stages, facts, amounts, notes), rates


def estimate_tail_patch(
    plan: Plan, source: TailPatchSource, rate: float | str, sample_size: int, basis: Basis
) -> Estimated:
    """A step on every distinct proponent, and those that the learning rate is looked for with."""
    settings = source.settings
    started = basis.clock()
    patch = source.load() if basis.calibrates else None
    load_seconds = basis.clock() - started
    loaded = patch.loaded if patch is not None else load_skeleton(source.model)
    length = settings.max_length or loaded.context_length
    if length is None:
        raise TrackStarError("the model's configuration names no context length: give --max_length")
    tokenization = Tokenization(loaded.tokenizer, loaded.vocabulary_size, length, "truncate", settings.append_eos)
    parameters = parameters_of(loaded)
    rates = basis.rates(12.0 * parameters)
    usable = [plan.groups[number] for number in plan.usable()]
    sampled = usable[:: max(1, len(usable) // 64)]
    lengths = [_group_tokens(tokenization, group) for group in sampled]
    factor = len(usable) / max(1, len(sampled))
    rungs = _RUNGS if sample_size and rate == "auto" else (1 if sample_size else 0)
    trials = len(plan.sample(sample_size)) if sample_size else 0
    mean_document = sum(document for document, _ in lengths) / max(1, len(lengths))
    mean_query = sum(query for _, query in lengths) / max(1, sum(len(group.queries) for group in sampled))
    steps = StepsShape(
        len(usable) + trials * (rungs + 1),
        sum(document for document, _ in lengths) * factor + trials * 2 * mean_document,
        2 * sum(query for _, query in lengths) * factor + trials * (rungs + 2) * mean_query,
        len(chunks(usable)) if usable else 1,
    )

    def flops(group: Group) -> float:
        document, query = _group_tokens(tokenization, group)
        return sum(
            part.amount
            for part in model.steps_stage(parameters, StepsShape(1, document, 2 * query, 1), rates).parts[:1]
        )

    if patch is not None:
        stated = float(rate) if isinstance(rate, float) else 1e-6
        rates = rates.with_measured(
            load_seconds=load_seconds, step_flops=calibrate.step_rate(patch, sampled, stated, flops, basis.clock)
        )
    stages = (model.start_stage(rates, steps.tasks), model.steps_stage(parameters, steps, rates))
    facts = (
        ("queries", f"{len(plan.results):,} ({len(plan.without_proponents):,} without proponents)"),
        ("pairs", f"{plan.num_pairs:,}"),
        ("proponents", f"{len(plan.groups):,} distinct ({len(plan.without_text):,} to be looked up in the corpus)"),
        ("steps", f"{steps.steps:,}, one a distinct proponent and {trials * (rungs + 1):,} for the learning rate"),
        ("tokens", f"about {steps.document_tokens + steps.query_tokens:,.0f}"),
    )
    amounts = (
        ("items", float(steps.tasks)),
        ("pairs", float(plan.num_pairs)),
        ("steps", float(steps.steps)),
        ("tokens", steps.document_tokens + steps.query_tokens),
    )
    notes = (
        ("a second ladder of learning rates, where the first does not span the linear range, is not counted",)
        if trials
        else ()
    )
    return Estimate("tail-patch", stages, facts, amounts, notes), rates


def _group_tokens(tokenization: Tokenization, group: Group) -> tuple[int, int]:
    """Tokens of a group's document, and of all its queries."""
    document = 0
    try:
        if group.document is not None:
            document = len(tokenization.documents(group.document)[0][0].input_ids)
        queries = sum(len(tokenization.query("", query.prompt, query.target).input_ids) for query in group.queries)
    except UnusableRecordError:
        return document, 0
    return document, queries
