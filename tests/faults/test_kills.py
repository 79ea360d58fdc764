"""Builds and re-indexes are killed and started again: what they leave equals what an undisturbed run leaves, to the byte.

Four kills in the ordinary tests, one of each kind; `make test-faults` does fifty (FAULTS=50) and prints a count by kind. Delays
are random; what each trial aims at follows from its number, and an attempt that missed is made again.
"""

import dataclasses
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelines import cli
from tests.end_to_end.world import digests
from tests.faults import kill
from tests.faults.conftest import FAULTS, Tally
from tests.faults.kill import Disk, Run, Window
from tests.faults.reader import Reader, Seen
from tests.faults.scene import Scene, Target, commits, rows, write_state

COMMANDS = [name for name in ("build-index", "reindex") if name in cli.COMMANDS]
ATTEMPTS = 8
TWO_WORKERS = ["--direct_num_workers", "2"]

Action = Callable[[Run, Path, Target, random.Random, float], Disk | None]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        name: What is killed when.
        action: Kills it; None where the run was over before.
        windows: Between which steps it has to happen.
        more: Flags of the run.
        armed: The window that the run is armed for, if any.
    """

    name: str
    action: Action
    windows: tuple[Window, ...]
    more: tuple[str, ...] = ()
    armed: str = ""

    def plan(self, target: Target, generator: random.Random) -> dict[str, object] | None:
        """For an armed run. Delays are drawn on a logarithmic scale, from 10 µs to 1 s: a third is longer than a commit."""
        if not self.armed:
            return None
        return {"window": self.armed, "files": len(target.new_files), "delay": 1e-5 * 1e5 ** generator.random()}


def one_worker(run: Run, index: Path, target: Target, generator: random.Random, seconds: float) -> Disk | None:
    """One of two worker processes, a moment after so many files were begun: that has to end the run, with an error."""
    count = generator.randrange(len(target.new_files)) if generator.random() < 0.8 else 0

    def has_come() -> bool:
        disk = kill.look(index, target)
        return len(run.workers()) == 2 and disk.done + disk.partial >= count

    if not run.until(has_come, poll=0.01):
        return None
    try:
        generator.choice(run.workers()).kill()
    except (psutil.NoSuchProcess, IndexError):
        return None
    try:
        code = run.wait(kill.PROMPTLY)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"a killed worker hangs the run\n{run.output}") from None
    disk = kill.look(index, target)
    if code == cli.EXIT_DONE:  # its work was done
        return None
    assert code == cli.EXIT_FAILED
    assert "was killed (SIGKILL)" in run.output and "--direct_num_workers" in run.output
    assert "Traceback" not in run.output
    assert not run.workers()
    return disk


UNCOMMITTED: tuple[Window, ...] = ("before the first file", "between files", "between writing and commit")
BETWEEN: tuple[Window, ...] = ("between writing and commit",)
DURING: tuple[Window, ...] = ("during the commit, no entry yet", "during the commit, entry written")
KINDS = {
    "files": Kind("run, between files", kill.between_files, ("between files",)),
    "worker": Kind("one worker", one_worker, UNCOMMITTED, tuple(TWO_WORKERS)),
    "before": Kind("run, between writing and commit", kill.before_the_commit, BETWEEN, armed="before"),
    "during": Kind("run, during the commit", kill.during_the_commit, DURING, armed="during"),
    "any": Kind("run, at any moment", kill.at_any_moment, (*UNCOMMITTED, "after the commit")),
    "two": Kind("run of two workers", kill.between_files, ("between files",), tuple(TWO_WORKERS)),
}
ORDER = ["files", "worker", "before", "during", "any", "files", "before", "during", "any", "two"]
"""Kinds of ten trials in a row."""


def trials() -> list[object]:
    """(number, command, fresh index, kind) of each."""
    chosen = []
    for number in range(FAULTS):
        kind = ORDER[number % len(ORDER)]
        command = COMMANDS[(number + number // len(ORDER)) % len(COMMANDS)]
        fresh = command == "build-index" and number % 5 == 4
        chosen.append(pytest.param(number, command, fresh, kind, id=f"{number}-{command}-{kind}"))
    return chosen


@pytest.fixture(scope="module")
def seconds() -> list[float]:
    """How long undisturbed runs took, as processes."""
    return [10.0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "command", "fresh", "kind"), trials())
def test_a_killed_run_is_taken_up_where_it_broke_off(
    number: int,
    command: str,
    fresh: bool,
    kind: str,
    scene: Scene,
    reader: Reader,
    tally: Tally,
    seconds: list[float],
    index_folder: Path,
    tmp_path: Path,
) -> None:
    generator = random.Random(f"fault/{number}")
    target = scene.target(command, fresh, number % 3)
    write_state(scene.world.corpus, target.state)
    disk = None
    for _ in range(ATTEMPTS):
        shutil.rmtree(index_folder, ignore_errors=True)
        shutil.copytree(target.before, index_folder)
        reader.watch(index_folder)
        words = [*scene.words(command, index_folder), *KINDS[kind].more]
        with Run(words, tmp_path / "killed.log", KINDS[kind].plan(target, generator)) as run:
            disk = KINDS[kind].action(run, index_folder, target, generator, seconds[-1])
        if disk is not None and disk.window in KINDS[kind].windows:
            break
        check_readings(reader.stop(), target, tally)
        tally.missed[kind] += 1
    else:
        pytest.fail(f"{ATTEMPTS} attempts hit another moment, the last: {disk}")
    tally.kills[command, KINDS[kind].name, disk.window] += 1
    if FAULTS > 4 and generator.random() < 0.2:  # and once more while it takes up what was left
        with Run(scene.words(command, index_folder), tmp_path / "again.log") as run:
            again = kill.at_any_moment(run, index_folder, target, generator, seconds[-1])
        if again is not None:
            tally.kills[command, "the second run, at any moment", again.window] += 1
    finish(number, scene, target, index_folder, seconds, tmp_path / "finished.log")
    seen = reader.stop()
    check_readings(seen, target, tally)
    assert max(seen.digests) == max(target.valid)
    check_equal(index_folder, target)


def finish(number: int, scene: Scene, target: Target, index: Path, seconds: list[float], log: Path) -> None:
    """Starts the run again: as a process, half of the time; else, and in the few ordinary trials, in this one."""
    words = scene.words(target.command, index)
    if FAULTS <= 4 or number % 4 >= 2:
        assert cli.main(words) == cli.EXIT_DONE
        return
    with Run(words, log) as run:
        assert run.wait(kill.LONGEST_RUN) == cli.EXIT_DONE, run.output
        seconds.append(time.monotonic() - run.started)


def check_readings(seen: Seen, target: Target, tally: Tally) -> None:
    """Whatever a reader saw is one of the valid states, whole."""
    assert not seen.errors
    for version, found in seen.digests.items():
        assert found == [target.valid[version]]
    tally.reads += seen.reads


def check_equal(index: Path, target: Target) -> None:
    """The index is what an undisturbed run leaves."""
    assert digests(index) == digests(target.after)
    found = rows(index)
    assert found == rows(target.after)
    assert len(set(found)) == len(found)
    assert commits(index) == commits(target.after)
    for folder in ("", "encodings", "rejects", "failures", "manifests", "checksums/encodings", "checksums/rejects"):
        assert listing(index / folder) == listing(target.after / folder)
    assert not list((index / "encodings" / "_delta_log").glob("*#*"))
    assert cli.main(["verify", "--index", str(index)]) == cli.EXIT_DONE


def listing(folder: Path) -> list[str]:
    """Names of all that lies directly in the folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_every_kind_of_fault_was_hit(tally: Tally) -> None:
    """Runs last: of fifty kills at least three of each kind, and at least three in each window."""
    if FAULTS < 50:
        pytest.skip("few kills only: FAULTS=50 makes fifty")
    assert sum(tally.kills.values()) >= FAULTS
    for kind in KINDS.values():
        assert sum(count for (_, name, _), count in tally.kills.items() if name == kind.name) >= 3, kind.name
    for window in (*UNCOMMITTED[1:], *DURING):
        assert sum(count for (_, _, found), count in tally.kills.items() if found == window) >= 2, window
    for command in COMMANDS:
        assert sum(count for (found, _, _), count in tally.kills.items() if found == command) >= 10, command
