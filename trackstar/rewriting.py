"""Writes an item's file anew without what was taken down, from the file there is: no model, no corpus.

The bytes are those that encoding the item anew would write: encodings do not depend on what is dropped beside them
(`indexing`), and counts and rejected records follow from the old file.
"""

import dataclasses
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trackstar import checksums, storage
from trackstar.checksums import Checksum
from trackstar.corpus import WorkItem
from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.item_footer import ENCODING, SCALE, ItemCounts, ItemFile, read_footer
from trackstar.removal import Removals
from trackstar.removed_items import remember
from trackstar.spec import Spec
from trackstar.stored_forms import FORMS, StoredRows

_PIECE = 2**22  # numbers that are unpacked at a time


def rewrite_item(index: Index, item: WorkItem, old_key: str) -> ItemFile:
    """Writes the item's file from an older one of the same item, unless it exists.

    Memory is bounded by one row group.

    Args:
        index: The index.
        item: What to write, `item.removed` included.
        old_key: The older file: `removed_items.predecessor` names it.

    Raises:
        TrackStarError: the older file is damaged; what is damaged is not copied.
    """
    key = item.key(index.spec.hash)
    existing = index.has_item(key)
    if existing is not None:
        return existing
    old = index.has_item(old_key)
    if old is None or _is_damaged(index, old_key):
        raise TrackStarError(
            f"{index.item_uri(old_key)}: damaged or gone, so nothing is copied from it; run `trackstar verify --repair` first"
        )
    remember(index, item)
    return _Rewriting(index, item, old).write()


class _Rewriting:
    """One item: rows of the old file go through, counts are taken along."""

    def __init__(self, index: Index, item: WorkItem, old: ItemFile):
        self._index, self._item, self._old = index, item, old
        self._removals = Removals(frozenset(item.removed), splits=index.spec.long_documents == "split")
        self._positions: set[int] = set()
        self._counts = dataclasses.replace(ItemCounts.of(old.metadata), examples=0, tokens=0)

    def write(self) -> ItemFile:
        key = self._item.key(self._index.spec.hash)
        return self._index.write_item(key, self._item.shard, self._kept(), self._footer)

    def _kept(self) -> Iterator[Encodings]:
        for group in _pieces(self._index, self._old.uri):
            removed = self._removals.rows(group.example_ids)
            if removed is not None:
                self._positions.update(group.positions[removed].tolist())
                group = group.where(~removed)
            self._counts.examples += len(group)
            self._counts.tokens += int(group.num_tokens.sum())
            yield group

    def _footer(self) -> dict[str, str]:
        kept = []
        for reject in self._index.rejects_of(self._old.key):
            if self._removals.covers(reject.name):
                self._positions.add(reject.position)
                self._counts.rejected -= 1
            else:
                kept.append(reject)
        self._index.write_rejects(self._item.key(self._index.spec.hash), kept)
        self._counts.removed += len(self._positions)
        return self._counts.footer(self._item)


def _is_damaged(index: Index, key: str) -> bool:
    recorded = checksums.recorded(index.uri, index.item_path(key))
    return recorded is not None and recorded != Checksum.of(index.item_uri(key))


def _pieces(index: Index, uri: str) -> Iterator[Encodings]:
    """The rows of a file, a part of a row group at a time. Their vectors are float64, and so exactly what is stored."""
    spec = index.spec
    step = max(1, _PIECE // spec.dimension)
    with storage.open_input(uri) as source:
        footer = read_footer(uri, source)
        file = pq.ParquetFile(source, metadata=footer)
        for number in range(footer.num_row_groups):
            try:
                group = file.read_row_group(number).combine_chunks()
            except (pa.ArrowException, OSError) as error:
                raise TrackStarError(f"{uri}: row group {number} cannot be read ({error})") from error
            for start in range(0, len(group), step):
                table = group.slice(start, step)
                yield Encodings(
                    example_ids=table["example_id"].to_pylist(),
                    positions=table["position"].to_numpy(),
                    texts=table["text"].to_pylist() if spec.stores_text else None,
                    num_tokens=table["num_tokens"].to_numpy(),
                    loss=table["loss"].to_numpy(),
                    grad_norm=table["grad_norm"].to_numpy(),
                    vectors=_stored(table, spec).values(),
                )


def _stored(table: pa.Table, spec: Spec) -> StoredRows:
    form = FORMS[spec.storage]
    raw = torch.frombuffer(bytearray(b"".join(table[ENCODING].to_pylist())), dtype=form.matrix_type)
    scales = torch.from_numpy(table[SCALE].to_numpy().copy()) if form.is_scaled else None
    return StoredRows(form, raw.view(len(table), -1), scales, spec.dimension)
