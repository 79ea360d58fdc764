"""An estimate for each command: what it would do, counted from its plan and a sample, and what that takes.

Each function gives the estimate and the rates it was reckoned with. Nothing is written but into a temporary folder.
"""

import dataclasses
import math
from collections.abc import Sequence

from trackstar import threads
from trackstar.amounts import human_bytes
from trackstar.corpus import Shard, WorkItem
from trackstar.cost import calibrate, model
from trackstar.cost.basis import Basis
from trackstar.cost.model import Estimate
from trackstar.cost.rates import Rates
from trackstar.cost.sample import CorpusSample, padded_tokens, sample_corpus
from trackstar.cost.shapes import CorpusShape, EncodingShape, ScanShape, WhiteningShape, parameters_of
from trackstar.cost.skeleton import load_skeleton
from trackstar.covariances import Part
from trackstar.encoder import Encoder, EncoderSource, window_size
from trackstar.fitting import SampleTask
from trackstar.index import DataFile
from trackstar.models import LoadedModel
from trackstar.queries import QuerySet
from trackstar.query_encoding import query_groups
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.spec import Spec
from trackstar.tokenization import Tokenization, UnusableRecordError

Estimated = tuple[Estimate, Rates]
_TYPE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True)
class CostedModel:
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
    loaded = load_for(spec, source, basis)
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
    passes: Sequence[Sequence[Part]],
    source: EncoderSource,
    basis: Basis,
) -> Estimated:
    """Second moments where none were given, whitened projections, R_train and its roots.

    Args:
        spec: As far as it is known; a preconditioner that is to be made stands in it under any name but "none".
        shards: The corpus.
        tasks: The fixed sample.
        estimates_moments: Whether second moments are estimated on it.
        passes: The covariances behind whitened projections, pass by pass; empty for Gaussian ones.
        source: The encoder without preconditioner, under a spec for it.
        basis: What to reckon with.
    """
    items = [item for task in tasks for item in task.items]
    loaded = load_for(spec, source, basis)
    sample = sample_corpus(loaded.tokenization, items, basis.clock)
    rates = loaded.rates
    whitening = WhiteningShape.of(passes, spec.moments) if passes else None
    if loaded.encoder is not None:
        measured = EncodingShape.of(loaded.loaded, loaded.encoder.spec)
        rates = calibrate.encoding_rates(loaded.encoder, sample, measured, basis.clock, rates)
        if spec.preconditioner != "none":
            rates = _preconditioner_rates(rates, spec, basis)
        if whitening is not None:
            rates = rates.with_measured(
                covariance_flops=calibrate.covariance_rate(
                    loaded.encoder, sample.examples, whitening.largest, basis.clock
                ),
                root_flops=calibrate.eigen_rate(whitening.largest, basis.clock),
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
    pipelines = estimates_moments + len(passes) + (spec.preconditioner != "none")
    stages = [model.start_stage(rates, len(tasks), max(1, pipelines))]
    if estimates_moments:
        stages.append(model.squares_stage(loaded.shape, taken, len(tasks), rates))
    if whitening is not None:
        stages += [
            model.covariance_stage(loaded.shape, whitening, taken, len(tasks), rates),
            model.whitening_stage(loaded.shape, whitening, rates),
        ]
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
    loaded = load_for(spec, source, basis)
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
            rates = _preconditioner_rates(rates, spec, basis)
            rates = rates.with_measured(tensor_bytes=calibrate.tensor_rate(basis.clock))
    encoded = CorpusShape(
        len(query_groups(queries)),
        0.0,
        float(len(queries)),
        asked.tokens * len(queries) / max(1, len(asked.examples)),
        sum(padded_tokens(group, spec.batch_tokens) for group in query_groups(asked.examples))
        * len(queries)
        / max(1, len(asked.examples)),
    )
    stages = [model.start_stage(rates, groups, 2), model.query_stage(loaded.shape, encoded, rates)]
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


@dataclasses.dataclass(frozen=True)
class PlannedScan:
    """Files that are to be scanned.

    Args:
        files: The files.
        groups: Elements of work that they are grouped into.
        queries: How many queries they are scored for.
    """

    files: Sequence[DataFile]
    groups: int
    queries: int


def estimate_scans(
    command: str,
    spec: Spec,
    scans: Sequence[PlannedScan],
    queries: QuerySet,
    settings: ScanSettings,
    task_hessian: str,
    scan_threads: int,
    basis: Basis,
) -> Estimated:
    """Scans with queries that are encoded already, and no model.

    Args:
        command: The command's name.
        spec: The index's.
        scans: One after the other; those without files or queries are left out.
        queries: All of them.
        settings: How to score.
        task_hessian: As the command's flag.
        scan_threads: Threads of a scanning worker.
        basis: What to reckon with.
    """
    shape = EncodingShape.without_model(spec)
    planned = [scan for scan in scans if scan.files and scan.queries]
    shapes = [scan_shape(spec, scan.files, scan.groups, scan.queries, settings, task_hessian) for scan in planned]
    rates = basis.rates()
    if basis.calibrates and planned:
        vectors = queries.vectors[: calibrate.SCAN_QUERIES].float()
        threads.use(scan_threads)
        rates = calibrate.scan_rates(planned[0].files, vectors, spec, shapes[0], settings, basis.clock, rates)
    stages = [model.start_stage(rates, max((scan.groups for scan in planned), default=1), max(1, len(planned)))]
    for scan in shapes:
        stages += [model.scan_stage(shape, scan, rates), model.merge_stage(scan, rates)]
    rows = sum(scan.rows for scan in shapes)
    facts = (
        ("examples", f"{rows:,.0f} in {sum(len(scan.files) for scan in planned):,} files to be scored"),
        ("queries", f"{len(queries):,}, top {settings.top_k:,}" + (" of both ends" if settings.opponents else "")),
        ("work items", f"{sum(scan.groups for scan in planned):,} groups of files"),
    )
    amounts = (
        ("examples", rows),
        ("queries", float(len(queries))),
        ("items", float(sum(scan.groups for scan in planned))),
    )
    return Estimate(command, tuple(stages), facts, amounts), rates


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
        storage=spec.storage,
    )


def load_for(spec: Spec, source: EncoderSource, basis: Basis) -> CostedModel:
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
    if spec.projection == "whitened":
        model_bytes += shape.projection_bytes
    rates = basis.rates(model_bytes, spec.model_dtype)
    if encoder is not None:
        rates = rates.with_measured(load_seconds=load_seconds)
    return CostedModel(loaded, shape, spec, encoder, rates)


def _preconditioner_rates(rates: Rates, spec: Spec, basis: Basis) -> Rates:
    """Adds what sums and roots of R take."""
    return rates.with_measured(
        gram_flops=calibrate.gram_rate(spec.num_blocks, spec.block_dimension, basis.clock),
        eigen_flops=calibrate.eigen_rate(spec.block_dimension, basis.clock),
    )


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
