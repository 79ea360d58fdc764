"""A source of elements of work that workers take one by one."""

import dataclasses
from typing import Any

import apache_beam as beam


@dataclasses.dataclass
class OneByOne(beam.PTransform):
    """A source of elements that workers take one at a time, in whatever order they are free.

    Args:
        elements: The elements; small.
    """

    elements: list[Any]

    def expand(self, root: Any) -> Any:
        return root | "Elements" >> beam.Create(self.elements, reshuffle=False) | "ToAnyWorker" >> beam.Reshuffle()
