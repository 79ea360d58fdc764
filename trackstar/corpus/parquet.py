"""Parquet shards: row groups, and rows as raw values."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trackstar import storage
from trackstar.errors import ShardError

_ROWS = 256
_LOCAL_BUFFER = 1 << 20
_STORE_BUFFER = 8 << 20


def row_group_bytes(uri: str) -> list[int]:
    """Uncompressed bytes of text (or token ids) in each row group of the shard.

    Raises:
        ShardError: not a Parquet file, or without the columns.
    """
    with _opened(uri) as file:
        needed = "text" if "text" in _columns(uri, file.schema_arrow) else "input_ids"
        schema = file.schema
        leaves = [at for at in range(len(schema.names)) if schema.column(at).path.split(".")[0] == needed]
        groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
        return [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]


def rows(uri: str, start: int, end: int) -> Iterator[tuple[int, bytes | None, list[Any] | None, Any]]:
    """Position, text (UTF-8, unchecked), token ids and id of every row in row groups [start, end).

    Memory: a buffer a column and 256 rows, not the row group.

    Raises:
        ShardError: as `row_group_bytes`; or a page that cannot be read.
    """
    with _opened(uri) as file:
        columns = _columns(uri, file.schema_arrow)
        if not 0 <= start <= end <= file.metadata.num_row_groups:
            raise ShardError(uri, f"has {file.metadata.num_row_groups} row groups, not {end}")
        position = sum(file.metadata.row_group(index).num_rows for index in range(start))
        batches = file.iter_batches(_ROWS, row_groups=list(range(start, end)), columns=columns, use_threads=False)
        for batch in batches:
            texts = _bytes(batch, "text", columns)
            token_lists = _values(batch, "input_ids", columns)
            ids = _bytes(batch, "id", columns) if _is_text(batch.schema, "id") else _values(batch, "id", columns)
            for text, tokens, id in zip(texts, token_lists, ids, strict=True):
                yield position, text, tokens, id
                position += 1


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    buffer = _STORE_BUFFER if storage.is_object(uri) else _LOCAL_BUFFER
    with storage.open_input(uri) as source:
        try:
            with pq.ParquetFile(source, buffer_size=buffer, pre_buffer=False, page_checksum_verification=True) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ShardError(uri, f"cannot be read as Parquet: {reason}") from error


def _columns(uri: str, schema: pa.Schema) -> list[str]:
    """Those of the columns that are used which the file has, their types checked."""
    present = [name for name in ("text", "input_ids", "id") if name in schema.names]
    if "text" not in present and "input_ids" not in present:
        raise ShardError(uri, f"no column text or input_ids; its columns are: {', '.join(schema.names)[:300]}")
    wanted = {
        "text": (_is_text, "strings"),
        "input_ids": (_is_integer_list, "lists of integers"),
        "id": (lambda schema, name: _is_text(schema, name) or _is_number(schema, name), "strings or numbers"),
    }
    for name in present:
        if schema.names.count(name) > 1:
            raise ShardError(uri, f"{schema.names.count(name)} columns are named {name}")
        check, what = wanted[name]
        if not check(schema, name):
            raise ShardError(uri, f"column {name} holds {schema.field(name).type}; it must hold {what}")
    return present


def _type(schema: pa.Schema, name: str) -> pa.DataType:
    type = schema.field(name).type
    return type.value_type if pa.types.is_dictionary(type) else type


def _is_text(schema: pa.Schema, name: str) -> bool:
    if name not in schema.names:
        return False
    type, types = _type(schema, name), pa.types
    return any(
        check(type)
        for check in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
        )
    )


def _is_number(schema: pa.Schema, name: str) -> bool:
    type = _type(schema, name)
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type))


def _is_integer_list(schema: pa.Schema, name: str) -> bool:
    type, types = _type(schema, name), pa.types
    is_list = types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)
    return bool(is_list and types.is_integer(type.value_type))


def _bytes(batch: pa.RecordBatch, name: str, columns: Sequence[str]) -> list[bytes | None]:
    """A text column without decoding it, so that one bad string is one reject and not the end of the batch."""
    if name not in columns:
        return [None] * batch.num_rows
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary()).to_pylist()


def _values(batch: pa.RecordBatch, name: str, columns: Sequence[str]) -> list[Any]:
    return batch.column(name).to_pylist() if name in columns else [None] * batch.num_rows
