"""Shards → work items: static ranges, each of which becomes one immutable file of the index."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from trackstar.corpus import parquet
from trackstar.corpus.shards import Format, Shard
from trackstar.errors import TrackStarError

_FOOTER_READERS = 16


@dataclasses.dataclass(frozen=True)
class WorkItem:
    """A range of one shard.

    The range is in bytes for uncompressed lines, in row groups for Parquet, and the whole file, (0, size), for
    compressed lines. A line belongs to the range in which its first byte lies, so any cut gives every line to exactly
    one item.
    """

    shard: str
    """URI of the shard."""
    format: Format
    size: int
    """Bytes of the whole shard."""
    fingerprint: str
    """The shard's version when the work was planned."""
    start: int
    end: int
    num_bytes: int = 0
    """Bytes that the range takes in the shard, for progress and estimates; no part of the item's identity."""
    removed: tuple[str, ...] = ()
    """Ids of examples in the range that were taken down, sorted; the item's file is without them."""

    def key(self, spec_hash: str) -> str:
        """Name of the item's file: 32 hexadecimal digits of SHA-256 over the spec and all that determines the input.

        What was taken down counts only where there is some, so a take-down changes no key but those of the items it hits.
        """
        parts: list[Any] = [spec_hash, self.shard, self.fingerprint, self.format, self.start, self.end]
        if self.removed:
            parts.append(list(self.removed))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "WorkItem":
        """From `to_dict`'s values."""
        return cls(**{**fields, "removed": tuple(fields.get("removed", ()))})


def plan(shards: Iterable[Shard], target_bytes: int) -> list[WorkItem]:
    """Work items of the shards, in order.

    Args:
        shards: What `expand` gave.
        target_bytes: Most bytes of text an item takes. Compressed shards are one item each whatever their size, and a
            Parquet row group is not cut.

    Raises:
        ShardError: a Parquet shard whose footer cannot be read, or without the columns that are needed.
    """
    if target_bytes < 1:
        raise TrackStarError(f"{target_bytes} bytes a work item; it must be positive")
    shards = list(shards)
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_READERS) as pool:  # one request or more for each footer
        ranges = list(pool.map(lambda shard: _ranges(shard, target_bytes), shards))
    return [
        WorkItem(shard.uri, shard.format, shard.size, shard.fingerprint, start, end, num_bytes)
        for shard, of_shard in zip(shards, ranges, strict=True)
        for start, end, num_bytes in of_shard
    ]


def _ranges(shard: Shard, target_bytes: int) -> list[tuple[int, int, int]]:
    """Start, end and bytes of each of the shard's items."""
    if shard.format == "parquet":
        return _grouped(parquet.row_group_bytes(shard.uri), target_bytes)
    if shard.format in ("jsonl", "txt"):
        return [(start, end, end - start) for start, end in line_ranges(shard.size, target_bytes)]
    return [(0, shard.size, shard.size)]


def line_ranges(size: int, target_bytes: int) -> list[tuple[int, int]]:
    """Start and end of each item of an uncompressed shard of lines."""
    count = -(-size // target_bytes)
    cuts = [size * index // count for index in range(count + 1)] if count else []
    return list(itertools.pairwise(cuts))


def _grouped(sizes: Sequence[int], target_bytes: int) -> list[tuple[int, int, int]]:
    """Neighbouring row groups, as many as fit into the target, at least one."""
    ranges: list[tuple[int, int, int]] = []
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > target_bytes:
            ranges.append((start, index, total))
            start, total = index, 0
        total += size
    return [*ranges, (start, len(sizes), total)] if sizes else []
