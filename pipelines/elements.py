"""Elements of work: files in groups, and a source that workers take them from one by one."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import apache_beam as beam


class _WithBytes(Protocol):
    @property
    def num_bytes(self) -> int: ...


File = TypeVar("File", bound=_WithBytes)


def group_files(files: Sequence[File], most_bytes: int) -> list[list[File]]:
    """Neighbouring files together, as many as stay under `most_bytes`; at least one group, if only an empty one."""
    groups: list[list[File]] = [[]]
    size = 0
    for file in files:
        if groups[-1] and size + file.num_bytes > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.num_bytes
    return groups


@dataclasses.dataclass
class OneByOne(beam.PTransform):
    """A source of elements that workers take one at a time, in whatever order they are free.

    Args:
        elements: The elements; small.
    """

    elements: list[Any]

    def expand(self, root: Any) -> Any:
        return root | "Elements" >> beam.Create(self.elements, reshuffle=False) | "ToAnyWorker" >> beam.Reshuffle()
