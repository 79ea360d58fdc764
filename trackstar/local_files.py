"""The local half of `storage`: whole files by renaming, one writer of several, and a disk's errors in a sentence."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from trackstar.errors import TrackStarError

_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check its permissions, or choose another path",
    errno.EPERM: "check its permissions, or choose another path",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.ENOSPC: "the disk is full: free space, or choose a path on another disk",
    errno.EDQUOT: "the quota is used up: free space, or choose a path on another disk",
    errno.EFBIG: "the file exceeds what is allowed here (ulimit -f, or the file system): choose another path",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.EEXIST: "a part of the path is a file: check the path",
    errno.EISDIR: "it is a folder: give the path of a file",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


@contextlib.contextmanager
def explained(where: str, what: str) -> Iterator[None]:
    """Turns an `OSError` into one sentence: "PATH: cannot be WHAT (reason); remedy"."""
    try:
        yield
    except OSError as error:
        code = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else None)
        reason = os.strerror(code) if code else " ".join(str(error).split())[:300]
        remedy = _REMEDIES.get(code or 0, "check the path and its disk")
        raise TrackStarError(f"{where}: cannot be {what} ({reason}); {remedy}") from error


@contextlib.contextmanager
def staged(uri: str, target: Path) -> Iterator[Path]:
    """A temporary name in the target's folder; what lies there when the block ends is removed."""
    path = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:12]}.tmp")
    with explained(uri, "written"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def linked(path: Path, target: Path) -> bool:
    """Gives the file a second name unless that is taken; returns whether it could."""
    try:
        os.link(path, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        try:  # A file system without links: the name is still taken by one alone, though not yet with its content.
            with open(target, "xb") as sink:
                sink.write(path.read_bytes())
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def alone_in_folder(path: Path) -> Iterator[bool]:
    """Holds off every other process that is in such a block for a file of the same local folder.

    Yields:
        Whether the file is there.
    """
    if not path.exists():
        yield False
        return
    with explained(str(path), "replaced"):
        folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # A network file system without locks: then what is read decides.
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield path.exists()
    finally:
        os.close(folder)


@functools.lru_cache(maxsize=1 << 16)
def content_hash(path: str, size: int, mtime_ns: int) -> str:
    """SHA-256 of the content; `size` and `mtime_ns` are there for the cache to notice a change."""
    with open(path, "rb") as source:
        return "sha256:" + hashlib.file_digest(source, "sha256").hexdigest()[:40]
