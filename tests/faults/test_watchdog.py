"""A worker process that dies ends the command in seconds, with exit code 1 and what to do; run again, it does the same as ever.

Builds and re-indexes are among `test_kills`; here are the other commands that have workers. Part of `make test-faults`.
"""

import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from pipelines import cli
from tests.faults import kill
from tests.faults.conftest import FAULTS, Tally
from tests.faults.kill import Run
from tests.faults.scene import Scene

pytestmark = pytest.mark.skipif(FAULTS < 50, reason="with make test-faults")
ATTEMPTS = 8
TRIALS = 3


def words_of(command: str, scene: Scene, output: Path) -> list[str]:
    """A command line that writes to `output`, a file or a folder."""
    if command == "fit":
        return scene.world.fit_words(output)
    queries = output.with_name("queries.jsonl")
    asked = [{"inputs_plaintext": "The capital of France", "targets_plaintext": city} for city in ("Rome", "Paris")]
    queries.write_text("".join(json.dumps(query) + "\n" for query in asked * 40))
    index = ["--index", str(scene.first), "--model", str(scene.world.model)]
    return ["score", *index, "--queries", str(queries), "--output", str(output), "--scan_bytes", "20000"]


def result(command: str, output: Path) -> bytes:
    """What the command is for."""
    return (output / "spec.json" if command == "fit" else output).read_bytes()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("command", ["fit", "score"])
def test_a_dead_worker_ends_the_command(command: str, trial: int, scene: Scene, tally: Tally, tmp_path: Path) -> None:
    generator = random.Random(f"{command}/{trial}")
    for name in ("killed", "undisturbed"):
        (tmp_path / name).mkdir()
    output = tmp_path / "killed" / "output"
    words = words_of(command, scene, output)
    longest = 6.0
    for _ in range(ATTEMPTS):
        with Run([*words, "--direct_num_workers", "2"], tmp_path / "killed.log") as run:
            if run.until(lambda: len(run.workers()) == 2, poll=0.01):
                time.sleep(generator.random() * longest)
            workers = run.workers()
            if workers:
                generator.choice(workers).kill()
            try:
                code = run.wait(kill.PROMPTLY if workers else kill.LONGEST_RUN)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"a killed worker hangs the run\n{run.output}") from None
            if code != cli.EXIT_DONE:
                break
            longest /= 2  # it was done before
    else:
        pytest.fail("the runs were over before a worker could be killed")
    assert code == cli.EXIT_FAILED, run.output
    assert "was killed (SIGKILL)" in run.output and "--direct_num_workers" in run.output
    assert "Traceback" not in run.output
    assert not run.workers()
    tally.kills[command, "one worker", "at any moment"] += 1
    assert cli.main(words) == cli.EXIT_DONE
    expected = tmp_path / "undisturbed" / "output"
    assert cli.main(words_of(command, scene, expected)) == cli.EXIT_DONE
    assert result(command, output) == result(command, expected)
