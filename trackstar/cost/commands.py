"""An estimate for each command: what it would do, counted from its plan and a sample, and what that takes.

Each function gives the estimate and the rates it was reckoned with. Nothing is written but into a temporary folder.
"""

import dataclasses
import math
from collections.abc import Sequence

from trackstar import threads
from trackstar.corpus import Shard, WorkItem
from trackstar.cost import calibrate, model
from trackstar.cost.basis import Basis
from trackstar.cost.model import Estimate
from trackstar.cost.rates import Rates
from trackstar.cost.sample import CorpusSample, padded_tokens, sample_corpus
from trackstar.cost.shapes import CorpusShape, EncodingShape, ScanShape, StepsShape, parameters_of
from trackstar.cost.skeleton import load_skeleton
from trackstar.encoder import Encoder, EncoderSource, window_size
from trackstar.errors import TrackStarError
from trackstar.estimate import human_bytes
from trackstar.evaluation.corpus_scan import Method
from trackstar.evaluation.tail_patch import TailPatchSource
from trackstar.evaluation.tail_patch_plan import Plan, chunks
from trackstar.evaluation.tail_patch_tasks import Group
from trackstar.fitting import SampleTask
from trackstar.index import DataFile
from trackstar.models import LoadedModel
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.spec import Spec
from trackstar.tokenization import Tokenization, UnusableRecordError

Estimated = tuple[Estimate, Rates]
_TYPE_BYTES = {"bfloat16": 2, "float32": 4}
_RUNGS = 7
"""Learning rates that are tried on each pair of a tail-patch's sample, about."""


@dataclasses.dataclass(frozen=True)
class _Model:
    """The model of an estimate: its shapes, and the encoder where rates are measured."""

    loaded: LoadedModel
    shape: EncodingShape
    spec: Spec
    encoder: Encoder | None
    rates: Rates

    @property
    def tokenization(self) -> Tokenization:
        """Text to examples."""
        spec, loaded = self.spec, self.loaded
        return Tokenization(
            loaded.tokenizer, loaded.vocabulary_size, spec.max_length, spec.long_documents, spec.append_eos
        )

    @property
    def window(self) -> int:
        """Examples that are batched together."""
        return window_size(self.spec.dimension)


def estimate_build(
    spec: Spec,
    shards: Sequence[Shard],
    missing: Sequence[WorkItem],
    items_done: int,
    source: EncoderSource,
    basis: Basis,
    command: str = "build-index",
) -> Estimated:
    """Encoding of the work items that have no file yet, and the commit of all.

    Raises:
        ShardError: a sampled shard cannot be read.
        TrackStarError: the model is not the spec's.
    """
    loaded = _load(spec, source, basis)
    sample = sample_corpus(loaded.tokenization, missing, basis.clock)
    rates = loaded.rates
    if loaded.encoder is not None:
        rates = calibrate.encoding_rates(loaded.encoder, sample, loaded.shape, basis.clock, rates)
    corpus = sample.extrapolated(missing, loaded.window, spec.batch_tokens, items_done, len(shards))
    stages = (
        model.start_stage(rates, corpus.items),
        model.encode_stage(loaded.shape, corpus, rates),
        model.commit_stage(corpus.items + items_done, rates),
    )
    return Estimate(command, stages, *_corpus_facts(corpus, sample)), rates


def estimate_fit(
    spec: Spec,
    shards: Sequence[Shard],
    tasks: Sequence[SampleTask],
    estimates_moments: bool,
    source: EncoderSource,
    basis: Basis,
) -> Estimated:
    """Second moments where none were given, R_train and its roots.

    Args:
        spec: As far as it is known; a preconditioner that is to be made stands in it under any name but "none".
        shards: The corpus.
        tasks: The fixed sample.
        estimates_moments: Whether second moments are estimated on it.
        source: The encoder without preconditioner, under a spec for it.
        basis: What to reckon with.
    """
    items = [item for task in tasks for item in task.items]
    loaded = _load(spec, source, basis)
    sample = sample_corpus(loaded.tokenization, items, basis.clock)
    rates = loaded.rates
    if loaded.encoder is not None:
        measured = EncodingShape.of(loaded.loaded, loaded.encoder.spec)
        rates = calibrate.encoding_rates(loaded.encoder, sample, measured, basis.clock, rates)
        if spec.preconditioner != "none":
            rates = rates.with_measured(
                gram_flops=calibrate.gram_rate(spec.num_blocks, spec.block_dimension, basis.clock),
                eigen_flops=calibrate.eigen_rate(spec.block_dimension, basis.clock),
            )
        rates = rates.with_measured(tensor_bytes=calibrate.tensor_rate(basis.clock))
    whole = sample.extrapolated(items, loaded.window, spec.batch_tokens, 0, len(shards))
    asked = sum(quota for task in tasks for quota in task.quotas)
    share = min(1.0, asked / whole.examples) if whole.examples else 0.0
    # All records of the sampled items are read, and few of them tokenized; what tokenizing saves is not counted.
    taken = dataclasses.replace(
        whole,
        items=len(tasks),
        examples=whole.examples * share,
        tokens=whole.tokens * share,
        padded_tokens=whole.padded_tokens * share,
    )
    stages = [model.start_stage(rates, len(tasks))]
    if estimates_moments:
        stages.append(model.squares_stage(loaded.shape, taken, len(tasks), rates))
    if spec.preconditioner != "none":
        unconditioned = dataclasses.replace(loaded.shape, preconditioned=False)
        stages += [
            model.gram_stage(unconditioned, taken, len(tasks), rates),
            model.roots_stage(loaded.shape, rates, 1, 1),
        ]
    return Estimate("fit", tuple(stages), *_corpus_facts(taken, sample)), rates


def estimate_score(
    spec: Spec,
    files: Sequence[DataFile],
    groups: int,
    queries: Sequence[Query],
    settings: ScanSettings,
    task_hessian: str,
    source: EncoderSource,
    scan_threads: int,
    basis: Basis,
) -> Estimated:
    """Queries encoded, the index scanned, top-k arrays merged.

    Args:
        spec: The index's.
        files: The snapshot's.
        groups: Elements of work that they are grouped into.
        queries: The queries.
        settings: How to score.
        task_hessian: As the command's flag.
        source: The encoder.
        scan_threads: Threads of a scanning worker.
        basis: What to reckon with.
    """
    loaded = _load(spec, source, basis)
    asked = _query_sample(loaded.tokenization, queries)
    scan = scan_shape(spec, files, groups, len(queries), settings, task_hessian)
    rates = loaded.rates
    if loaded.encoder is not None:
        rates = calibrate.encoding_rates(loaded.encoder, asked, loaded.shape, basis.clock, rates)
        vectors = calibrate.query_vectors(loaded.encoder, asked.examples, min(len(queries), calibrate.SCAN_QUERIES))
        threads.use(scan_threads)
        rates = calibrate.scan_rates(files, vectors, spec, scan, settings, basis.clock, rates)
        threads.use(source.threads)
        if scan.changed:
            rates = rates.with_measured(
                gram_flops=calibrate.gram_rate(spec.num_blocks, spec.block_dimension, basis.clock),
                eigen_flops=calibrate.eigen_rate(spec.block_dimension, basis.clock),
                tensor_bytes=calibrate.tensor_rate(basis.clock),
            )
    size = 64
    encoded = CorpusShape(
        -(-len(queries) // size),
        0.0,
        float(len(queries)),
        asked.tokens * len(queries) / max(1, len(asked.examples)),
        sum(padded_tokens(asked.examples[i : i + size], spec.batch_tokens) for i in range(0, len(asked.examples), size))
        * len(queries)
        / max(1, len(asked.examples)),
    )
    stages = [model.start_stage(rates, groups), model.query_stage(loaded.shape, encoded, rates)]
    if scan.changed:
        mixes = task_hessian != "identity"
        # As `prepare_queries` does it; an R_eval that is kept is read instead of made.
        work = (2, 6, len(queries)) if mixes else (0, 1, len(queries))
        stages.append(model.roots_stage(loaded.shape, rates, *work))
    stages += [model.scan_stage(loaded.shape, scan, rates), model.merge_stage(scan, rates)]
    facts = (
        ("examples", f"{scan.rows:,.0f} in {scan.files:,} files, {human_bytes(scan.index_bytes)}"),
        ("queries", f"{len(queries):,}, top {settings.top_k:,}" + (" of both ends" if scan.ends == 2 else "")),
        ("work items", f"{groups:,} groups of files"),
        ("tokens", f"about {encoded.tokens:,.0f}"),
    )
    amounts = (
        ("examples", float(scan.rows)),
        ("queries", float(len(queries))),
        ("items", float(groups)),
        ("tokens", encoded.tokens),
    )
    return Estimate("score", tuple(stages), facts, amounts), rates


def scan_shape(
    spec: Spec, files: Sequence[DataFile], groups: int, queries: int, settings: ScanSettings, task_hessian: str
) -> ScanShape:
    """A scan of files."""
    return ScanShape(
        rows=float(sum(file.num_rows for file in files)),
        files=len(files),
        groups=groups,
        index_bytes=float(sum(file.num_bytes for file in files)),
        queries=queries,
        top_k=settings.top_k,
        ends=2 if settings.opponents else 1,
        changed=spec.preconditioner != "none" and task_hessian != "none" and settings.unit_norm,
    )


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


def _load(spec: Spec, source: EncoderSource, basis: Basis) -> _Model:
    """The model with weights where rates are measured, else its shapes alone."""
    encoder = None
    load_seconds = 0.0
    if basis.calibrates:
        started = basis.clock()
        encoder = source.load()
        load_seconds = basis.clock() - started
        loaded = encoder.loaded
    else:
        loaded = load_skeleton(source.model, spec.model_dtype)
    shape = EncodingShape.of(loaded, spec)
    model_bytes = parameters_of(loaded) * _TYPE_BYTES[spec.model_dtype] + shape.preconditioner_bytes
    rates = basis.rates(model_bytes, spec.model_dtype)
    if encoder is not None:
        rates = rates.with_measured(load_seconds=load_seconds)
    return _Model(loaded, shape, spec, encoder, rates)


def _corpus_facts(
    corpus: CorpusShape, sample: CorpusSample
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, float], ...], tuple[str, ...]]:
    """Facts, amounts and notes about a corpus."""
    done = f" ({corpus.items_done:,} done already)" if corpus.items_done else " (0 done already)"
    facts = (
        ("shards", f"{corpus.shards:,}"),
        ("work items", f"{corpus.items:,}{done}"),
        ("examples", f"about {corpus.examples:,.0f}"),
        ("tokens", f"about {corpus.tokens:,.0f}"),
    )
    amounts = (
        ("items", float(corpus.items)),
        ("items_done", float(corpus.items_done)),
        ("examples", corpus.examples),
        ("tokens", corpus.tokens),
        ("padded_tokens", corpus.padded_tokens),
    )
    notes = (f"extrapolated by bytes from {len(sample.records):,} records",) if sample.records else ()
    return facts, amounts, notes


def _query_sample(tokenization: Tokenization, queries: Sequence[Query]) -> CorpusSample:
    """Up to 1,024 queries as examples; those that cannot be used are left for the run to complain of."""
    examples = []
    for query in queries[:: max(1, math.ceil(len(queries) / 1024))]:
        try:
            examples.append(tokenization.query(query.example_id, query.prompt, query.target))
        except UnusableRecordError:
            continue
    return CorpusSample(tuple(examples), (), 0.0, 0.0)


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
