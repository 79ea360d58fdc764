"""Reads the encodings of one file of the index, in order, as they are stored.

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
from trackstar.item_footer import DIMENSION, ENCODING, MAX_NORM, SCALE, STORAGE, read_footer
from trackstar.parquet_pages import Page, plain_pages
from trackstar.stored_forms import FORMS, StoredForm, StoredRows

_PLAIN = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some rows that follow each other.

    Args:
        row: Number of the first one in its file.
        stored: The rows.
        owned: Whether they take memory of their own; if not, they are the file's pages.
    """

    row: int
    stored: StoredRows
    owned: bool

    def __len__(self) -> int:
        return len(self.stored)


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
        self.form = self._stored_form()
        self._width = self.form.width(dimension)
        self.max_norm = self._max_norm()
        self.shard = self._stated("shard") or ""
        self._scales: torch.Tensor | None = None
        self._pages = plain_pages(self._footer, ENCODING, self._width, self._read)

    @property
    def can_be_mapped(self) -> bool:
        """Whether the encodings are pages of a local file as they are."""
        return self._pages is not None and not storage.is_object(self.uri)

    def chunks(self) -> Iterator[Chunk]:
        """All rows, chunk after chunk."""
        if self.form.is_scaled and self._scales is None:
            self._scales = self._read_scales()
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
                yield self._chunk(page.row, data, 0, page.num_rows, owned=True)

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

    def _stated(self, name: str) -> str | None:
        """What the file's metadata says of `name`."""
        found = (self._footer.metadata or {}).get(name.encode())
        return None if found is None else found.decode()

    def _stored_form(self) -> StoredForm:
        names = self._file.schema_arrow.names
        if ENCODING not in names or "example_id" not in names:
            raise TrackStarError(f"{self.uri}: not a file of an index (no column {ENCODING!r} or 'example_id')")
        width, dimension = self._width_of_column(), self._stated(DIMENSION)
        if dimension not in (None, str(self.dimension)):
            raise TrackStarError(
                f"{self.uri}: encodings of dimension {dimension}, but the queries have dimension {self.dimension}; "
                "were they encoded for another index?"
            )
        name = self._stated(STORAGE)
        if name is None:  # rewritten by a program that drops metadata: where a number has its bytes, their count tells
            name = next((name for name in _PLAIN if width in (None, FORMS[name].width(self.dimension))), None)
        form = FORMS.get(name or "")
        if form is None or width not in (None, form.width(self.dimension)):
            raise TrackStarError(
                f"{self.uri}: encodings of {width} bytes, stored as {name or 'its metadata does not say what'}, but the "
                f"queries have dimension {self.dimension}; were they encoded for another index?"
            )
        if form.is_scaled and SCALE not in names:
            raise TrackStarError(f"{self.uri}: stored as {name}, and its column {SCALE!r} is gone")
        return form

    def _width_of_column(self) -> int | None:
        """Bytes of an encoding; None where there is none."""
        kind = self._file.schema_arrow.field(ENCODING).type
        if pa.types.is_fixed_size_binary(kind):
            return int(kind.byte_width)
        # Rewritten by a program without fixed sizes; all values have the first one's.
        first = next(self._file.iter_batches(1, columns=[ENCODING]), None) if self.num_rows else None
        return None if first is None else len(first.column(0)[0].as_py())

    def _max_norm(self) -> float | None:
        stated = self._stated(MAX_NORM)
        return self.form.fixed_norm if stated is None else float(stated)

    def _read_scales(self) -> torch.Tensor:
        scales = self.column(SCALE)
        if scales.null_count or len(scales) != self.num_rows:
            raise TrackStarError(f"{self.uri}: rows without a value in {SCALE!r}; run `trackstar verify --repair`")
        return torch.from_numpy(scales.to_numpy(zero_copy_only=False).astype(np.float32))

    def _mapped(self, path: str, pages: list[Page]) -> Iterator[Chunk]:
        if not pages:
            return
        with open(path, "rb") as file:
            mapped = self._map(file.fileno(), pages)
            for number, page in enumerate(pages):
                for ahead in pages[number : number + 2] if number == 0 else pages[number + 1 : number + 2]:
                    _read_ahead(file.fileno(), ahead.offset, ahead.num_rows * self._width)
                yield self._chunk(page.row, mapped, page.offset, page.num_rows, owned=False)

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
                    yield self._chunk(row, bytearray(data), 0, len(array), owned=True)
                row += len(array)

    def _chunk(self, row: int, data: "bytes | bytearray | mmap.mmap", offset: int, rows: int, owned: bool) -> Chunk:
        columns = self._width // self.form.matrix_type.itemsize
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*buffer is not writable.*")  # and nobody writes to it
            flat = torch.frombuffer(data, dtype=self.form.matrix_type, count=rows * columns, offset=offset)
        scales = None if self._scales is None else self._scales[row : row + rows]
        return Chunk(row, StoredRows(self.form, flat.view(rows, columns), scales, self.dimension), owned)

    def _read(self, offset: int, length: int) -> bytes:
        self._source.seek(offset)
        return self._source.read(length)


def _read_ahead(descriptor: int, offset: int, length: int) -> None:
    """Asks the system to read from disk what comes next, while this chunk is multiplied."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
