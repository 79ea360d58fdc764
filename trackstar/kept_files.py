"""Files of an index that stay mapped from scan to scan, for a process that asks many times."""

import mmap
import resource
import threading
from collections.abc import Iterable, Iterator

import pyarrow as pa

from trackstar import storage
from trackstar.encoding_reader import Chunk, EncodingReader
from trackstar.errors import TrackStarError
from trackstar.parquet_pages import Page

_ID_BYTES = 512 << 20
"""Ids that are kept, of all files together."""
_SHARE_OF_DESCRIPTORS = 4
"""A mapped file takes a descriptor; of those that the process may have, one in so many."""


class KeptFiles:
    """Opens files of one index, and keeps the local ones mapped with their ids in memory, as far as there is room.

    Once there is none, further files are opened anew in each scan: a scan goes through all files in turn, so whichever was let
    go for another would be asked for again before that one is. Calls from several threads are safe.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _KeptReader] = {}
        self._id_bytes = 0
        self._lock = threading.Lock()
        self._most = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE_OF_DESCRIPTORS)

    def __len__(self) -> int:
        return len(self._kept)

    def open(self, uri: str, dimension: int) -> EncodingReader:
        """The encodings of a file, for `scoring.scan_files`.

        Raises:
            TrackStarError: as `EncodingReader`.
        """
        kept = self._kept.get(uri)
        if kept is not None and kept.dimension == dimension:
            return kept
        if storage.is_object(uri) or len(self._kept) >= self._most or self._id_bytes >= _ID_BYTES:
            return EncodingReader(uri, dimension)
        fresh = _KeptReader(uri, dimension)
        if not fresh.can_be_mapped:
            return EncodingReader(uri, dimension)
        with self._lock:
            if uri not in self._kept:
                self._id_bytes += fresh.ids.nbytes
            self._kept[uri] = fresh
        return fresh

    def keep_only(self, uris: Iterable[str]) -> None:
        """Lets go of all other files, so that the disk gets back the room of those that are deleted."""
        wanted = set(uris)
        with self._lock:
            self._kept = {uri: reader for uri, reader in self._kept.items() if uri in wanted}
            self._id_bytes = sum(reader.ids.nbytes for reader in self._kept.values())


class _KeptReader(EncodingReader):
    """A local file whose pages stay mapped. Any number of scans may read it at the same time."""

    def __init__(self, uri: str, dimension: int):
        super().__init__(uri, dimension)
        try:
            self.ids: pa.Array = super().column("example_id")
            path = storage.local_path(uri)
            assert path is not None
            if self._pages:
                with path.open("rb") as file:
                    self._mapping = self._map(file.fileno(), self._pages)
            if self.form.is_scaled:
                self._scales = self._read_scales()
            self._chunks = [
                self._chunk(page.row, self._mapping, page.offset, page.num_rows, owned=False)
                for page in self._pages or []
            ]
        except OSError as error:
            raise TrackStarError(f"{uri}: cannot be read ({error})") from error
        finally:
            super().close()

    def chunks(self) -> Iterator[Chunk]:
        """All rows, chunk after chunk."""
        pages = self._pages or []
        for number, chunk in enumerate(self._chunks):
            for ahead in pages[number : number + 2] if number == 0 else pages[number + 1 : number + 2]:
                self._read_ahead(ahead)
            yield chunk

    def column(self, name: str) -> pa.Array:
        """All values of another column."""
        if name == "example_id":
            return self.ids
        reader = EncodingReader(self.uri, self.dimension)
        try:
            return reader.column(name)
        finally:
            reader.close()

    def close(self) -> None:
        """Does nothing: `KeptFiles` lets go of it."""

    def _read_ahead(self, page: Page) -> None:
        """Asks the system to read from disk what comes next."""
        start = page.offset // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_WILLNEED"):
            self._mapping.madvise(mmap.MADV_WILLNEED, start, page.offset + page.num_rows * self._width - start)
