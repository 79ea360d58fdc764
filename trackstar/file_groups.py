"""Neighbouring files in groups of bounded size: what one worker takes, or what is scanned between two reports."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


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
