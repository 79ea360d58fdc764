"""A scorer that never rests: it opens an index again and again and scores all that it finds there.

It is a process of its own. `Reader` is its other end: `watch` an index, do something to that index, and `stop` tells what
was seen meanwhile.
"""

import dataclasses
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
_PAUSE = 0.2
_SHORT_PAUSE = 0.005
_BUSY_SECONDS = 1.0
"""So long after files came or the log changed, the pauses are short."""
_PATIENCE = 300.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a reader saw.

    Args:
        reads: How often it scored a whole snapshot.
        empty: How often there was no snapshot yet.
        digests: Digests of what it scored, by version.
        errors: Whatever went wrong.
    """

    reads: int
    empty: int
    digests: dict[int, list[str]]
    errors: list[str]


class Reader:
    """The process that reads; use it as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._is_watching = False
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def watch(self, index: Path) -> None:
        """Begins to read the index, and leaves one that a failed test was reading; returns when it has been read once."""
        if self._is_watching:
            self.stop()
        self._say(str(index))
        self._answer()
        self._is_watching = True

    def stop(self) -> Seen:
        """Ends the reading, after one more time: what was seen since `watch`."""
        self._say("")
        self._is_watching = False
        fields = json.loads(self._answer())
        return Seen(**{**fields, "digests": {int(version): seen for version, seen in fields["digests"].items()}})

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        try:
            return self._answers.get(timeout=_PATIENCE)
        except queue.Empty:
            raise TimeoutError(f"the reader says nothing (exit code {self._process.poll()})") from None


class _Watcher:
    """The reading itself."""

    def __init__(self, index: str, seed: int):
        self._uri = index
        self._generator = random.Random(seed)
        self._reads = 0
        self._empty = 0
        self._digests: dict[int, set[str]] = {}
        self._errors: list[str] = []
        self._oldest: object = None

    def look(self) -> None:
        """Opens the index and scores its last snapshot, an earlier one, and the one that was there at the beginning."""
        from tests.faults.scene import digest
        from trackstar.errors import TrackStarError
        from trackstar.index import Index

        try:
            index = Index.open(self._uri)
            versions = index.versions()
            if not versions:
                try:
                    snapshots = [index.snapshot()]  # committed since, or nothing yet
                except TrackStarError as error:
                    if "nothing was committed yet" not in str(error):
                        raise
                    self._empty += 1
                    return
            else:
                snapshots = [index.snapshot(), index.snapshot(self._generator.choice(versions))]
            self._oldest = self._oldest or snapshots[0]
            for snapshot in [*snapshots, self._oldest]:
                self._digests.setdefault(snapshot.version, set()).add(digest(index, snapshot))
                self._reads += 1
        except Exception as error:
            self._errors.append(f"{type(error).__name__}: {error}")

    def is_busy(self) -> bool:
        """Whether the index has just changed."""
        folders = [Path(self._uri) / "encodings", Path(self._uri) / "encodings" / "_delta_log"]
        return any(time.time() - folder.stat().st_mtime < _BUSY_SECONDS for folder in folders if folder.exists())

    def report(self) -> str:
        """As `Seen` takes it."""
        digests = {version: sorted(seen) for version, seen in self._digests.items()}
        return json.dumps({"reads": self._reads, "empty": self._empty, "digests": digests, "errors": self._errors[:10]})


def main() -> None:
    """Reads the index that a line names until an empty line comes; then the next."""
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        os._exit(0)  # whoever asked is gone, however it ended

    threading.Thread(target=listen, daemon=True).start()
    for seed in range(10**6):
        watcher = _Watcher(lines.get(), seed)
        watcher.look()
        print("reading", flush=True)
        while lines.empty():
            time.sleep(_SHORT_PAUSE if watcher.is_busy() else _PAUSE)
            watcher.look()
        lines.get()
        watcher.look()
        print(watcher.report(), flush=True)


if __name__ == "__main__":
    main()
