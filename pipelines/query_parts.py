"""Queries → files of projected gradients: what comes before every scan with a model."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam

from pipelines import runner
from pipelines.elements import OneByOne
from pipelines.progress import say
from pipelines.workers import EncoderDoFn
from trackstar import storage
from trackstar.encoder import EncoderSource
from trackstar.query_encoding import project_queries, query_groups
from trackstar.results import Query


def encode_queries(
    queries: Sequence[Query], source: EncoderSource, work: str, beam_args: Sequence[str], whose: str = ""
) -> list[str]:
    """Runs the pipeline that leaves the queries' projected gradients in files; returns these in order.

    Args:
        queries: The queries.
        source: The encoder.
        work: Folder for the files.
        beam_args: Beam's flags.
        whose: The index that they are encoded for, where there are two.
    """
    groups = [list(group) for group in query_groups(queries)]
    uris = [storage.join(work, f"part-{number:05d}.safetensors") for number in range(len(groups))]
    missing = [(uri, group) for uri, group in zip(uris, groups, strict=True) if not storage.exists(uri)]
    if missing:
        say(f"encoding {len(queries):,} queries" + (f" for {whose}" if whose else ""))
        transform = EncodeQueries(missing, source)
        runner.run_pipeline(lambda pipeline: pipeline | "EncodeQueries" >> transform, beam_args)
    return uris


@dataclasses.dataclass
class EncodeQueries(beam.PTransform):
    """Groups of queries → files of projected gradients.

    Args:
        groups: (file, queries) pairs.
        source: The encoder.
    """

    groups: list[tuple[str, list[Query]]]
    source: EncoderSource

    def expand(self, root: Any) -> Any:
        return root | OneByOne(self.groups) | "EncodeGroup" >> beam.ParDo(EncodeGroup(self.source))


class EncodeGroup(EncoderDoFn):
    """Projects one group of queries."""

    def process(self, element: tuple[str, list[Query]]) -> Iterator[str]:
        uri, queries = element
        if not storage.exists(uri):
            project_queries(self.loaded(), queries, uri)
        yield uri
