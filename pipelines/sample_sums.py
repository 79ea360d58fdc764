"""What `fit` runs: sums over the fixed sample, in files that are merged in a tree, and projections made of them."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from pipelines.elements import OneByOne
from pipelines.workers import EncoderDoFn
from trackstar import sample_sums, storage, threads, whitening
from trackstar.covariances import Part
from trackstar.encoder import EncoderSource
from trackstar.fitting import SampleTask
from trackstar.spec import Spec


@dataclasses.dataclass
class SumOverSample(beam.PTransform):
    """Partial sums in files, then a tree of sums: sums are too large to travel between workers.

    Args:
        tasks: `SampleTask`s as dictionaries.
        source: The encoder.
        kind: One of `sample_sums.KINDS`.
        folder: Where partial sums go.
        target: File that will hold the name of the total's file.
        parts: The covariances, where these are summed.
    """

    tasks: list[dict[str, Any]]
    source: EncoderSource
    kind: str
    folder: str
    target: str
    parts: Sequence[Part] = ()

    def expand(self, root: Any) -> Any:
        sums = (
            root
            | OneByOne(list(enumerate(self.tasks)))
            | "SumTask" >> beam.ParDo(SumTask(self.source, self.kind, self.folder, self.parts))
        )
        count = len(self.tasks)
        for level in itertools.count():
            if count == 1:
                break
            sums = (
                sums
                | f"Pair{level}" >> beam.MapTuple(lambda place, uri: (place // 2, (place, uri)))
                | f"Group{level}" >> beam.GroupByKey()
                | f"Merge{level}" >> beam.Map(merge_pair, kind=self.kind)
            )
            count = -(-count // 2)
        return sums | "Name" >> beam.Map(name_total, target=self.target)


def merge_pair(pair: tuple[int, Iterable[tuple[int, str]]], kind: str) -> tuple[int, str]:
    """Merges the files of one pair (or passes a single one on) in the order of their places."""
    place, placed = pair
    uris = [uri for _, uri in sorted(placed)]
    return place, uris[0] if len(uris) == 1 else sample_sums.merge_files(kind, uris[0], uris[1])


def name_total(placed: tuple[int, str], target: str) -> str:
    """Leaves the name of the file that holds the total, and passes it on."""
    storage.write_bytes(target, placed[1].encode())
    return placed[1]


class SumTask(EncoderDoFn):
    """Sums over one part of the sample, into a file; a file that exists is not made again."""

    def __init__(self, source: EncoderSource, kind: str, folder: str, parts: Sequence[Part] = ()):
        super().__init__(source)
        self._kind, self._folder, self._parts = kind, folder, parts

    def process(self, placed: tuple[int, dict[str, Any]]) -> Any:
        place, fields = placed
        encoder, task = self.loaded(), SampleTask.from_dict(fields)
        uri = storage.join(self._folder, f"{task.key(encoder.spec.hash)}.{self._kind}.safetensors")
        if not storage.exists(uri):
            sample_sums.sum_task(self._kind, encoder, task, uri, self._parts)
        yield place, uri


@dataclasses.dataclass
class WhitenOverSample(beam.PTransform):
    """One pass over the sample: sums behind some covariances, then the projections that are made of each.

    Args:
        tasks: `SampleTask`s as dictionaries.
        source: The encoder, without projections.
        parts: The covariances of this pass.
        folder: Where sums go; not needed any more afterwards.
        spec_json: The index's spec, as far as it is known.
        moments_uri: Second moments, where they are factored.
        projections: Folder where projections go, one file a covariance.
    """

    tasks: list[dict[str, Any]]
    source: EncoderSource
    parts: Sequence[Part]
    folder: str
    spec_json: str
    moments_uri: str | None
    projections: str

    def expand(self, root: Any) -> Any:
        target = storage.join(self.folder, "covariance.total")
        return (
            root
            | SumOverSample(self.tasks, self.source, "covariance", self.folder, target, self.parts)
            | "Parts" >> beam.FlatMap(with_parts, parts=list(range(len(self.parts))))
            | "ToAnyWorker" >> beam.Reshuffle()
            | "Fold"
            >> beam.ParDo(FoldPart(self.parts, self.spec_json, self.moments_uri, self.projections, self.source.threads))
        )


def with_parts(total: str, parts: list[int]) -> Iterator[tuple[int, str]]:
    """Number of each covariance with the file of the sums."""
    for part in parts:
        yield part, total


class FoldPart(beam.DoFn):
    """Makes the projections that one covariance serves; a file that exists is not made again."""

    def __init__(self, parts: Sequence[Part], spec_json: str, moments_uri: str | None, folder: str, num_threads: int):
        self._parts, self._spec_json, self._moments_uri = parts, spec_json, moments_uri
        self._folder, self._num_threads = folder, num_threads

    def setup(self) -> None:
        threads.use(self._num_threads)

    def process(self, numbered: tuple[int, str]) -> None:
        number, total = numbered
        part = self._parts[number]
        uri = storage.join(self._folder, whitening.part_file(part))
        if not storage.exists(uri):
            whitening.fold_file(part, total, Spec.from_json(self._spec_json), self._moments_uri, uri)
