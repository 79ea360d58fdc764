"""One writer an index at a time: a small file that says who writes, and that it still lives.

    with WriteLock(index.uri, "reindex") as lock:
        …
        lock.check()  # right before what must not happen twice
        index.commit(files)

Whoever finds the file there stops, with the name of the one who writes. A file whose writer is gone is taken over: at once
where this machine can see that the process has ended, else when the file has said nothing for ten minutes. Readers need no lock.
"""

import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from trackstar import storage
from trackstar.errors import BusyError, TrackStarError

FILE = "write.lock"
BEAT_SECONDS = 30.0
"""How often the writer says that it lives."""
STALE_SECONDS = 600.0
"""After so long a silence a writer on another machine counts as gone: far above the difference of two machines' clocks."""
_ATTEMPTS = 3
_REUSED_SECONDS = 10.0

_LOGGER = logging.getLogger(__name__)


class IndexBusyError(BusyError):
    """Another process writes to the index."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who writes."""

    token: str
    """Another in every run."""
    command: str
    """What it does, for people."""
    host: str
    machine: str
    """Tells machines and containers of one host name apart: boot and process-id space; empty where that is not known."""
    pid: int
    started: float
    """When the process began, in seconds since 1970: a process id may be used again."""
    since: float
    """When it took the lock, in seconds since 1970."""
    beat: float
    """When it last said that it lives, by its own clock."""

    @classmethod
    def this_process(cls, command: str) -> "Holder":
        """This process, now."""
        now = time.time()
        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        return cls(uuid.uuid4().hex, command, socket.gethostname(), _machine(), pid, started, now, now)

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Holder | None":
        """From the file's content; None where that is no holder."""
        try:
            fields = json.loads(data)
            return cls(**{field.name: field.type(fields[field.name]) for field in dataclasses.fields(cls)})  # type: ignore[operator]
        except (ValueError, KeyError, TypeError):
            return None

    def describe(self) -> str:
        """ "trackstar reindex (host a, process 12, since 2026-01-02 03:04:05 UTC)"."""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"trackstar {self.command} (host {self.host}, process {self.pid}, since {since})"

    def why_gone(self, now: float) -> str | None:
        """What shows that this process writes no more; None where it may be alive."""
        silent = now - self.beat
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return f"no sign of life for {silent / 60:.0f} minutes" if silent > STALE_SECONDS else None
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return "its process has ended"
            # Both times are read off the system's clock, which may be set: a process that beats is believed.
            reused = abs(process.create_time() - self.started) > _REUSED_SECONDS and silent > 4 * BEAT_SECONDS
            return "its process has ended, and another has its number" if reused else None
        except psutil.NoSuchProcess:
            return "its process has ended"
        except psutil.AccessDenied:
            return None


class WriteLock:
    """The right to write to an index, while the block lasts.

    Args:
        index_uri: The index.
        command: What is being done, for who comes second: "reindex".

    Raises:
        IndexBusyError: on entering, where another process holds it.
        TrackStarError: the index cannot be written to.
    """

    def __init__(self, index_uri: str, command: str):
        self.index_uri = storage.normalise(index_uri)
        self.uri = storage.join(self.index_uri, FILE)
        self._holder = Holder.this_process(command)
        self._file: storage.FileInfo | None = None
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._file = self._acquire()
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat_regularly, daemon=True, name="write-lock")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._mutex:
            file, self._file = self._file, None
        if file is None:
            return
        try:
            storage.delete_version(file)
        except TrackStarError as failure:
            _LOGGER.warning("%s stays behind (%s); delete it if the next run does not go on", self.uri, failure)

    def check(self) -> None:
        """Raises TrackStarError where the lock was lost: this process said nothing for so long that another took over."""
        self._beat()
        if self._file is None:
            raise TrackStarError(
                f"{self.index_uri}: another run took over the right to write while this one said nothing for over "
                f"{STALE_SECONDS / 60:.0f} minutes; nothing was committed: run this again"
            )

    def _acquire(self) -> storage.FileInfo:
        for _ in range(_ATTEMPTS):
            self._holder = dataclasses.replace(self._holder, since=time.time(), beat=time.time())
            if storage.create_exclusive(self.uri, self._holder.to_bytes()):
                return storage.info(self.uri)
            taken = self._take_over()
            if taken is not None:
                return taken
        raise IndexBusyError(f"{self.index_uri}: other runs take the right to write in turns; run this again")

    def _take_over(self) -> storage.FileInfo | None:
        """Takes a lock whose holder is gone; None where it was released or taken by another just now."""
        try:
            found = storage.info(self.uri)
            holder = Holder.from_bytes(storage.read_bytes(self.uri))
        except TrackStarError:
            if storage.exists(self.uri):
                raise
            return None
        now = time.time()
        if holder is None:
            who, gone = "a run that left no name", "it is damaged" if now - found.modified > STALE_SECONDS else None
        else:
            who, gone = holder.describe(), holder.why_gone(now)
        if gone is None:
            silent = now - (holder.beat if holder else found.modified)
            raise IndexBusyError(
                f"{self.index_uri}: {who} is writing to it, last sign of life {max(0.0, silent):.0f} s ago. Wait for its "
                f"end and run this again. Should it be gone, its lock is taken over {STALE_SECONDS / 60:.0f} minutes after "
                f"its last sign of life; to go on at once, delete {self.uri}"
            )
        taken = storage.replace_version(found, self._holder.to_bytes())
        if taken is not None:
            _LOGGER.warning("%s: taking over from %s: %s", self.index_uri, who, gone)
        return taken

    def _beat_regularly(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._beat()
            except TrackStarError as error:  # A store that does not answer for a while: the next beat tries again.
                _LOGGER.debug("no sign of life could be given: %s", error)
            if self._file is None:
                _LOGGER.warning("%s: another run took over the right to write", self.index_uri)
                return

    def _beat(self) -> None:
        """Writes the time; notes where the lock is another's."""
        with self._mutex:
            if self._file is not None:
                self._holder = dataclasses.replace(self._holder, beat=time.time())
                self._file = storage.replace_version(self._file, self._holder.to_bytes())


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
