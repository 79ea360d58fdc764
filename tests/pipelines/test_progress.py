"""Progress: what workers report is added up truly, and shown on a terminal or in lines."""

import io
import logging
import pathlib
import pickle
import sys
import time
from collections.abc import Callable

import apache_beam as beam
import pytest
from rich.console import Console

from pipelines import logs, progress, runner
from pipelines.progress import Progress, Reading, Reporter
from tests.pipelines import toys


def _terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=200)


def _wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("beam_args", [[], ["--direct_num_workers=2"]])
def test_work_of_all_workers_is_added_up_and_counts_once_when_replayed(beam_args: list[str]) -> None:
    with Progress("toying", total=80.0, items=8, unit="things") as shown:

        def build(pipeline: beam.Pipeline) -> None:
            _ = toys.spread(pipeline, 8) | "Advance" >> beam.ParDo(toys.Advance(shown.reporter))

        runner.run_pipeline(build, [*beam_args, "--direct_runner_bundle_repeat=1"])
        assert shown.read() == Reading(items=8, work=80.0, count=24)


def test_an_unfinished_item_counts_with_what_it_has_done() -> None:
    with Progress("toying", total=100.0, items=2, unit="things") as shown:
        assert shown.read() == Reading()
        shown.reporter.report("a", 30.0, 3)
        assert shown.read() == Reading(0, 30.0, 3)
        shown.reporter.report("a", 50.0, 5, finished=True)
        shown.reporter.report("a", 10.0, 1, finished=False)  # Too soon after the last to be written.
        assert shown.read() == Reading(1, 50.0, 5)


def test_a_half_written_line_waits_for_its_rest() -> None:
    with Progress("toying", total=10.0, items=1, unit="things") as shown:
        assert shown.reporter.folder is not None
        path = pathlib.Path(shown.reporter.folder) / "worker"
        path.write_text("a 5 1 0\nb 7")
        assert shown.read() == Reading(0, 5.0, 1)
        path.write_text("a 5 1 0\nb 7 2 1\n")
        assert shown.read() == Reading(1, 12.0, 3)


def test_a_reporter_travels_to_workers_and_never_fails_their_run(tmp_path: pathlib.Path) -> None:
    reporter = pickle.loads(pickle.dumps(Reporter(str(tmp_path))))
    reporter.report("a", 1.0, 1, finished=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["a 1 1 1\n"]
    Reporter(str(tmp_path / "gone")).report("a", 1.0, 1, finished=True)
    Reporter().report("a", 1.0, 1, finished=True)


def test_the_folder_is_removed_even_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), Progress("toying", total=1.0, items=1, unit="things") as shown:
        folder = pathlib.Path(str(shown.reporter.folder))
        assert folder.is_dir()
        raise KeyboardInterrupt
    assert not folder.exists()


def test_disabled_progress_reports_and_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    console = _terminal()
    with Progress("toying", total=1.0, items=1, unit="things", enabled=False, console=console) as shown:
        assert shown.reporter.folder is None
        assert shown.read() == Reading()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
    assert caplog.records == []


def test_without_a_terminal_there_is_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("toying", total=8.0, items=4, unit="things", console=console, log_seconds=0.05) as shown:
        shown.reporter.report("a", 2.0, 30, finished=True)
        _wait_for(lambda: "left" in caplog.text)
    line = next(message for message in caplog.messages if "left" in message)
    assert line.startswith("toying: 25 %, 1/4 items, 30 things, ")
    assert line.endswith("things/s, 0:00 left")
    assert caplog.messages[-1].startswith("toying done: 1/4 items, 30 things, ")


def test_on_a_terminal_there_is_a_bar() -> None:
    console = _terminal()
    assert isinstance(console.file, io.StringIO)
    with Progress("toying", total=8.0, items=4, unit="things", console=console) as shown:
        shown.reporter.report("a", 2.0, 30, finished=True)
        _wait_for(lambda: "1/4 items" in console.file.getvalue())
    text = console.file.getvalue()
    assert "toying" in text
    assert "25%" in text
    assert "30 things" in text


def test_log_lines_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logs._StandardError()
    console = Console(file=terminal, force_terminal=True, width=80)
    with Progress("toying", total=8.0, items=4, unit="things", console=console) as shown:
        _wait_for(lambda: sys.stderr is not terminal)  # The bar has taken it over.
        handler.emit(logging.makeLogRecord({"msg": "a line of its own"}))
        shown.reporter.report("a", 2.0, 30, finished=True)
        _wait_for(lambda: "1/4 items" in terminal.getvalue())
    assert sys.stderr is terminal
    assert "a line of its own\n" in terminal.getvalue()


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (1234567, "documents", "1,234,567 documents"),
        (0.254, "documents", "0.25 documents"),
        (0, "documents", "0 documents"),
        (56_700_000, "B", "56.7 MB"),
        (999, "B", "999 B"),
        (2.5e12, "B", "2.5 TB"),
    ],
)
def test_amounts(number: float, unit: str, text: str) -> None:
    assert progress._amount(number, unit) == text


@pytest.mark.parametrize(("seconds", "text"), [(48, "0:48"), (750, "12:30"), (11100, "3:05:00"), (0.2, "0:00")])
def test_durations(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
