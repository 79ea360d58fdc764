"""The documents that drift is measured on: rows of some of an index's files, by chance but the same in every run."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from trackstar.encoding_reader import EncodingReader
from trackstar.index import DataFile

_FILES = 12
_ONE_COMMIT = 60.0  # seconds that entries of one commit may lie apart, as they once did


def oldest(files: Sequence[DataFile], fewest: int) -> list[DataFile]:
    """The half that was committed first, and what was committed with the last of it; more where that is not `fewest` documents.

    A corpus that changes bit by bit is not to be held against what it has become.
    """
    by_time = sorted(files, key=lambda file: (file.committed, file.uri))
    enough = max(fewest, sum(file.num_rows for file in by_time) / 2)
    rows, last = 0, 0.0
    for file in by_time:
        if rows >= enough and file.committed > last + _ONE_COMMIT:
            break
        rows, last = rows + file.num_rows, file.committed
    return [file for file in by_time if file.committed <= last]


def drawn(files: Sequence[DataFile], count: int, fewest: int = _FILES) -> list[DataFile]:
    """So many files, or as many more as have `count` documents; all if they are fewer."""
    left = sorted((file for file in files if file.num_rows), key=lambda file: _digest(file.key))
    chosen: list[DataFile] = []
    while left and (len(chosen) < fewest or sum(file.num_rows for file in chosen) < count):
        chosen.append(left.pop(0))
    return chosen


def sampled(files: Sequence[DataFile], count: int, dimension: int, lengths: bool = False) -> torch.Tensor:
    """`rows` of `drawn` files."""
    return rows(drawn(files, count), count, dimension, lengths)


def groups_by_file(
    files: Sequence[DataFile], groups: int, count: int, files_each: int, fewest: int, dimension: int
) -> list[torch.Tensor] | None:
    """Groups of up to `count` documents, φ as `rows`, each out of other files; None where there are too few files for that.

    A group is of as many files as the new documents are, and no more are taken to fill it: many small files together differ
    less from others than one of them does.

    Args:
        files: Of which to take.
        groups: How many groups.
        count: Documents in each at most; all have as many as the smallest.
        files_each: Files that the new documents are of.
        fewest: Documents that a group has at least, of more files if need be.
        dimension: d.
    """
    left = [file for file in files if file.num_rows]
    files_each = max(1, min(files_each, _FILES // groups, len(left) // groups))
    chosen = []
    for _ in range(groups):
        taken = drawn(left, fewest, files_each)
        if sum(file.num_rows for file in taken) < fewest:
            return None
        left = [file for file in left if file not in taken]
        chosen.append(taken)
    count = min(count, *(sum(file.num_rows for file in taken) for taken in chosen))
    return [rows(taken, count, dimension) for taken in chosen]


def rows(files: Sequence[DataFile], count: int, dimension: int, lengths: bool = False) -> torch.Tensor:
    """About `count` documents of all these files, in a random order, [N, d].

    Args:
        files: Of which to take.
        count: Documents at most.
        dimension: d.
        lengths: Whether they are grad_norm · φ in float32, or φ in bfloat16.
    """
    total = sum(file.num_rows for file in files)
    parts = []
    for file in files:
        quota = min(file.num_rows, -(-count * file.num_rows // total))
        wanted = np.sort(np.random.default_rng(_digest(file.key)).choice(file.num_rows, quota, replace=False))
        parts.append(_of_file(file.uri, wanted, dimension, lengths))
    found = torch.cat(parts)
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))][:count]


def _of_file(uri: str, wanted: np.ndarray, dimension: int, lengths: bool) -> torch.Tensor:
    """The rows `wanted` (ascending) of one file."""
    reader = EncodingReader(uri, dimension)
    try:
        parts = []
        for chunk in reader.take(wanted):
            here = wanted[(wanted >= chunk.row) & (wanted < chunk.row + len(chunk))]
            values = chunk.stored.take(torch.from_numpy(here - chunk.row)).values(torch.float32)
            parts.append(values if lengths else values.bfloat16())
        found = torch.cat(parts)
        if not lengths:
            return found
        norms = torch.from_numpy(reader.column("grad_norm").to_numpy(zero_copy_only=False).astype(np.float32))
        return found * norms[torch.from_numpy(wanted)][:, None]
    finally:
        reader.close()


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
