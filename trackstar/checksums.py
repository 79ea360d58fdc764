"""What every file of an index was when it was written: its SHA-256 and size, in a small file of its own.

The checksum of INDEX/<path> lies at INDEX/checksums/<path>.json. Of an item's file it is written before the file becomes
visible, so a file without one was not made by this program, or not to its end. It is not kept in the file itself, because no
place in a Parquet file covers its own footer, nor in the Delta log, which has no room for it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from trackstar import storage
from trackstar.errors import TrackStarError

FOLDER = "checksums"
_SUFFIX = ".json"
_PIECE = 4 << 20


@dataclasses.dataclass(frozen=True)
class Checksum:
    """Of one file: SHA-256 in hexadecimal, and bytes."""

    sha256: str
    num_bytes: int

    @classmethod
    def of_bytes(cls, data: bytes) -> "Checksum":
        """Of a file with this content."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))

    @classmethod
    def of_local(cls, path: Path) -> "Checksum":
        """Of a file on this machine."""
        with path.open("rb") as source:
            return cls(hashlib.file_digest(source, "sha256").hexdigest(), path.stat().st_size)

    @classmethod
    def of(cls, uri: str, tell: Callable[[int], None] = lambda num_bytes: None) -> "Checksum":
        """Of the file at `uri`, read through once, 4 MiB at a time.

        Args:
            uri: The file.
            tell: Told, after each piece, how many bytes have been read.

        Raises:
            TrackStarError: the file is not there or cannot be read.
        """
        digest, num_bytes = hashlib.sha256(), 0
        with storage.open_stream(uri) as source:
            while True:
                try:
                    piece = source.read(_PIECE)
                except OSError as error:
                    raise TrackStarError(f"{uri}: cannot be read at byte {num_bytes:,} ({error})") from error
                if not piece:
                    return cls(digest.hexdigest(), num_bytes)
                digest.update(piece)
                num_bytes += len(piece)
                tell(num_bytes)


def uri_of(index_uri: str, path: str) -> str:
    """Where the checksum of the index's file `path` lies."""
    return storage.join(index_uri, FOLDER, path + _SUFFIX)


def record(index_uri: str, path: str, checksum: Checksum) -> None:
    """Keeps the checksum of the index's file `path`, which is relative to the index."""
    storage.write_bytes(uri_of(index_uri, path), (json.dumps(dataclasses.asdict(checksum)) + "\n").encode())


def recorded(index_uri: str, path: str) -> Checksum | None:
    """The checksum that was kept of the index's file `path`; None where there is none.

    Raises:
        TrackStarError: the checksum's own file is damaged.
    """
    uri = uri_of(index_uri, path)
    if not storage.exists(uri):
        return None
    try:
        fields = json.loads(storage.read_bytes(uri))
        checksum = Checksum(str(fields["sha256"]), int(fields["num_bytes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise TrackStarError(f"{uri}: not a checksum ({error})") from error
    if len(checksum.sha256) != 64:
        raise TrackStarError(f"{uri}: not a checksum")
    return checksum


def recorded_paths(index_uri: str, folder: str) -> set[str]:
    """Files below the index's `folder` of which a checksum was kept, as paths relative to the index."""
    start = len(storage.join(index_uri, FOLDER)) + 1
    below = storage.list(storage.join(index_uri, FOLDER, folder))
    return {info.uri[start:].removesuffix(_SUFFIX) for info in below if info.uri.endswith(_SUFFIX)}


def record_files(index_uri: str, paths: Iterable[str]) -> None:
    """Keeps the checksums of those of the index's files that are there, as they are now."""
    for path in paths:
        uri = storage.join(index_uri, path)
        if storage.exists(uri):
            record(index_uri, path, Checksum.of(uri))
