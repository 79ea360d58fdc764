"""One version of an object as a file that is open for reading: every read is one request, or comes from what was read ahead."""

import io
import os

from trackstar import object_store
from trackstar.errors import TrackStarError


class ObjectReader(io.RawIOBase):
    """The object at `uri` in the version that it has now.

    Whatever becomes of the connection, a read gives the bytes asked for (fewer only at the end) or raises. It never mixes two
    versions: once this one is gone from the store, it raises.

    Args:
        uri: "gs://bucket/name".
        read_ahead: Fewest bytes of a request; what was not asked for is kept for the next reads. For reading in order.
        version: The version, where the caller has found it already.

    Raises:
        TrackStarError: no such object, or the store cannot be reached.
    """

    def __init__(self, uri: str, read_ahead: int = 0, version: object_store.StoredObject | None = None):
        super().__init__()
        found = version or object_store.find(uri)
        if found is None:
            raise TrackStarError(f"{uri}: cannot be read (no such object); check the path")
        self._uri = uri
        self._version = found
        self._read_ahead = read_ahead
        self._at = 0
        self._kept, self._kept_from = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._version.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Exactly `size` bytes, or all to the end if that is nearer or `size` is negative."""
        left = max(0, self._version.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        first = self._at - self._kept_from
        if first >= 0 and first + wanted <= len(self._kept):
            data = self._kept[first : first + wanted]
        elif wanted < self._read_ahead:
            self._kept = object_store.read_range(self._uri, self._version, self._at, self._read_ahead)
            self._kept_from = self._at
            data = self._kept[:wanted]
        else:
            data = object_store.read_range(self._uri, self._version, self._at, wanted)
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()
