"""Runs of the command line that are killed: when, and what was on disk at that moment."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil

from tests.faults.scene import Target, commits

ROOT = Path(__file__).parents[2]
LONGEST_RUN = 240.0
PROMPTLY = 30.0
"""Seconds in which a run ends whose worker is dead."""

Window = Literal[
    "before the first file",
    "between files",
    "between writing and commit",
    "during the commit, no entry yet",
    "during the commit, entry written",
    "after the commit",
]
_POLL = 0.001


@dataclasses.dataclass(frozen=True)
class Disk:
    """What a run has left on disk so far."""

    done: int
    """Item files that are complete."""
    needed: int
    """Item files that are to be written."""
    partial: int
    """Item files that are half-written."""
    committed: bool
    """Whether the log has an entry that it did not have before."""
    window: Window
    """Between which steps of the run this is."""


def look(index: Path, target: Target) -> Disk:
    """The index as it is, while a run may be writing to it."""
    names = {entry.name for entry in os.scandir(index / "encodings")}
    done, needed = len(target.new_files & names), len(target.new_files)
    partial = sum(name.endswith(".tmp") for name in names)
    committed = bool(set(commits(index)) - target.old_commits)
    window: Window = "before the first file"
    if committed:
        window = "after the commit"
    elif done == needed:
        window = "between writing and commit"
    elif done or partial:
        window = "between files"
    return Disk(done, needed, partial, committed, window)


class Run:
    """A command line in a process group of its own; use it as a context manager, which leaves no process behind.

    Args:
        words: The command line without the program.
        log: File for its standard error.
        plan: What `tests.faults.armed` is to do, or None for a plain run.
    """

    def __init__(self, words: list[str], log: Path, plan: dict[str, object] | None = None):
        self.words = (
            ["-m", "pipelines", *words] if plan is None else ["-m", "tests.faults.armed", json.dumps(plan), *words]
        )
        self._log = log

    def __enter__(self) -> "Run":
        self.started = time.monotonic()
        with self._log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *self.words],
                stdout=errors,
                stderr=errors,
                cwd=ROOT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """To the whole process group."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kills the whole process group and waits until none of it is left."""
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()
        end = time.monotonic() + 10.0
        while _group_is_alive(self.process.pid):
            assert time.monotonic() < end, "processes of a killed group live on"
            time.sleep(0.01)

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if "pipelines.worker" in child.cmdline()]
        except psutil.NoSuchProcess:
            return []

    def until(self, condition: Callable[[], bool], poll: float = _POLL) -> bool:
        """Waits for something; False where the run ended first."""
        while not condition():
            if self.is_over:
                return False
            assert time.monotonic() < self.started + LONGEST_RUN, f"the run hangs\n{self.output}"
            time.sleep(poll)
        return True


def _group_is_alive(group: int) -> bool:
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return False


# What kills a run. Each returns what was on disk then, or None where the run was over before.


def at_any_moment(run: Run, index: Path, target: Target, generator: random.Random, seconds: float) -> Disk | None:
    """The whole run, at a moment drawn from all the time that it takes."""
    end = run.started + generator.random() * seconds
    return _killed(run, index, target) if run.until(lambda: time.monotonic() >= end) else None


def between_files(run: Run, index: Path, target: Target, generator: random.Random, seconds: float) -> Disk | None:
    """The whole run, a moment after so many of its files were begun."""
    count = generator.randrange(len(target.new_files))

    def has_come() -> bool:
        disk = look(index, target)
        return disk.done + disk.partial > count

    if not run.until(has_come):
        return None
    time.sleep(generator.random() * 0.02)
    return _killed(run, index, target)


def before_the_commit(run: Run, index: Path, target: Target, generator: random.Random, seconds: float) -> Disk | None:
    """An armed run, when all files are written and the commit has not begun."""
    disk = _armed(run, index, target)
    assert disk.window == "between writing and commit", disk
    return disk


def during_the_commit(run: Run, index: Path, target: Target, generator: random.Random, seconds: float) -> Disk | None:
    """An armed run, while the log writes a new entry: when it dies, the entry is there or it is not."""
    disk = _armed(run, index, target)
    assert disk.done == disk.needed, disk
    window: Window = "during the commit, entry written" if disk.committed else "during the commit, no entry yet"
    return dataclasses.replace(disk, window=window)


def _armed(run: Run, index: Path, target: Target) -> Disk:
    code = run.wait(LONGEST_RUN)
    assert code == -signal.SIGKILL, f"exit code {code}\n{run.output}"
    return look(index, target)


def _killed(run: Run, index: Path, target: Target) -> Disk:
    run.kill()
    return look(index, target)
