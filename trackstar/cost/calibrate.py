"""Rates of this machine, measured in seconds with the real code on a bounded sample.

What is written goes into a temporary folder that is gone afterwards; index, corpus and queries are only read.
"""

import dataclasses
import glob
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from trackstar import corpus, tensors
from trackstar.batching import Example, collate, plan_batches, windows
from trackstar.cost.rates import Rates
from trackstar.cost.sample import Clock, CorpusSample, padded_tokens
from trackstar.cost.shapes import EncodingShape, ScanShape
from trackstar.covariances import CovarianceSink, Part
from trackstar.encoder import Encoder
from trackstar.encoding_reader import EncodingReader
from trackstar.encodings import Encodings
from trackstar.evaluation.corpus_scan import BM25Method, Method, best_of_item, count_item
from trackstar.evaluation.tail_patch import TailPatch
from trackstar.evaluation.tail_patch_tasks import Group, MeasureTask
from trackstar.index import DataFile
from trackstar.item_file import write_parquet
from trackstar.item_footer import read_item_file
from trackstar.models import WeightInfo
from trackstar.passages import fetch_passages
from trackstar.queries import Change, QuerySet
from trackstar.results import Query, Ranking, Result, write_results
from trackstar.scoring import ScanSettings, TimedScan, timed_scan
from trackstar.spec import Spec
from trackstar.topk import TopK

SECONDS = 10.0
"""About how long the encoder is timed."""
SCAN_BYTES = 128 << 20
SCAN_QUERIES = 1024
"""Most of the index, and most queries, that a scan is timed with."""
ENCODED_QUERIES = 64
_EIGEN_DIMENSION = 1024
_TENSOR_BYTES = 32 << 20
_FEW, _MORE, _SOON = 8, 256, 0.3
_REPEATS = 4


def encoding_rates(encoder: Encoder, sample: CorpusSample, shape: EncodingShape, clock: Clock, rates: Rates) -> Rates:
    """Adds what a worker does with a work item: reading, encoding, writing.

    Examples are encoded in windows, as a worker does, until about ten seconds are over.
    """
    examples = sample.examples
    if not examples:
        return rates
    first, second = (_seconds(lambda: encoder.encode(examples[:_FEW]), clock) for _ in range(2))
    each = second / len(examples[:_FEW])
    if second < _SOON:  # a few examples fill no batch, and each takes longer than one of many
        each = _seconds(lambda: encoder.encode(examples[:_MORE]), clock) / len(examples[:_MORE])
    # As few as fill a third of the time and as many as a worker's window, in which batches are as well filled as they get.
    size = max(_FEW, min(encoder.window, len(examples), int(SECONDS / 3 / max(each, 1e-9))))
    seconds, flops, written = 0.0, 0.0, 0.0
    encoded: list[Encodings] = []
    for window in windows(examples, size):
        if seconds >= SECONDS or (seconds and len(window) < size / 2):
            break
        started = clock()
        encodings, _ = encoder.encode(window)
        seconds += clock() - started
        flops += shape.encode_flops(padded_tokens(window, encoder.spec.batch_tokens), len(window))
        written += len(encodings) * shape.bytes_per_encoding
        if written <= 2 * SCAN_BYTES:
            encoded.append(encodings)
    write_seconds, bytes_written, file_seconds = _writing(encoder.spec, encoded, clock)
    return rates.with_measured(
        encode_flops=_rate(flops, seconds),
        tokenize_bytes=sample.tokenize_bytes,
        write_bytes=_rate(bytes_written, write_seconds),
        file_seconds=file_seconds,
        load_seconds=rates.load_seconds + max(0.0, first - second),
    )


def _writing(spec: Spec, encoded: Sequence[Encodings], clock: Clock) -> tuple[float, float, float]:
    """Seconds of writing an item file, bytes of its encodings, and seconds of reading its footer."""
    if not encoded or not sum(map(len, encoded)):
        return 0.0, 0.0, 0.0
    with tempfile.TemporaryDirectory(prefix="trackstar-dry-run-") as folder:
        path = Path(folder) / "item.parquet"
        started = clock()
        write_parquet(str(path), spec, "shard", iter(encoded), dict)
        seconds = clock() - started
        started = clock()
        with path.open("rb") as source:
            read_item_file("item", str(path), source, path.stat().st_size)
        return seconds, float(sum(map(len, encoded)) * spec.bytes_per_encoding), clock() - started


def query_vectors(encoder: Encoder, examples: Sequence[Example], count: int) -> torch.Tensor:
    """Encodings of queries [Q, d] under R_train: of the first 64 at most, again and again until there are `count`."""
    projected = encoder.project(examples[:ENCODED_QUERIES]).gradients
    vectors, _ = encoder.finish(projected)
    vectors = vectors.cpu()[torch.isfinite(vectors).all(dim=1).cpu()]
    if not len(vectors):  # no query has a gradient; the run itself will say so
        vectors = torch.nn.functional.normalize(torch.ones(1, encoder.spec.dimension), dim=1)
    return vectors[torch.arange(count) % len(vectors)]


def scan_rates(
    files: Sequence[DataFile],
    vectors: torch.Tensor,
    spec: Spec,
    scan: ScanShape,
    settings: ScanSettings,
    clock: Clock,
    rates: Rates,
) -> Rates:
    """Adds what a scan does: products, float64 scores, norms under another preconditioner, merging and fetching.

    Scanned are copies of the index's first rows, 128 MB at most (of int8 and sign bits as many as of bfloat16), with 1,024
    queries at most.
    """
    row_bytes = max(spec.bytes_per_encoding, 2 * spec.dimension)
    with tempfile.TemporaryDirectory(prefix="trackstar-dry-run-") as folder:
        path = str(Path(folder) / "rows.parquet")
        rows = _first_rows(files, spec, max(settings.top_k, SCAN_BYTES // row_bytes))
        if rows is None:
            return rates
        write_parquet(path, spec, "shard", iter([rows]), dict)
        queries = QuerySet.of(vectors)
        first, plain = (timed_scan([path], queries, settings, None, clock) for _ in range(2))
        part = ScanShape(len(rows), 1, 1, 0.0, len(queries), scan.top_k, scan.ends, scan.changed)
        d = spec.dimension
        product = part.product_flops(d)
        measured = dataclasses.replace(rates, unpack_numbers=None).with_measured(  # the scan has it in it
            scan_flops=_rate(product, plain.rows_seconds),
            rescore_numbers=_rate(float(plain.num_scored) * d, plain.settling_seconds),
            merge_entries=_merging(plain, clock),
            fetch_seconds=_fetching(path, plain, clock),
            scan_start_seconds=max(0.0, first.seconds - plain.seconds),
            result_entries=_results(rows, plain.proponents, str(Path(folder) / "results.jsonl"), clock),
        )
        if not scan.changed:
            return measured
        blocks, size = spec.num_blocks, spec.block_dimension
        change = Change(torch.eye(size).expand(blocks, size, size).contiguous(), spec.normalisation)
        changed = timed_scan([path], queries.fold(change), settings, change, clock)
        # Differences of two scans: where noise makes them nothing, the change took at most all of its scan's time.
        norms, weighed = 2.0 * part.rows * d * size, 2.0 * changed.num_weighed * d * size
        settling = changed.settling_seconds - plain.settling_seconds
        return measured.with_measured(
            norm_flops=_rate(norms, changed.rows_seconds - plain.rows_seconds) or _rate(norms, changed.rows_seconds),
            weigh_flops=_rate(weighed, settling) or _rate(weighed, changed.settling_seconds),
        )


def text_rate(method: Method, sample: CorpusSample, top_k: int, clock: Clock) -> float | None:
    """Bytes of text that a baseline reads and scores in one pass, from the sample's records."""
    lines = [json.dumps({"id": record.example_id, "text": record.text}) for record in sample.records if record.text]
    if not lines:
        return None
    with tempfile.TemporaryDirectory(prefix="trackstar-dry-run-") as folder:
        path = Path(folder) / "sample.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
        [item] = corpus.plan(corpus.expand([glob.escape(str(path))]), path.stat().st_size)
        started = clock()
        passes = 1
        statistics = None
        if isinstance(method, BM25Method):
            passes, statistics = 2, count_item(method.ranker(), item).statistics
        best_of_item(method.ranker(statistics), item, top_k)
        # By the shards' bytes, which may be compressed, since these are what is known of the rest.
        return _rate(passes * sample.sampled_bytes, clock() - started)


def step_rate(
    patch: TailPatch, groups: Sequence[Group], rate: float, flops: Callable[[Group], float], clock: Clock
) -> float | None:
    """FLOP/s of a tail-patch's steps: some are taken, until about ten seconds are over; the first is not counted."""
    seconds, counted = 0.0, 0.0
    for number, group in enumerate(groups):
        started = clock()
        MeasureTask((group,), (rate,)).compute(lambda: patch, lambda steps, pairs: None)
        if number or len(groups) == 1:
            seconds += clock() - started
            counted += flops(group)
        if seconds >= SECONDS:
            break
    return _rate(counted, seconds)


def eigen_rate(dimension: int, clock: Clock) -> float:
    """FLOP/s in a float64 eigendecomposition of at most 1,024 dimensions, by `shapes.EIGEN_FLOPS`, with a product."""
    size = max(2, min(dimension, _EIGEN_DIMENSION))
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = half @ half.T
    torch.linalg.eigh(matrix[:2, :2])  # the first call loads the library
    started = clock()
    sigma, u = torch.linalg.eigh(matrix)
    (u * sigma) @ u.T
    shape = EncodingShape((), 0, size, 1, 1, "none", True, 0)
    return shape.eigen_flops(1, 1) / max(clock() - started, 1e-9)


def tensor_rate(clock: Clock) -> float | None:
    """Bytes of a file of tensors that are written in a second."""
    contents = {"sums": torch.zeros(_TENSOR_BYTES // 8, dtype=torch.float64)}
    with tempfile.TemporaryDirectory(prefix="trackstar-dry-run-") as folder:
        return _rate(
            _TENSOR_BYTES, _seconds(lambda: tensors.save(str(Path(folder) / "sums.safetensors"), contents, {}), clock)
        )


def covariance_rate(encoder: Encoder, examples: Sequence[Example], size: int, clock: Clock) -> float | None:
    """FLOP/s of the sums behind a covariance of at most 1,024 rows, with a batch of the examples on the model's device."""
    lengths = [len(example.input_ids) for example in examples]
    if not lengths:
        return None
    size = min(size, _EIGEN_DIMENSION)
    batch = collate([examples[i] for i in plan_batches(lengths, encoder.spec.batch_tokens)[0]])
    device = encoder.loaded.device
    weight = WeightInfo("weight", "weight", size, size, False, "mlp", 0)
    sink = CovarianceSink([Part(weight.name, "right", size, (weight.name,))], {}, device)
    vectors = torch.ones(*batch.input_ids.shape, size, device=device, dtype=getattr(torch, encoder.spec.model_dtype))
    sink.begin(batch.to(device))

    def add(times: int) -> None:
        for _ in range(times):
            sink.forward(weight, vectors)
        sink.total.sums[f"{weight.name}.right"][0, 0].item()  # an accelerator is waited for

    add(1)
    return _rate(2.0 * _REPEATS * batch.input_ids.numel() * size**2, _seconds(lambda: add(_REPEATS), clock))


def gram_rate(blocks: int, dimension: int, clock: Clock) -> float:
    """FLOP/s of Σ vec(E) vec(E)ᵀ for 512 examples, on this machine's processor."""
    rows = torch.ones(512, dimension)
    total = torch.zeros(dimension, dimension, dtype=torch.float64)
    total += (rows.T @ rows).double()
    started = clock()
    for _ in range(min(2, blocks)):
        total += (rows.T @ rows).double()
    return min(2, blocks) * 2.0 * 512 * dimension**2 / max(clock() - started, 1e-9)


def _first_rows(files: Sequence[DataFile], spec: Spec, count: int) -> Encodings | None:
    """The first rows of the index's files, `count` at most."""
    parts: list[Encodings] = []
    for file in files:
        missing = count - sum(map(len, parts))
        if missing <= 0:
            break
        parts += _rows_of(file.uri, spec, missing)
    return Encodings.concatenate(parts) if parts else None


def _rows_of(uri: str, spec: Spec, count: int) -> Iterator[Encodings]:
    reader = EncodingReader(uri, spec.dimension)
    try:
        for chunk in itertools.islice(reader.chunks(), -(-count * spec.bytes_per_encoding // (64 << 20))):
            rows = min(count, len(chunk))
            count -= rows
            ids, texts, positions = fetch_passages(uri, range(chunk.row, chunk.row + rows))
            ones = torch.ones(rows).numpy()
            yield Encodings(
                example_ids=ids,
                positions=torch.tensor(positions, dtype=torch.int64).numpy(),
                texts=(texts or [""] * rows) if spec.stores_text else None,
                num_tokens=ones.astype("int32"),
                loss=ones,
                grad_norm=ones,
                vectors=chunk.stored.rows(0, rows).values(torch.float32),
            )
            if not count:
                return
    finally:
        reader.close()


def _merging(scan: TimedScan, clock: Clock) -> float | None:
    parts = [scan.proponents, scan.proponents]
    entries = sum(map(len, parts))
    started = clock()
    TopK.merge(parts)
    return _rate(entries, clock() - started)


def _results(rows: Encodings, top: TopK, uri: str, clock: Clock) -> float | None:
    texts, ids, numbers = rows.texts or [""] * len(rows), top.example_ids.to_pylist(), top.rows.tolist()
    rankings = []
    for query in range(top.num_queries):
        span = top.entries(query)
        rankings.append(Ranking([texts[row] for row in numbers[span]], ids[span], top.scores[span].tolist()))
    started = clock()
    write_results(uri, (Result(Query(str(n), "", "x"), "", ranking) for n, ranking in enumerate(rankings)))
    return _rate(len(top), clock() - started)


def _fetching(uri: str, scan: TimedScan, clock: Clock) -> float:
    tops = [top for top in (scan.proponents, scan.opponents) if top is not None]
    rows = sorted({row for top in tops for row in top.rows.tolist()})
    started = clock()
    fetch_passages(uri, rows)
    return clock() - started


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    started = clock()
    call()
    return clock() - started


def _rate(amount: float, seconds: float) -> float | None:
    """None where the time was too short to tell."""
    return amount / seconds if amount > 0 and seconds > 1e-6 else None
