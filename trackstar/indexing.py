"""One work item of the corpus → one file of the index: what a worker does, as a library call.

The file's name is a function of the spec, the shard's fingerprint and the range, and its bytes of the same: an item whose
file exists is done. That is resuming, exactly-once under retries, and the nightly increment.
"""

from collections.abc import Callable, Iterator

import numpy as np

from trackstar import storage
from trackstar.batching import Example, windows
from trackstar.corpus import Record, Reject, WorkItem, read
from trackstar.encoder import Encoder
from trackstar.encodings import Encodings
from trackstar.index import Index
from trackstar.item_footer import ItemCounts, ItemFile
from trackstar.removal import Removals
from trackstar.tokenization import UnusableRecordError

_SNIPPET = 200
_COMPRESSED_SHARE = 0.35
"""Compressed bytes a byte of text, typically: how much text a compressed shard holds is not known before it is read."""


class ItemExamples:
    """The examples of a work item, with its rejects and counts as they come up.

    Examples that were taken down come out too, and are encoded with the others and dropped then: so a take-down changes no
    batch, and no bit of what remains.
    """

    def __init__(self, encoder: Encoder, item: WorkItem):
        self.item = item
        self.counts = ItemCounts()
        self.rejects: list[Reject] = []
        self.removals = Removals(frozenset(item.removed), splits=encoder.spec.long_documents == "split")
        self._tokenization = encoder.tokenization
        self._removed_positions: set[int] = set()

    def __iter__(self) -> Iterator[Example]:
        for record in read(self.item):
            self.counts.records += 1
            if isinstance(record, Reject):
                self._reject(record)
                continue
            yield from self.of_record(record)

    def of_record(self, record: Record) -> list[Example]:
        """Examples of one record; none where it cannot be used, and then it is among the rejects."""
        try:
            examples, cut = self._tokenization.documents(record)
        except UnusableRecordError as error:
            self.reject(record.position, str(error), record.text, record.example_id)
            return []
        self.counts.truncated += cut
        return examples

    def reject(self, position: int, reason: str, text: str | None, example_id: str) -> None:
        """Notes a record that cannot be encoded."""
        self._reject(Reject(self.item.shard, position, reason, (text or "")[:_SNIPPET], example_id))

    def kept(self, encodings: Encodings) -> Encodings:
        """The rows that were not taken down; the others are counted."""
        removed = self.removals.rows(encodings.example_ids)
        if removed is None:
            return encodings
        self._remove(encodings.positions[removed])
        return encodings.where(~removed)

    def _reject(self, reject: Reject) -> None:
        if self.removals.covers(reject.name):
            self._remove(np.array([reject.position]))
            return
        self.counts.rejected += 1
        self.rejects.append(reject)

    def _remove(self, positions: np.ndarray) -> None:
        self._removed_positions.update(positions.tolist())
        self.counts.removed = len(self._removed_positions)


def encode_item(
    encoder: Encoder,
    index: Index,
    item: WorkItem,
    tell: Callable[[float, int], None] = lambda work, count: None,
    replace: bool = False,
) -> tuple[ItemFile, bool]:
    """Encodes one work item into its file, unless the file exists.

    Memory is bounded by the encoder's window, whatever the item's size; rows are in the order of the shard. The file holds
    none of the examples that `item.removed` names; which these are is for the caller to know (`removed_items`).

    Args:
        encoder: Made for the index's spec.
        index: Where the file goes.
        item: What to encode.
        tell: Told, now and then, how many of the item's bytes are read (about) and how many rows it has so far.
        replace: Encode it even if the file exists, because that is damaged. It stays until the new one is complete.

    Returns:
        The file, and whether it was there before.

    Raises:
        ShardError: the shard cannot be read through.
    """
    key = item.key(index.spec.hash)
    existing = None if replace else index.has_item(key)
    if existing is not None:
        return existing, True
    examples = ItemExamples(encoder, item)

    def encoded() -> Iterator[Encodings]:
        for window in windows(examples, encoder.window):
            encodings, bad = encoder.encode(window)
            for i, reason in bad.items():
                example = window[i]
                examples.reject(
                    example.position, f"{example.example_id[:_SNIPPET]}: {reason}", example.text, example.example_id
                )
            encodings = examples.kept(encodings)
            examples.counts.examples += len(encodings)
            examples.counts.tokens += int(encodings.num_tokens.sum())
            tell(bytes_read(item, window[-1].position), examples.counts.examples)
            yield encodings

    def footer() -> dict[str, str]:
        # Called when all rows are written and the file is not yet visible: a visible file's rejects are on disk.
        index.write_rejects(key, examples.rejects)
        return examples.counts.footer(item)

    return index.write_item(key, item.shard, encoded(), footer), False


def bytes_read(item: WorkItem, position: int) -> float:
    """About how many of the item's `num_bytes` lie before the record at `position`; 0 where that cannot be told (Parquet)."""
    if item.format == "parquet":
        return 0.0
    text_bytes = float(position - item.start)
    return min(item.num_bytes, text_bytes if item.format in ("jsonl", "txt") else text_bytes * _COMPRESSED_SHARE)


def write_failure(index: Index, key: str, message: str) -> None:
    """Notes why an item has no file; the note goes away when it is read or the item succeeds."""
    storage.write_bytes(_failure_uri(index, key), message.encode("utf-8", "backslashreplace"))


def take_failure(index: Index, key: str) -> str | None:
    """The note on an item, removed; None where there is none."""
    uri = _failure_uri(index, key)
    if not storage.exists(uri):
        return None
    message = storage.read_bytes(uri).decode()
    storage.delete(uri)
    return message


def _failure_uri(index: Index, key: str) -> str:
    return storage.join(index.uri, "failures", key + ".txt")
