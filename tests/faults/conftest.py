"""How often to kill, and the count at the end."""

import collections
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.reader import Reader
from tests.faults.scene import Scene

FAULTS = int(os.environ.get("FAULTS", "4"))
"""Kills in all; `make test-faults` sets it to 50."""


@dataclasses.dataclass
class Tally:
    """What was killed when, and what readers saw meanwhile."""

    kills: collections.Counter[tuple[str, str, str]] = dataclasses.field(default_factory=collections.Counter)
    """By command, kind of fault, and what was on disk then."""
    missed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Attempts by kind that hit another moment than they aimed at."""
    reads: int = 0

    def lines(self) -> Iterator[str]:
        """For people."""
        for (command, kind, window), count in sorted(self.kills.items()):
            yield f"{count:4}  {command:12} {kind:32} {window}"
        total = sum(self.kills.values())
        yield f"{total:4}  kills; {sum(self.missed.values())} more attempts came too early or too late"
        yield f"{self.reads:4}  snapshots scored by a concurrent reader"


_TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[_TALLY]
    if tally.kills:
        terminalreporter.section("faults")
        for line in tally.lines():
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """Counts for the summary."""
    return request.config.stash[_TALLY]


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Model, corpus and indexes."""
    return Scene(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def reader() -> Iterator[Reader]:
    """One process that reads while runs are killed."""
    with Reader() as reader:
        yield reader


@pytest.fixture
def index_folder(tmp_path: Path) -> Path:
    """Where the disturbed index lies."""
    return tmp_path / "index"
