"""A bounded look at the corpus, and what follows from it for all of it.

Read are the first records of up to eight work items that are spread over those to be done: 512 records of each at most. The rest
is extrapolated by bytes, so a corpus whose shards differ much from each other is known less well.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq

from trackstar import storage
from trackstar.batching import Example, plan_batches, windows
from trackstar.corpus import Record, WorkItem, read
from trackstar.cost.shapes import CorpusShape
from trackstar.indexing import bytes_read
from trackstar.tokenization import Tokenization, UnusableRecordError

SAMPLE_ITEMS = 8
SAMPLE_RECORDS = 512

Clock = Callable[[], float]
"""Seconds: `time.perf_counter`, or `time.process_time` on a machine that others use, too."""


@dataclasses.dataclass(frozen=True)
class CorpusSample:
    """The first records of some work items."""

    examples: tuple[Example, ...]
    records: tuple[Record, ...]
    sampled_bytes: float
    """Of the shards, as they lie on disk."""
    seconds: float
    """Reading and tokenizing took."""

    @property
    def tokens(self) -> int:
        """Of the examples."""
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def tokenize_bytes(self) -> float | None:
        """Bytes that were read and tokenized in a second."""
        return self.sampled_bytes / self.seconds if self.sampled_bytes and self.seconds > 0 else None

    def padded_tokens(self, window: int, batch_tokens: int) -> int:
        """Tokens of the examples with the padding of their batches."""
        return sum(padded_tokens(part, batch_tokens) for part in windows(self.examples, window))

    def extrapolated(
        self, items: Sequence[WorkItem], window: int, batch_tokens: int, items_done: int = 0, shards: int = 0
    ) -> CorpusShape:
        """The whole of `items`, by bytes."""
        num_bytes = float(sum(item.num_bytes for item in items))
        scale = num_bytes / self.sampled_bytes if self.sampled_bytes else 0.0
        return CorpusShape(
            len(items),
            num_bytes,
            len(self.examples) * scale,
            self.tokens * scale,
            self.padded_tokens(window, batch_tokens) * scale,
            items_done,
            shards,
        )


def padded_tokens(examples: Sequence[Example], batch_tokens: int) -> int:
    """Tokens of one window's batches, padding included."""
    lengths = [len(example.input_ids) for example in examples]
    return sum(len(batch) * lengths[batch[0]] for batch in plan_batches(lengths, batch_tokens))


def sample_corpus(
    tokenization: Tokenization | None, items: Sequence[WorkItem], clock: Clock = time.perf_counter
) -> CorpusSample:
    """Reads and tokenizes the sample; without a tokenization it has records alone.

    Raises:
        ShardError: a sampled shard cannot be read.
    """
    examples: list[Example] = []
    records: list[Record] = []
    sampled_bytes = 0.0
    started = clock()
    for item in items[:: max(1, -(-len(items) // SAMPLE_ITEMS))]:
        count, last_position, complete = 0, item.start, True
        for record in read(item):
            if count >= SAMPLE_RECORDS:
                last_position, complete = record.position, False
                break
            count += 1
            last_position = record.position
            if isinstance(record, Record):
                records.append(record)
                if tokenization is not None:
                    try:
                        examples += tokenization.documents(record)[0]
                    except UnusableRecordError:
                        continue
        sampled_bytes += item.num_bytes if complete else _bytes_of(item, last_position, count)
    return CorpusSample(tuple(examples), tuple(records), sampled_bytes, clock() - started)


def _bytes_of(item: WorkItem, next_position: int, records: int) -> float:
    """Bytes of an item that its first records take, up to the position of the next."""
    if item.format != "parquet":
        return bytes_read(item, next_position)
    with storage.open_input(item.shard) as source:
        metadata = pq.read_metadata(source)
        rows = sum(metadata.row_group(group).num_rows for group in range(item.start, item.end))
    return item.num_bytes * records / max(records, rows)
