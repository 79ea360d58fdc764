"""How a work item's Parquet file is streamed out.

The encoding column is laid out so that a scan costs no decoding: `fixed_size_binary(bytes per encoding)`, required,
PLAIN, uncompressed, without dictionary or statistics, one data page a row group, aligned to a cache line. The page *is*
the matrix of the rows as they are stored (`stored_forms`), and `trackstar.parquet_pages` reads it as such.
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
from trackstar.item_footer import DIMENSION, ENCODING, MAX_NORM, SCALE, STORAGE, arrow_schema
from trackstar.spec import Spec
from trackstar.stored_forms import FORMS

ROW_GROUP_BYTES = 64 * 2**20
_PAGE_BYTES = 2**30  # above any row group: one page a row group
_ALIGNMENT = 64  # bytes of a cache line


def rows_per_group(spec: Spec) -> int:
    """Rows of one row group: as many as fit into 64 MiB of encodings, at least one."""
    return max(1, ROW_GROUP_BYTES // spec.bytes_per_encoding)


def write_parquet(
    path: str, spec: Spec, shard: str, batches: Iterable[Encodings], footer: Callable[[], dict[str, str]]
) -> None:
    """Streams `batches` into a Parquet file at the local `path`, holding one row group in memory, as it is stored.

    The bytes depend on the rows, the spec and the footer alone, not on how the rows come in batches.

    Args:
        path: Local file to write.
        spec: Gives columns, form of storage and dimension.
        shard: Value of the column `shard`.
        batches: The examples, in the order in which they are stored.
        footer: Called after the last batch; its items become the file's key-value metadata, beside `shard` and what is said of
            the encodings.

    Raises:
        TrackStarError: encodings of another dimension or without text, or one that has no direction (int8 and sign).
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
        norms = [0.0]
        tables = (_table(batch, spec, schema, shard, norms) for batch in batches if len(batch))
        for table in _regrouped(tables, rows_per_group(spec)):
            sink.write(b"\0" * (-(sink.tell() + _page_header_bytes(len(table), spec)) % _ALIGNMENT))
            writer.write_table(table, row_group_size=len(table))
        stated = {"shard": shard, STORAGE: spec.storage, DIMENSION: str(spec.dimension)}
        if FORMS[spec.storage].fixed_norm is None:
            # Rounded up to two decimals: how the norm was summed does not show.
            stated[MAX_NORM] = f"{math.ceil(max(norms) * 100.1) / 100:.2f}"
        writer.add_key_value_metadata({**footer(), **stated})


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


def _regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `size`, the last one smaller, each in one piece of memory."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        start = 0
        while start < len(table):
            part = table.slice(start, size - count)
            waiting.append(part)
            count += len(part)
            start += len(part)
            if count == size:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, count = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _table(batch: Encodings, spec: Spec, schema: pa.Schema, shard: str, norms: list[float]) -> pa.Table:
    """The rows as they are stored; the largest of their norms is added to `norms`, where norms differ."""
    if batch.vectors.shape[1] != spec.dimension:
        raise TrackStarError(
            f"encodings of dimension {batch.vectors.shape[1]} for an index of dimension {spec.dimension}"
        )
    stored = FORMS[spec.storage].pack(batch.vectors)
    if stored.form.fixed_norm is None:
        norms.append(stored.norms().max().item())
    columns: dict[str, Any] = {
        "example_id": batch.example_ids,
        "shard": [shard] * len(batch),
        "position": np.asarray(batch.positions, np.int64),
        "num_tokens": np.asarray(batch.num_tokens, np.int32),
        "loss": np.asarray(batch.loss, np.float32),
        "grad_norm": np.asarray(batch.grad_norm, np.float32),
        ENCODING: pa.Array.from_buffers(
            pa.binary(spec.bytes_per_encoding),
            len(batch),
            [None, pa.py_buffer(stored.matrix.view(torch.uint8).numpy())],
        ),
    }
    if stored.scales is not None:
        columns[SCALE] = stored.scales.numpy()
    if spec.stores_text:
        if batch.texts is None:
            raise TrackStarError("the index stores texts (spec.stores_text), but the encodings came without them")
        columns["text"] = batch.texts
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
