"""Temporary folders that do not outlive their process, however it ends.

A folder is locked while it is in use, and the kernel drops the lock with the process. So what a killed process left is known by
having no lock, and the next process that needs scratch space removes it.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "trackstar-scratch-"
_SETTLED = 60.0  # seconds; a younger folder may not have its lock yet


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """An empty folder below the temporary folder (TMPDIR), removed with all that is in it when the block ends.

    Raises:
        OSError: none can be made.
    """
    _sweep(tempfile.gettempdir())
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then nobody can take one away either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


@functools.cache  # once a process and place
def _sweep(base: str) -> None:
    """Removes what processes that are gone left behind."""
    for path in Path(base).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone since it was listed
            if time.time() - path.stat().st_mtime < _SETTLED:
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
