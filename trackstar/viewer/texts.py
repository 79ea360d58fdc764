"""The passages of a results file, in lower case, end to end in one unnamed file: searched as a whole, and not held in memory."""

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trackstar.errors import TrackStarError

_PARTS_A_CORE = 4
_BETWEEN = "\n"
"""Stands between two passages: no word or phrase that a person types reaches over it."""


class Texts:
    """In which records a word stands. `add` the passages of each record in turn, `finish`, then ask.

    Upper and lower case are one, as JavaScript's `toLowerCase` has them; a word may be a part of another, or hold blanks.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="trackstar-view-")  # noqa: SIM115  It lives as long as the run.
        self._offsets = [0]
        self._parts: list[pa.Array] = []

    def add(self, passages: Iterable[str]) -> None:
        """The passages of the next record.

        Raises:
            TrackStarError: no room for them.
        """
        text = _encoded(_BETWEEN.join(passages))
        with _room():
            self._file.write(text)
        self._offsets.append(self._offsets[-1] + len(text))

    def finish(self) -> None:
        """All records are there.

        Raises:
            TrackStarError: no room for them.
        """
        with _room():
            self._file.flush()
        size, count = self._offsets[-1], len(self._offsets) - 1
        data = np.memmap(self._file, np.uint8, mode="r", shape=(size,)) if size else np.empty(0, np.uint8)
        offsets = np.array(self._offsets, np.int64)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        whole = pa.Array.from_buffers(pa.large_binary(), count, buffers)
        num_parts = _PARTS_A_CORE * pa.cpu_count()
        borders = np.searchsorted(offsets[1:], [size * part // num_parts for part in range(1, num_parts)])
        edges = sorted({0, *borders.tolist(), count})
        self._parts = [whole.slice(first, end - first) for first, end in pairwise(edges)]

    def records_with(self, word: str) -> list[int]:
        """Numbers of the records in whose passages a word stands, ascending.

        Args:
            word: Not empty.
        """
        # The expression is one literal, which RE2 looks for faster than Arrow's own search does; without the interpreter's lock.
        matches = partial(pc.match_substring_regex, pattern=_literal(word))
        with ThreadPoolExecutor(pa.cpu_count()) as pool:
            found = [part.to_numpy(zero_copy_only=False) for part in pool.map(matches, self._parts)]
        return np.flatnonzero(np.concatenate([np.empty(0, bool), *found])).tolist()

    def close(self) -> None:
        """Gives the room on disk back, once nobody searches."""
        self._parts = []
        self._file.close()


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise TrackStarError(
            f"no room in {folder} for the passages that are to be searched ({error.strerror}): set TMPDIR to a folder with room"
        ) from error


def _encoded(text: str) -> bytes:
    return text.lower().encode("utf-8", "surrogatepass")


def _literal(word: str) -> bytes:
    """An expression that matches a word's bytes and nothing else."""
    return re.escape(_encoded(word))
