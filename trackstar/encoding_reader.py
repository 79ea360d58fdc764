"""Reads the encodings of one file of the index, in order, as matrices.

A local file is mapped into memory and its pages are used in place; from an object store each page is one ranged read. A page
that has to be decoded (a file that another program rewrote) goes through pyarrow.
"""

import dataclasses
import mmap
import os
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.item_footer import ENCODING, MAX_NORM, read_footer
from trackstar.parquet_pages import Page, plain_pages

_TYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some rows that follow each other.

    Args:
        row: Number of the first one in its file.
        vectors: [rows, d] in the storage type; not to be written to.
        owned: Whether the rows take memory of their own; if not, they are the file's pages.
    """

    row: int
    vectors: torch.Tensor
    owned: bool


class EncodingReader:
    """The encodings of the file at `uri`.

    Args:
        uri: A Parquet file of the index.
        dimension: d, what the file's encodings must have.

    Raises:
        TrackStarError: no such file, truncated, not a file of an index, or encodings of another dimension.
    """

    def __init__(self, uri: str, dimension: int):
        self.uri = uri
        self.dimension = dimension
        source = storage.open_if_there(uri)
        if source is None:
            raise TrackStarError(
                f"{uri}: the index names this file and it is gone; run `trackstar verify --repair`, or if an older --version was "
                "asked for, take a newer one: what was taken down goes from older ones too"
            )
        self._source = source
        self._footer = read_footer(uri, self._source)
        self.num_rows = self._footer.num_rows
        self._file = pq.ParquetFile(self._source, metadata=self._footer)
        self._width = self._bytes_per_encoding()
        self.dtype = _TYPES[self._width // dimension]
        self.max_norm = self._max_norm()
        self.shard = (self._footer.metadata or {}).get(b"shard", b"").decode()
        self._pages = plain_pages(self._footer, ENCODING, self._width, self._read)

    @property
    def can_be_mapped(self) -> bool:
        """Whether the encodings are pages of a local file as they are."""
        return self._pages is not None and not storage.is_object(self.uri)

    def chunks(self) -> Iterator[Chunk]:
        """All rows, chunk after chunk."""
        if self._pages is None:
            yield from self._decoded()
        elif (path := storage.local_path(self.uri)) is not None:
            yield from self._mapped(str(path), self._pages)
        else:
            for page in self._pages:
                data = self._read(page.offset, page.num_rows * self._width)
                if len(data) != page.num_rows * self._width:
                    raise TrackStarError(
                        f"{self.uri}: ended at byte {page.offset + len(data)}; run `trackstar verify --repair`"
                    )
                yield Chunk(page.row, self._matrix(data, 0, page.num_rows), owned=True)

    def column(self, name: str) -> pa.Array:
        """All values of another column.

        Raises:
            TrackStarError: there is no such column.
        """
        if name not in self._file.schema_arrow.names:
            raise TrackStarError(f"{self.uri}: no column {name!r}")
        try:
            return self._file.read([name]).column(name).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise TrackStarError(
                f"{self.uri}: the column {name!r} cannot be read ({error}); run `trackstar verify --repair`"
            ) from error

    def close(self) -> None:
        """Closes the file. Chunks that were mapped stay valid."""
        self._source.close()

    def _bytes_per_encoding(self) -> int:
        names = self._file.schema_arrow.names
        if ENCODING not in names or "example_id" not in names:
            raise TrackStarError(f"{self.uri}: not a file of an index (no column {ENCODING!r} or 'example_id')")
        kind = self._file.schema_arrow.field(ENCODING).type
        if pa.types.is_fixed_size_binary(kind):
            width = kind.byte_width
        else:  # rewritten by a program without fixed sizes; all values have the first one's
            first = next(self._file.iter_batches(1, columns=[ENCODING]), None) if self.num_rows else None
            width = 2 * self.dimension if first is None else len(first.column(0)[0].as_py())
        if width not in (2 * self.dimension, 4 * self.dimension):
            raise TrackStarError(
                f"{self.uri}: encodings of {width} bytes, but the queries have dimension {self.dimension}; "
                "were they encoded for another index?"
            )
        return int(width)

    def _max_norm(self) -> float | None:
        stated = (self._footer.metadata or {}).get(MAX_NORM.encode())
        return None if stated is None else float(stated)

    def _mapped(self, path: str, pages: list[Page]) -> Iterator[Chunk]:
        if not pages:
            return
        with open(path, "rb") as file:
            mapped = self._map(file.fileno(), pages)
            for number, page in enumerate(pages):
                for ahead in pages[number : number + 2] if number == 0 else pages[number + 1 : number + 2]:
                    _read_ahead(file.fileno(), ahead.offset, ahead.num_rows * self._width)
                yield Chunk(page.row, self._matrix(mapped, page.offset, page.num_rows), owned=False)

    def _map(self, descriptor: int, pages: list[Page]) -> mmap.mmap:
        if pages[-1].offset + pages[-1].num_rows * self._width > os.fstat(descriptor).st_size:
            raise TrackStarError(f"{self.uri}: is shorter than its footer says; run `trackstar verify --repair`")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    def _decoded(self) -> Iterator[Chunk]:
        row = 0
        for group in range(self._footer.num_row_groups):
            try:
                column = self._file.read_row_group(group, columns=[ENCODING]).column(0)
            except (pa.ArrowException, OSError) as error:
                raise TrackStarError(
                    f"{self.uri}: row group {group} cannot be read ({error}); run `trackstar verify --repair`"
                ) from error
            values = column.cast(pa.large_binary()).combine_chunks()
            for array in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
                offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
                if array.null_count or (np.diff(offsets) != self._width).any():
                    raise TrackStarError(f"{self.uri}: encodings of unequal length in row group {group}")
                if len(array):
                    data = array.buffers()[2].slice(int(offsets[0]), len(array) * self._width)
                    yield Chunk(row, self._matrix(bytearray(data), 0, len(array)), owned=True)
                row += len(array)

    def _matrix(self, data: "bytes | bytearray | mmap.mmap", offset: int, rows: int) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*buffer is not writable.*")  # and nobody writes to it
            flat = torch.frombuffer(data, dtype=self.dtype, count=rows * self.dimension, offset=offset)
        return flat.view(rows, self.dimension)

    def _read(self, offset: int, length: int) -> bytes:
        self._source.seek(offset)
        return self._source.read(length)


def _read_ahead(descriptor: int, offset: int, length: int) -> None:
    """Asks the system to read from disk what comes next, while this chunk is multiplied."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
