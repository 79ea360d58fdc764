"""DoFns and a command for the tests of the runner, in a module that worker processes can import."""

import argparse
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterable

import apache_beam as beam
from apache_beam.io import filesystems
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from pipelines import cli, runner
from pipelines.progress import Reporter
from trackstar.errors import ShardError


class Touch(beam.DoFn):
    """Notes in a folder which process had which element, one file an element and try."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def process(self, element: int) -> Iterable[int]:
        path = self.folder / f"{element}.{os.getpid()}.{time.monotonic_ns()}"
        path.touch()
        yield element


class FirstWaits(beam.DoFn):
    """The element that comes first is done when all `count` have been begun."""

    def __init__(self, folder: pathlib.Path, count: int):
        self.folder = folder
        self.count = count

    def process(self, element: int) -> Iterable[int]:
        (self.folder / str(element)).touch()
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            return
        end = time.monotonic() + 30.0
        while len(list(self.folder.iterdir())) < self.count + 1:
            if time.monotonic() > end:
                raise TimeoutError("the others waited for this worker")
            time.sleep(0.02)
        yield element


class ReportOptions(beam.DoFn):
    """Writes the temp_location that this worker's options hold."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def process(self, element: int) -> Iterable[int]:
        options: PipelineOptions = filesystems.FileSystems._pipeline_options
        location = options.view_as(GoogleCloudOptions).temp_location
        (self.folder / f"{element}.{os.getpid()}").write_text(str(location))
        yield element


class Fail(beam.DoFn):
    """Raises for the elements of a list, and works for a long time on the others."""

    def __init__(self, error: Exception, elements: tuple[int, ...], seconds: float = 0.0):
        self.error = error
        self.elements = elements
        self.seconds = seconds

    def process(self, element: int) -> Iterable[int]:
        if element in self.elements:
            raise self.error
        time.sleep(self.seconds)
        yield element


class Exit(beam.DoFn):
    """Ends its process by `os._exit`, after a word on standard error."""

    def process(self, element: int) -> Iterable[int]:
        os.write(2, b"the last word\n")
        os._exit(7)
        yield element


class Beat(beam.DoFn):
    """Appends to a file of its process ten times a second, for a minute."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def process(self, element: int) -> Iterable[int]:
        for _ in range(600):
            with (self.folder / str(os.getpid())).open("a") as file:
                file.write(".")
            time.sleep(0.1)
        yield element


class Count(beam.DoFn):
    """Counts and sums its elements."""

    def __init__(self) -> None:
        self.elements = Metrics.counter("toys", "elements")
        self.sum = Metrics.counter("toys", "sum")

    def process(self, element: int) -> Iterable[int]:
        self.elements.inc()
        self.sum.inc(element)
        yield element


class Log(beam.DoFn):
    """Logs a line of information and a warning, as our own modules do."""

    def process(self, element: int) -> Iterable[int]:
        logger = logging.getLogger("pipelines.toys")
        logger.info("element %d", element)
        logger.warning("careful with %d", element)
        logger.debug("nobody sees this")
        logging.getLogger("apache_beam.toys").warning("nor this")
        yield element


class Advance(beam.DoFn):
    """Reports each element as a work item in two steps: 5 of 10 done, then all 10, with 3 things counted."""

    def __init__(self, reporter: Reporter):
        self.reporter = reporter

    def process(self, element: int) -> Iterable[int]:
        self.reporter.report(f"item-{element}", 5.0, 1)
        self.reporter.report(f"item-{element}", 10.0, 3, finished=True)
        yield element


class UnprintableError(Exception):
    """An exception that Beam cannot build again from its first argument."""


def shard_error() -> ShardError:
    return ShardError("corpus/part-3.jsonl.gz", "truncated gzip stream at byte 1024")


def spread(pipeline: beam.Pipeline, count: int) -> "beam.PCollection[int]":
    """The numbers below `count`, spread over the workers."""
    return pipeline | "Numbers" >> beam.Create(range(count)) | "Spread" >> beam.Reshuffle()


# This module is a command, too: `main(["beat", folder, …], COMMANDS)`.
COMMANDS = {name: cli.Command("tests.pipelines.toys", f"runs {name}") for name in ("beat", "log")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=2)


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    do_fn = Beat(args.folder) if sys.argv[1] == "beat" else Log()

    def build(pipeline: beam.Pipeline) -> None:
        _ = spread(pipeline, args.count) | "Work" >> beam.ParDo(do_fn)

    runner.run_pipeline(build, beam_args)
    return cli.EXIT_DONE


if __name__ == "__main__":
    sys.exit(cli.main(None, COMMANDS))
