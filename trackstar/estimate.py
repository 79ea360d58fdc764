"""What a build will cost, before it starts: counted from the plan and a sample, timed by a short calibration."""

import dataclasses
import time
from collections.abc import Sequence

import pyarrow.parquet as pq

from trackstar import storage
from trackstar.corpus import Record, Shard, WorkItem, read
from trackstar.encoder import Encoder, EncoderSource
from trackstar.index import Index
from trackstar.indexing import ItemExamples, bytes_read
from trackstar.models import LoadedModel

_SAMPLE_RECORDS = 512
_CALIBRATION_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class BuildEstimate:
    """What is left to do, extrapolated from the first records of a few work items."""

    shards: int
    items: int
    items_done: int
    corpus_bytes: int
    """Bytes of the shards' ranges that are still to be encoded, as they lie on disk."""
    examples: float
    tokens: float
    index_bytes: float
    flops: float
    seconds_per_worker: float
    """Time of one worker alone, by the calibration."""

    def describe(self, workers: int) -> str:
        """Lines for people."""
        seconds = self.seconds_per_worker / max(1, workers)
        return "\n".join(
            [
                f"shards           {self.shards:,}",
                f"work items       {self.items:,} ({self.items_done:,} done already)",
                f"to be read       {human_bytes(self.corpus_bytes)}",
                f"examples         about {self.examples:,.0f}",
                f"tokens           about {self.tokens:,.0f}",
                f"to be written    about {human_bytes(self.index_bytes)}",
                f"FLOPs            about {self.flops:.3g}",
                f"time             about {human_time(seconds)} with {workers} worker(s) like this machine's",
            ]
        )


def estimate_build(
    index: Index, shards: Sequence[Shard], items: Sequence[WorkItem], source: EncoderSource
) -> BuildEstimate:
    """Reads the first records of up to eight unfinished items, encodes some of them, and extrapolates by bytes.

    Raises:
        ShardError: a sampled shard cannot be read.
    """
    present = index.existing_keys()
    missing = [item for item in items if item.key(index.spec.hash) not in present]
    encoder = source.load()
    corpus_bytes = sum(item.num_bytes for item in missing)
    chosen = missing[:: max(1, len(missing) // 8)][:8]
    sampled_bytes, examples, tokens, lengths_encoded, seconds = 0.0, 0, 0, 0, 0.0
    for item in chosen:
        source_examples = ItemExamples(encoder, item)
        sampled = []
        records = 0
        last_position = item.start
        complete = True
        for record in read(item):
            if records >= _SAMPLE_RECORDS:
                complete = False
                break
            records += 1
            last_position = record.position
            if isinstance(record, Record):
                sampled += source_examples.of_record(record)
        sampled_bytes += item.num_bytes if complete else _bytes_of(item, last_position, records)
        examples += len(sampled)
        tokens += sum(len(example.input_ids) for example in sampled)
        if sampled and seconds < _CALIBRATION_SECONDS:
            part = sampled[: encoder.window]
            if not lengths_encoded:
                encoder.encode(part[:8])  # first calls are slow
            started = time.monotonic()
            encoder.encode(part)
            seconds += time.monotonic() - started
            lengths_encoded += sum(len(example.input_ids) for example in part)
    scale = corpus_bytes / sampled_bytes if sampled_bytes else 0.0
    return BuildEstimate(
        shards=len(shards),
        items=len(items),
        items_done=len(items) - len(missing),
        corpus_bytes=corpus_bytes,
        examples=examples * scale,
        tokens=tokens * scale,
        index_bytes=examples * scale * index.spec.bytes_per_encoding,
        flops=tokens * scale * flops_per_token(encoder),
        seconds_per_worker=seconds / lengths_encoded * tokens * scale if lengths_encoded else 0.0,
    )


def flops_per_token(encoder: Encoder) -> float:
    """Forward pass and backward pass to the inputs (4 a parameter that multiplies), projections, exact moments' gradients."""
    spec, loaded = encoder.spec, encoder.loaded
    flops = 4.0 * multiplying_parameters(loaded)
    for weight in loaded.weights:
        if spec.moments == "exact":
            flops += 2.0 * weight.outputs * weight.inputs
        else:
            flops += 2.0 * (
                weight.outputs * spec.block_rows + weight.inputs * spec.block_columns + spec.block_dimension
            )
    return flops


def multiplying_parameters(loaded: LoadedModel) -> int:
    """Entries of all matrices that a token is multiplied with: the attributed ones and the LM head."""
    head = loaded.model.get_output_embeddings()
    attributed = sum(weight.outputs * weight.inputs for weight in loaded.weights)
    return attributed + (head.weight.numel() if head is not None else 0)


def human_bytes(count: float) -> str:
    """ "3.2 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def human_time(seconds: float) -> str:
    """ "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def _bytes_of(item: WorkItem, last_position: int, records: int) -> float:
    """Bytes of an item that its first records take."""
    if item.format != "parquet":
        return bytes_read(item, last_position)
    with storage.open_input(item.shard) as source:
        metadata = pq.read_metadata(source)
        rows = sum(metadata.row_group(group).num_rows for group in range(item.start, item.end))
    return item.num_bytes * records / max(records, rows)
