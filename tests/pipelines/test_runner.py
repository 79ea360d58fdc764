"""The local runner with real pipelines: in this process, in worker processes, and when things go wrong."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import apache_beam as beam
import psutil
import pytest
from apache_beam.runners.runner import PipelineResult

from pipelines import runner
from pipelines.errors import PipelineError
from tests.pipelines import toys
from trackstar.errors import TrackStarError

TWO_WORKERS = ["--direct_num_workers=2"]

# A failure has to end a run in seconds, where the work that goes on elsewhere would take a minute.
PROMPTLY = 15.0


def _work(do_fn: beam.DoFn, count: int = 8) -> Callable[[beam.Pipeline], None]:
    def build(pipeline: beam.Pipeline) -> None:
        _ = toys.spread(pipeline, count) | "Work" >> beam.ParDo(do_fn)

    return build


def _touched(folder: pathlib.Path) -> list[tuple[int, int]]:
    """Element and process of every file that `toys.Touch` made."""
    names = [path.name.split(".") for path in folder.iterdir()]
    return sorted((int(element), int(pid)) for element, pid, _ in names)


def _worker_processes(parent: int) -> list[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True)
    return [child for child in children if "pipelines.worker" in child.cmdline()]


def _wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Run:
    """A pipeline that runs in a thread of this process, so that the test can meddle with its workers."""

    def __init__(self, do_fn: beam.DoFn, beam_args: list[str], count: int = 8):
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(do_fn, beam_args, count), daemon=True)
        self._thread.start()

    def _run(self, do_fn: beam.DoFn, beam_args: list[str], count: int) -> None:
        try:
            runner.run_pipeline(_work(do_fn, count), beam_args)
        except BaseException as error:
            self.error = error

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the run did not end within {seconds} s"


def test_without_flags_everything_runs_in_this_process(tmp_path: pathlib.Path) -> None:
    runner.run_pipeline(_work(toys.Touch(tmp_path)))
    assert _touched(tmp_path) == [(element, os.getpid()) for element in range(8)]


@dataclasses.dataclass
class Done:
    """A run that ended: its result, what was touched by whom, and the temp_location that the workers' options held."""

    result: PipelineResult
    touched: list[tuple[int, int]]
    locations: list[str]


def _run_all(folder: pathlib.Path, beam_args: list[str]) -> Done:
    for name in ("touched", "options"):
        (folder / name).mkdir()

    def build(pipeline: beam.Pipeline) -> None:
        numbers = toys.spread(pipeline, 8) | "Touch" >> beam.ParDo(toys.Touch(folder / "touched"))
        reported = numbers | "Options" >> beam.ParDo(toys.ReportOptions(folder / "options"))
        _ = reported | "Count" >> beam.ParDo(toys.Count())

    result = runner.run_pipeline(build, [*beam_args, "--temp_location=/somewhere"])
    return Done(result, _touched(folder / "touched"), [path.read_text() for path in (folder / "options").iterdir()])


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return _run_all(tmp_path_factory.mktemp("two_workers"), TWO_WORKERS)


def test_workers_are_processes_and_share_the_work(two_workers: Done) -> None:
    assert [element for element, _ in two_workers.touched] == list(range(8))
    processes = {pid for _, pid in two_workers.touched}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert not any(psutil.pid_exists(pid) for pid in processes)


def test_a_free_worker_takes_the_next_element(tmp_path: pathlib.Path) -> None:
    runner.run_pipeline(_work(toys.FirstWaits(tmp_path, 12), 12), TWO_WORKERS)
    assert len(list(tmp_path.iterdir())) == 13


def test_what_workers_group_is_whole(tmp_path: pathlib.Path) -> None:
    """Combining goes through a shuffle, and through partial results of every bundle."""

    def build(pipeline: beam.Pipeline) -> None:
        keyed = toys.spread(pipeline, 100) | "Key" >> beam.Map(lambda number: (number % 3, number))
        sums = keyed | "Sum" >> beam.CombinePerKey(sum)
        joined = (sums, keyed | "Count" >> beam.combiners.Count.PerKey()) | "Join" >> beam.CoGroupByKey()
        text = joined | "Text" >> beam.Map(repr)
        _ = text | "Write" >> beam.io.WriteToText(str(tmp_path / "sums"), shard_name_template="")

    runner.run_pipeline(build, TWO_WORKERS)
    lines = sorted((tmp_path / "sums").read_text().splitlines())
    assert lines == ["(0, ([1683], [34]))", "(1, ([1617], [33]))", "(2, ([1650], [33]))"]


def test_options_reach_the_workers(two_workers: Done) -> None:
    assert two_workers.locations == ["/somewhere"] * 8


def test_counters_of_all_workers_are_summed(two_workers: Done, tmp_path: pathlib.Path) -> None:
    assert runner.counters(two_workers.result) == {"elements": 8, "sum": 28}
    assert runner.counters(_run_all(tmp_path, []).result) == {"elements": 8, "sum": 28}


@pytest.mark.parametrize("beam_args", [[], TWO_WORKERS])
def test_bundle_repeat_replays_every_element(tmp_path: pathlib.Path, beam_args: list[str]) -> None:
    runner.run_pipeline(_work(toys.Touch(tmp_path)), [*beam_args, "--direct_runner_bundle_repeat=1"])
    assert [element for element, _ in _touched(tmp_path)] == [i for element in range(8) for i in [element] * 2]


def test_no_prism(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.runners.portability import prism_runner

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Prism was tried")

    monkeypatch.setattr(prism_runner.PrismRunner, "run_pipeline", refuse)
    for name in ("DirectRunner", "direct", "FnApiRunner"):
        assert runner.is_local([f"--runner={name}"])
        runner.run_pipeline(_work(toys.Touch(tmp_path), 1), [f"--runner={name}"])
    assert len(_touched(tmp_path)) == 3


@pytest.mark.parametrize(
    ("error", "beam_args", "message"),
    [
        (toys.shard_error(), [], "corpus/part-3.jsonl.gz: truncated gzip stream at byte 1024"),
        (toys.shard_error(), TWO_WORKERS, "corpus/part-3.jsonl.gz: truncated gzip stream at byte 1024"),
        (TrackStarError("two\nlines"), [], "two\nlines"),
        (TrackStarError("two\nlines"), TWO_WORKERS, "two\nlines"),
        (ValueError("not so: twice"), [], "ValueError: not so: twice (in step Work)"),
        (toys.UnprintableError(1, 2), [], "tests.pipelines.toys.UnprintableError: (1, 2) (in step Work)"),
        (RuntimeError("plain"), [], "RuntimeError: plain (in step Work)"),
    ],
    ids=repr,
)
def test_the_message_of_a_failed_run_is_the_workers(error: Exception, beam_args: list[str], message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        runner.run_pipeline(_work(toys.Fail(error, (0,)), 2), beam_args)
    assert str(caught.value) == message
    assert 'toys.py", line' in caught.value.details  # The traceback, down to the line in the DoFn.


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_one_worker_ends_the_run_while_another_works(bad: int) -> None:
    start = time.monotonic()
    with pytest.raises(PipelineError, match="truncated gzip stream"):
        runner.run_pipeline(_work(toys.Fail(toys.shard_error(), (bad,), seconds=60.0), 2), TWO_WORKERS)
    assert time.monotonic() - start < PROMPTLY
    assert _worker_processes(os.getpid()) == []


def test_a_killed_worker_ends_the_run(tmp_path: pathlib.Path) -> None:
    run = Run(toys.Beat(tmp_path), TWO_WORKERS)
    _wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    victim, other = (int(path.name) for path in tmp_path.iterdir())
    os.kill(victim, signal.SIGKILL)
    run.join(PROMPTLY)
    assert isinstance(run.error, PipelineError)
    assert str(run.error).startswith(f"worker process {victim} was killed (SIGKILL)")
    assert "--direct_num_workers" in str(run.error)
    assert not psutil.pid_exists(other)


def test_a_worker_that_exits_ends_the_run_with_its_last_words() -> None:
    with pytest.raises(PipelineError) as caught:
        runner.run_pipeline(_work(toys.Exit(), 2), TWO_WORKERS)
    assert "exited with code 7 before its work was done\nits last lines:\n  the last word" in str(caught.value)


def test_a_worker_that_cannot_start_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('a broken installation')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PipelineError, match=r"exited with code 1(.|\n)*a broken installation"):
        runner.run_pipeline(_work(toys.Count(), 2), TWO_WORKERS)


@pytest.fixture
def launcher(tmp_path: pathlib.Path) -> Iterator[Callable[[str, list[str]], "subprocess.Popen[str]"]]:
    """Starts `toys beat` through the command line, in a process (and a process group) of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(command: str, words: list[str]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipelines.toys", command, str(tmp_path), *words],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _beats(folder: pathlib.Path) -> list[int]:
    return sorted(path.stat().st_size for path in folder.iterdir())


def test_workers_die_with_a_killed_launcher_and_stop_writing(
    tmp_path: pathlib.Path, launcher: Callable[[str, list[str]], "subprocess.Popen[str]"]
) -> None:
    process = launcher("beat", TWO_WORKERS)
    _wait_for(lambda: len(_beats(tmp_path)) == 2)
    workers = _worker_processes(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    _wait_for(lambda: not any(_is_alive(worker) for worker in workers), 5.0)
    beats = _beats(tmp_path)
    time.sleep(0.5)
    assert _beats(tmp_path) == beats


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("beam_args", [[], TWO_WORKERS])
def test_ctrl_c_ends_the_run(
    tmp_path: pathlib.Path, launcher: Callable[[str, list[str]], "subprocess.Popen[str]"], beam_args: list[str]
) -> None:
    process = launcher("beat", beam_args)
    _wait_for(lambda: len(_beats(tmp_path)) == max(1, 2 * len(beam_args)))
    workers = _worker_processes(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PROMPTLY)
    assert process.returncode == 130
    assert errors == "trackstar: interrupted\n"
    assert not any(_is_alive(worker) for worker in workers)


def test_workers_logs_are_shown_and_beams_are_not(
    tmp_path: pathlib.Path, launcher: Callable[[str, list[str]], "subprocess.Popen[str]"]
) -> None:
    _, errors = launcher("log", TWO_WORKERS).communicate(timeout=60)
    lines = [line.partition(" ")[2] for line in errors.splitlines()]
    assert sorted(lines) == ["element 0", "element 1", "warning: careful with 0", "warning: careful with 1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runner=DaskRunner"], "DaskRunner loses data"),
        (["--runner=NoSuchRunner"], "--runner=NoSuchRunner: Unexpected pipeline runner"),
        (["--direct_num_workers=-1"], "--direct_num_workers is -1"),
        (["--runner=DataflowRunner"], "temp_location"),
    ],
)
def test_runners_that_cannot_be_used(words: list[str], message: str) -> None:
    with pytest.raises(TrackStarError, match=message) as caught:
        runner.run_pipeline(_work(toys.Count()), words)
    assert not isinstance(caught.value, PipelineError)


def test_where_flags_make_a_pipeline_run() -> None:
    assert runner.is_local([])
    assert not runner.is_local(["--runner=DataflowRunner"])
    assert runner.num_local_workers([]) == 1
    assert runner.num_local_workers(["--direct_num_workers=3"]) == 3
    assert runner.num_local_workers(["--direct_num_workers=0"]) == os.cpu_count()
