"""Which checkpoint an index was encoded with, as its files tell it: no weights are read.

    checkpoint.json     name → size and modification time (small local files: hash of the content; objects: generation)

A run that encodes has its workers hold the model against the spec. One that finds nothing to encode loads none, and these files
say whether it would be the same: a checkpoint that was copied may look like another, one that looks the same is the same.
"""

import json
from collections.abc import Mapping

from trackstar import storage

FILE = "checkpoint.json"
_SMALL = 16 << 20
"""Bytes of a local file that is told by its content: configuration and tokenizer, but not weights."""


def fingerprints(checkpoint: str) -> dict[str, str]:
    """Name → what tells the version, of each file in a checkpoint folder; empty where there is no such folder (a hub name)."""
    folder = storage.normalise(checkpoint).rstrip("/")
    found = {}
    for info in storage.list(folder):
        name = info.uri[len(folder) + 1 :]
        if "/" in name:
            continue
        if info.size <= _SMALL and not storage.is_object(folder):
            info = storage.info(info.uri, "content")
        found[name] = info.fingerprint
    return found


def record(index_uri: str, files: Mapping[str, str]) -> None:
    """Keeps the files of the checkpoint that the index's spec was just held against; without files, what was kept stays."""
    if files and files != _recorded(index_uri):
        content = json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n"
        storage.write_bytes(storage.join(index_uri, FILE), content.encode())


def are_others(index_uri: str, files: Mapping[str, str]) -> bool:
    """Whether these are not the files that were kept; False where none were kept, or there are none to compare."""
    recorded = _recorded(index_uri)
    return bool(files) and recorded is not None and files != recorded


def _recorded(index_uri: str) -> dict[str, str] | None:
    where = storage.join(index_uri, FILE)
    if not storage.exists(where):
        return None
    try:
        return dict(json.loads(storage.read_bytes(where))["files"])
    except (
        ValueError,
        KeyError,
        TypeError,
    ):  # damaged: it only spares work, and the next run that encodes writes it anew
        return None
