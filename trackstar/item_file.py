"""How a work item's Parquet file is streamed out.

The encoding column is laid out so that a scan costs no decoding: `fixed_size_binary(bytes per encoding)`, required,
PLAIN, uncompressed, without dictionary or statistics, one data page a row group, aligned to a cache line. The page *is*
the matrix [rows, d], row-major and little-endian, and `trackstar.parquet_pages` reads it as such.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.item_footer import ENCODING, MAX_NORM, arrow_schema
from trackstar.spec import Spec

ROW_GROUP_BYTES = 64 * 2**20
_PAGE_BYTES = 2**30  # above any row group: one page a row group
_ALIGNMENT = 64  # bytes of a cache line
STORAGE_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def rows_per_group(spec: Spec) -> int:
    """Rows of one row group: as many as fit into 64 MiB of encodings, at least one."""
    return max(1, ROW_GROUP_BYTES // spec.bytes_per_encoding)


def write_parquet(
    path: str, spec: Spec, shard: str, batches: Iterable[Encodings], footer: Callable[[], dict[str, str]]
) -> None:
    """Streams `batches` into a Parquet file at the local `path`, holding one row group in memory.

    The bytes depend on the rows, the spec and the footer alone, not on how the rows come in batches.

    Args:
        path: Local file to write.
        spec: Gives columns, storage type and dimension.
        shard: Value of the column `shard`.
        batches: The examples, in the order in which they are stored.
        footer: Called after the last batch; its items become the file's key-value metadata, beside `shard`.
    """
    schema = arrow_schema(spec)
    others = [name for name in schema.names if name != ENCODING]
    with (
        pa.OSFile(path, "wb") as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression={**dict.fromkeys(others, "zstd"), ENCODING: "none"},
            use_dictionary=["shard"],
            write_statistics=others,
            data_page_size=_PAGE_BYTES,
            write_page_index=False,
            store_schema=False,
        ) as writer,
    ):
        max_norm = 0.0
        for group in _regrouped(batches, rows_per_group(spec)):
            stored = _stored(group.vectors, spec)
            max_norm = max(max_norm, stored.float().norm(dim=1).max().item())
            sink.write(b"\0" * (-(sink.tell() + _page_header_bytes(len(group), spec)) % _ALIGNMENT))
            writer.write_table(_table(group, stored, spec, schema, shard), row_group_size=len(group))
        # Rounded up to two decimals: how the norm was summed does not show.
        writer.add_key_value_metadata(
            {**footer(), "shard": shard, MAX_NORM: f"{math.ceil(max_norm * 100.1) / 100:.2f}"}
        )


def _page_header_bytes(rows: int, spec: Spec) -> int:
    """Length of the page header that Arrow puts before the encodings of a row group (Thrift's compact protocol).

    The encodings come first in a row group, so filling up with zeros before it aligns them; Parquet finds its columns by
    their offsets and permits gaps. A wrong guess costs speed, not correctness: a scan of unaligned rows is a quarter slower.
    """

    def varint_bytes(value: int) -> int:
        return max(1, -(-(2 * value).bit_length() // 7))  # zigzag: twice the value

    sizes = 2 * (1 + varint_bytes(rows * spec.bytes_per_encoding))  # uncompressed, compressed
    page = 1 + (1 + varint_bytes(rows)) + 2 + 2 + 2 + 2 + 1  # struct; values; three encodings; empty statistics; end
    return 2 + sizes + page + 1


def _regrouped(batches: Iterable[Encodings], size: int) -> Iterator[Encodings]:
    """The same rows in groups of exactly `size`, the last one smaller."""
    waiting: list[Encodings] = []
    count = 0
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch.rows(start, min(len(batch), start + size - count))
            waiting.append(part)
            count += len(part)
            start += len(part)
            if count == size:
                yield Encodings.concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield Encodings.concatenate(waiting)


def _stored(vectors: torch.Tensor, spec: Spec) -> torch.Tensor:
    """[N, d] float32 → [N, d] in the storage type, on the CPU."""
    if vectors.shape[1] != spec.dimension:
        raise TrackStarError(f"encodings of dimension {vectors.shape[1]} for an index of dimension {spec.dimension}")
    return vectors.detach().to("cpu", STORAGE_TYPES[spec.storage]).contiguous()


def _table(group: Encodings, stored: torch.Tensor, spec: Spec, schema: pa.Schema, shard: str) -> pa.Table:
    columns: dict[str, Any] = {
        "example_id": group.example_ids,
        "shard": [shard] * len(group),
        "position": np.asarray(group.positions, np.int64),
        "num_tokens": np.asarray(group.num_tokens, np.int32),
        "loss": np.asarray(group.loss, np.float32),
        "grad_norm": np.asarray(group.grad_norm, np.float32),
        ENCODING: pa.Array.from_buffers(
            pa.binary(spec.bytes_per_encoding),
            len(group),
            [None, pa.py_buffer(stored.view(torch.uint8).numpy())],
        ),
    }
    if spec.stores_text:
        if group.texts is None:
            raise TrackStarError("the index stores texts (spec.stores_text), but the encodings came without them")
        columns["text"] = group.texts
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
