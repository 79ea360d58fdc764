"""How far a local run is: workers write down what they have done, the launcher adds it up and shows it.

Beam's local runner tells nothing about a bundle before its end, and one stage is one bundle a worker. So every worker
process appends lines to a file of its own in a folder that lives as long as the run, and the launcher reads what is
new in them. Each line holds totals of one work item, so that a replayed bundle or a repeated item counts once.

On Dataflow nothing is written: there, Beam's metrics show the progress.
"""

import dataclasses
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

_LOGGER = logging.getLogger(__name__)

_WRITE_SECONDS = 0.5
_SHOW_SECONDS = 0.5
_LOG_SECONDS = 15.0


def say(text: str) -> None:
    """One line for the person at the terminal, on standard error with the other log lines."""
    _LOGGER.info("%s", text)


class Reporter:
    """Hands a worker's progress to the launcher; picklable, for DoFns.

    Args:
        folder: Where to write; None reports nothing.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._last_write = 0.0
        self._writer = ""

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def report(self, item: str, work: float, count: int, finished: bool = False) -> None:
        """Says how far one work item is; cheap enough to call for every batch.

        Args:
            item: Key of the work item, one line.
            work: What is done of it so far, in the unit of `Progress.total`.
            count: What came out of it so far, in `Progress.unit`.
            finished: Whether the item is done.
        """
        now = time.monotonic()
        if self.folder is None or (not finished and now - self._last_write < _WRITE_SECONDS):
            return
        if not self._writer:
            self._writer = os.path.join(self.folder, f"{os.getpid()}-{threading.get_ident()}-{id(self)}")
        try:
            with open(self._writer, "a", encoding="utf-8") as file:
                file.write(f"{item} {work:.17g} {count} {int(finished)}\n")
        except OSError as error:  # The run is worth more than the bar.
            _LOGGER.debug("no progress can be reported: %s", error)
            self.folder = None
        self._last_write = now


@dataclasses.dataclass(frozen=True)
class Reading:
    """Sums over all work items: `items` of them finished, `work` done, `count` of what came out."""

    items: int = 0
    work: float = 0.0
    count: int = 0


class _Folder:
    """Reads what reporters have written since the last time."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._offsets: dict[pathlib.Path, int] = {}
        self._items: dict[str, Reading] = {}

    def read(self) -> Reading:
        for path in sorted(self.path.iterdir()):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            whole = text.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + whole
            for line in text[:whole].decode().splitlines():
                self._take(*line.rsplit(" ", 3))
        readings = self._items.values()
        return Reading(
            sum(reading.items for reading in readings),
            sum(reading.work for reading in readings),
            sum(reading.count for reading in readings),
        )

    def _take(self, item: str, work: str, count: str, finished: str) -> None:
        known = self._items.get(item, Reading())
        if not known.items:  # A finished item does not start again, even where its bundle is replayed.
            new = Reading(int(finished), float(work), int(count))
            self._items[item] = dataclasses.replace(
                new, work=max(new.work, known.work), count=max(new.count, known.count)
            )


class Progress:
    """Shows a local run while it lasts: a bar on a terminal, else a line every few seconds.

        with Progress("encoding", total=bytes_of_corpus, items=len(items), unit="documents") as progress:
            run_pipeline(lambda pipeline: …progress.reporter…, beam_args)

    Args:
        label: What is being done.
        total: All the work, in the unit that reporters' `work` has; the time left follows from it.
        items: Number of work items.
        unit: What comes out and is counted, in the plural.
        enabled: False reports and shows nothing, as for a run that is not local.
        console: Where to show it; standard error by default.
        log_seconds: Seconds between two lines where there is no terminal.
    """

    def __init__(
        self,
        label: str,
        total: float,
        items: int,
        unit: str,
        *,
        enabled: bool = True,
        console: Console | None = None,
        log_seconds: float = _LOG_SECONDS,
    ):
        self.label = label
        self.total = total
        self.items = items
        self.unit = unit
        self.enabled = enabled
        self.reporter = Reporter()
        self._console = console or Console(stderr=True)
        self._log_seconds = log_seconds
        self._stop = threading.Event()
        self._start = 0.0

    def __enter__(self) -> Self:
        if not self.enabled:
            return self
        self._start = time.monotonic()
        self._folder = _Folder(pathlib.Path(tempfile.mkdtemp(prefix="trackstar-progress-")))
        self.reporter = Reporter(str(self._folder.path))
        self._stop.clear()
        show = self._show_bar if self._console.is_terminal else self._show_lines
        self._thread = threading.Thread(target=show, daemon=True, name="progress")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self.enabled:
            return
        self._stop.set()
        self._thread.join()
        reading = self.read()
        shutil.rmtree(self._folder.path, ignore_errors=True)
        what = "done" if kind is None else "stopped"
        _LOGGER.info("%s %s: %s in %s", self.label, what, self._describe(reading), _duration(self._seconds()))

    def read(self) -> Reading:
        """What has been reported so far."""
        return self._folder.read() if self.enabled else Reading()

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _describe(self, reading: Reading) -> str:
        rate = reading.count / max(self._seconds(), 1e-3)
        count, per_second = _amount(reading.count, self.unit), _amount(rate, self.unit)
        return f"{reading.items:,}/{self.items:,} items, {count}, {per_second}/s"

    def _left(self, reading: Reading) -> str:
        if not 0 < reading.work < self.total:
            return ""
        return f", {_duration(self._seconds() * (self.total - reading.work) / reading.work)} left"

    def _show_lines(self) -> None:
        while not self._stop.wait(self._log_seconds):
            reading = self.read()
            share = min(1.0, reading.work / self.total) if self.total else 1.0
            _LOGGER.info("%s: %.0f %%, %s%s", self.label, 100 * share, self._describe(reading), self._left(reading))

    def _show_bar(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
        )
        # Log lines go to what sys.stderr is; while the bar is shown that is rich's, which writes above the bar.
        with Bar(
            *columns, console=self._console, transient=True, redirect_stderr=self._console.file is sys.stderr
        ) as bar:
            task = bar.add_task(self.label, total=self.total or 1.0, text="starting")
            while not self._stop.wait(_SHOW_SECONDS):
                reading = self.read()
                text = self._describe(reading) + self._left(reading)
                bar.update(task, completed=reading.work, text=text if reading != Reading() else "starting")


def _amount(number: float, unit: str) -> str:
    """ "1,234 documents", "0.25 documents"; bytes as "56.7 MB"."""
    if unit != "B":
        return f"{number:,.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.2g} {unit}"
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}B"
        number /= 1000
    return f"{number:,.3g} TB"


def _duration(seconds: float) -> str:
    """ "0:48", "12:30", "3:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
