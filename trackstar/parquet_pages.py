"""The encoding column of a Parquet file as matrices, without decoding.

An uncompressed, PLAIN, required column of fixed width is, between its page headers, nothing but its values in order. So a
page of encodings can be used where it lies in memory: locally the file is mapped and no byte is copied. Files that were
rewritten by another program (compressed, dictionary-encoded, nullable) are read through pyarrow instead.

Page headers are Thrift structs in the compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

_DATA_PAGE = 0
_DATA_PAGE_V2 = 3
_PLAIN = 0
_HEADER_BYTES = 512  # a page header without statistics takes about 25


@dataclasses.dataclass(frozen=True)
class Page:
    """Rows that lie side by side in the file.

    Args:
        row: Number of the first row, counted from the file's start.
        num_rows: Rows in the page.
        offset: Byte at which the first row begins.
    """

    row: int
    num_rows: int
    offset: int


def plain_pages(
    footer: pq.FileMetaData, column: str, width: int, read: Callable[[int, int], bytes]
) -> list[Page] | None:
    """Where the raw rows of `column` lie, or None if they have to be decoded.

    Args:
        footer: The file's footer.
        column: Name of the column.
        width: Bytes of one value.
        read: Gives up to `length` bytes from `offset`.
    """
    names = [footer.schema.column(i).name for i in range(footer.num_columns)]
    index = names.index(column)
    described = footer.schema.column(index)
    if described.physical_type != "FIXED_LEN_BYTE_ARRAY" or described.length != width:
        return None
    if described.max_definition_level or described.max_repetition_level:
        return None
    pages: list[Page] = []
    row = 0
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group).column(index)
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            return None
        offset, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        while offset < end:
            header = _page_header(read(offset, min(_HEADER_BYTES, end - offset)))
            if header is None or header.num_values * width != header.size:
                return None
            pages.append(Page(row, header.num_values, offset + header.header_bytes))
            row += header.num_values
            offset += header.header_bytes + header.size
    return pages if row == footer.num_rows else None


@dataclasses.dataclass(frozen=True)
class _PageHeader:
    header_bytes: int
    size: int
    num_values: int


def _page_header(data: bytes) -> _PageHeader | None:
    """The header at the start of `data`; None if it is none of a PLAIN data page."""
    try:
        fields, length = _struct(data, 0)
    except (IndexError, ValueError):
        return None
    version = fields.get(1)
    page = fields.get(5 if version == _DATA_PAGE else 8)
    if version not in (_DATA_PAGE, _DATA_PAGE_V2) or not isinstance(page, dict):
        return None
    encoding = page.get(2 if version == _DATA_PAGE else 4)
    num_values, size = page.get(1), fields.get(2)
    if encoding != _PLAIN or size != fields.get(3) or not isinstance(num_values, int) or not isinstance(size, int):
        return None
    return _PageHeader(length, size, num_values)


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct as field number → value, and where it ends. Integers, booleans, binaries and structs; no more is needed."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 0x0F
        at += 1
        if step:
            number += step
        else:
            step, at = _varint(data, at)
            number = (step >> 1) ^ -(step & 1)
        if kind in (1, 2):  # a boolean; its value is its type
            fields[number] = kind == 1
        elif kind in (4, 5, 6):  # integers, zigzag
            value, at = _varint(data, at)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:  # binary
            length, at = _varint(data, at)
            at += length
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"Thrift type {kind}")
    return fields, at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
