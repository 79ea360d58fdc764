"""DoFns and a command for the tests of the runner, in a module that worker processes can import."""

import os
import pathlib
import time
from collections.abc import Iterable

import apache_beam as beam
from apache_beam.io import filesystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from trackstar.errors import ShardError


class Touch(beam.DoFn):
    """Notes in a folder which process had which element, one file an element and try."""

    def __init__(self, folder: pathlib.Path, seconds: float = 0.0):
        self.folder = folder
        self.seconds = seconds

    def process(self, element: int) -> Iterable[int]:
        path = self.folder / f"{element}.{os.getpid()}.{time.monotonic_ns()}"
        path.touch()
        time.sleep(self.seconds)
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


def shard_error() -> ShardError:
    return ShardError("corpus/part-3.jsonl.gz", "truncated gzip stream at byte 1024")


def spread(pipeline: beam.Pipeline, count: int) -> "beam.PCollection[int]":
    """The numbers below `count`, spread over the workers."""
    return pipeline | "Numbers" >> beam.Create(range(count)) | "Spread" >> beam.Reshuffle()
