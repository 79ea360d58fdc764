"""Files that corpora are made of: JSONL, written only where they change."""

import json
from collections.abc import Iterable

from trackstar import storage


def jsonl(lines: Iterable[object]) -> bytes:
    """The lines as JSONL, UTF-8."""
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def write_if_changed(uri: str, data: bytes) -> None:
    """Writes a file unless it holds these bytes already: an index knows a shard by its time of change.

    Raises:
        TrackStarError: the file cannot be written.
    """
    if storage.exists(uri) and storage.size(uri) == len(data) and storage.read_bytes(uri) == data:
        return
    storage.write_bytes(uri, data)
