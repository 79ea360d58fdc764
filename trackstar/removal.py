"""Take-downs: what must never again show in a result, from the moment it is said.

    removed/<time>-<id>.jsonl      one take-down, immutable: who, when and why, then one line an id or shard
    removed/hits/<name>.jsonl      which files of the index hold what was taken down (`removed_items`)
    removed/items/<key>.json       what an item's file was written without (`removed_items`)

A take-down is one small file, written at once: no lock is needed, many can be made at the same time, and the folder is the
audit log. It holds for ever: an id that comes back, in whatever shard, stays out. Scans compare ids, so nothing that is on
disk already has to be changed for a take-down to count; the bytes go when the corpus is indexed again.
"""

import concurrent.futures
import dataclasses
import functools
import getpass
import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trackstar import storage
from trackstar.errors import TrackStarError

FOLDER = "removed"
_READERS = 16
_PASSAGE = re.compile(r"#\d+\Z")
_PASSAGE_ARROW = r"#\d+$"
_PLAIN_LOOKUP = 4  # above so many removed ids a row, Python's set is faster than Arrow's, which is made anew each time


@dataclasses.dataclass(frozen=True)
class Removals:
    """What is taken down.

    An id names a record, and with it, in an index of split documents, all its passages `id#0`, `id#1`, …; or one passage
    alone. There, every id that ends in "#" and a number counts as a passage's.

    Args:
        ids: Ids of examples.
        shards: URIs of whole shards.
        splits: Whether the index holds passages of split documents.
    """

    ids: frozenset[str] = frozenset()
    shards: frozenset[str] = frozenset()
    splits: bool = False

    def __bool__(self) -> bool:
        return bool(self.ids or self.shards)

    @functools.cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of SHA-256 over all of it."""
        parts = [sorted(self.ids), sorted(self.shards), self.splits]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def covers(self, example_id: str) -> bool:
        """Whether an example of this id is taken down by it."""
        return self.matched(example_id) is not None

    def matched(self, example_id: str) -> str | None:
        """The id on the list that takes the example down, if one does."""
        if self.splits and self.ids and (document := _PASSAGE.sub("", example_id)) in self.ids:
            return document
        return example_id if example_id in self.ids else None

    def rows(self, example_ids: Sequence[str] | pa.Array) -> np.ndarray | None:
        """Which rows are taken down by their ids, [rows] bool; None where none is."""
        if not self.ids or not len(example_ids):
            return None
        if len(self.ids) > _PLAIN_LOOKUP * len(example_ids):
            names = example_ids.to_pylist() if isinstance(example_ids, pa.Array) else example_ids
            found = np.fromiter((self.covers(name) for name in names), bool, len(names))
        else:
            array = example_ids if isinstance(example_ids, pa.Array) else pa.array(example_ids, pa.string())
            found = self._among(array)
            if self.splits:
                found |= self._among(pc.replace_substring_regex(array, _PASSAGE_ARROW, ""))
        return found if found.any() else None

    def mask(self, example_ids: Sequence[str] | pa.Array, shard: str) -> np.ndarray | None:
        """Which rows of a file that was made from `shard` are taken down, [rows] bool; None where none is."""
        if shard in self.shards:
            return np.ones(len(example_ids), bool)
        return self.rows(example_ids)

    def save(self, folder: str) -> str | None:
        """Writes them for the workers of one run, so that all mask the same; returns the file, or None where there are none."""
        if not self:
            return None
        uri = storage.join(folder, f"removals-{self.hash}.json")
        fields = {"ids": sorted(self.ids), "shards": sorted(self.shards), "splits": self.splits}
        storage.write_bytes(uri, json.dumps(fields).encode())
        return uri

    @classmethod
    def read(cls, uri: str) -> "Removals":
        """Reads what `save` wrote."""
        fields = json.loads(storage.read_bytes(uri))
        return cls(frozenset(fields["ids"]), frozenset(fields["shards"]), fields["splits"])

    @functools.cached_property
    def passages(self) -> dict[str, list[str]]:
        """By document: those of the ids that name one of its passages."""
        found: dict[str, list[str]] = {}
        for name in self.ids if self.splits else ():
            if (document := _PASSAGE.sub("", name)) != name:
                found.setdefault(document, []).append(name)
        return found

    @functools.cached_property
    def _values(self) -> pa.Array:
        return pa.array(sorted(self.ids), pa.string())

    def _among(self, array: pa.Array) -> np.ndarray:
        return pc.is_in(array, value_set=self._values).to_numpy(zero_copy_only=False)


NOTHING = Removals()
"""Nothing is taken down."""


@dataclasses.dataclass(frozen=True)
class TakeDown:
    """One entry of the audit log.

    Args:
        name: Name of its file, without suffix; sorts by time.
        when: Time, UTC, ISO 8601.
        who: user@host.
        reason: As it was given; may be empty.
        version: The index's version at the time; None before the first.
        rows: Rows of that version that it took down.
        ids: Ids of examples.
        shards: URIs of shards.
        not_found: How many of the ids were in no file of the index at the time.
    """

    name: str
    when: str
    who: str
    reason: str
    version: int | None
    rows: int
    ids: tuple[str, ...]
    shards: tuple[str, ...]
    not_found: int = 0

    @classmethod
    def new(
        cls, ids: Iterable[str], shards: Iterable[str], reason: str, version: int | None, rows: int, not_found: int
    ) -> "TakeDown":
        """A take-down of this moment by whoever runs this."""
        now = time.gmtime()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', now)}-{uuid.uuid4().hex[:8]}"
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", now)
        return cls(name, when, _who(), reason, version, rows, tuple(sorted(ids)), tuple(sorted(shards)), not_found)

    def publish(self, index_uri: str) -> None:
        """Writes it; from here on nothing of it shows in a result.

        Raises:
            TrackStarError: it cannot be written.
        """
        header = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}
        header |= {"ids": len(self.ids), "shards": len(self.shards)}
        lines: list[dict[str, Any]] = [header]
        lines += [{"shard": shard} for shard in self.shards]
        lines += [{"id": example_id} for example_id in self.ids]
        uri = _uri(index_uri, self.name)
        if not storage.create_exclusive(uri, sealed(lines)):
            raise TrackStarError(f"{uri}: another take-down has this name already; run the command again")

    @classmethod
    def parse(cls, name: str, content: bytes, where: str) -> "TakeDown":
        """Reads what `publish` wrote.

        Raises:
            TrackStarError: the file is damaged. That is never passed over: a result must not show what it names.
        """
        header, *lines = unsealed(content, where)
        try:
            ids = tuple(line["id"] for line in lines if "id" in line)
            shards = tuple(line["shard"] for line in lines if "shard" in line)
            return cls(**{**header, "name": name, "ids": ids, "shards": shards})
        except (KeyError, TypeError) as error:
            raise TrackStarError(_damaged(where, str(error))) from error


def take_downs(index_uri: str) -> list[TakeDown]:
    """All take-downs of an index, in the order of time: the audit log.

    Raises:
        TrackStarError: one of them is damaged.
    """
    folder = storage.normalise(storage.join(index_uri, FOLDER))
    infos = [info for info in storage.list(folder) if "/" not in info.uri[len(folder) + 1 :]]
    uris = [info.uri for info in infos if info.uri.endswith(".jsonl")]
    names = [uri[len(folder) + 1 :].removesuffix(".jsonl") for uri in uris]
    return [TakeDown.parse(*parts) for parts in zip(names, read_all(uris), uris, strict=True)]


def read_all(uris: Sequence[str]) -> list[bytes]:
    """Contents of small files, several at a time."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(storage.read_bytes, uris))


def load(index_uri: str, splits: bool) -> Removals:
    """All that was taken down of an index up to now.

    Args:
        index_uri: The index.
        splits: Whether it holds passages of split documents (`spec.long_documents`).
    """
    entries = take_downs(index_uri)
    ids = frozenset(example_id for entry in entries for example_id in entry.ids)
    return Removals(ids, frozenset(shard for entry in entries for shard in entry.shards), splits)


def carry_over(index_uri: str, new_index_uri: str) -> int:
    """Copies the take-downs of an index to one that takes its place; returns how many there are."""
    entries = take_downs(index_uri)
    for entry in entries:
        target = _uri(new_index_uri, entry.name)
        if not storage.exists(target):
            storage.copy(_uri(index_uri, entry.name), target)
    return len(entries)


def sealed(lines: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines, and last a line with their hash."""
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    return content + json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n"


def unsealed(content: bytes, where: str) -> list[dict[str, Any]]:
    """The lines that `sealed` was given; at least one.

    Raises:
        TrackStarError: they are not as they were written.
    """
    *lines, last = content.splitlines(keepends=True) or [b""]
    try:
        if json.loads(last)["sha256"] != hashlib.sha256(b"".join(lines)).hexdigest():
            raise ValueError("not the bytes that were written")
        return [json.loads(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise TrackStarError(_damaged(where, str(error))) from error


def read_ids(uri: str) -> list[str]:
    """Ids from a file: one a line, or JSON lines, objects with `example_id` or `id`. Blank lines are skipped.

    Raises:
        TrackStarError: no such file, not UTF-8, no id in it, or a line of JSON that names none; with its number.
    """
    if not storage.exists(uri):
        raise TrackStarError(f"{uri}: no such file; --ids wants a file with one id a line, or JSON lines with `id`")
    content = storage.read_bytes(uri)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TrackStarError(f"{uri}:{line}: not UTF-8 (byte {error.start}); convert the file") from None
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        raise TrackStarError(f"{uri}: the file holds no id; give one a line, or JSON lines with `id`")
    if lines[0][1].lstrip().startswith("{"):
        return list(dict.fromkeys(_json_id(line, f"{uri}:{number}") for number, line in lines))
    return list(dict.fromkeys(line for _, line in lines))


def _json_id(line: str, where: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise TrackStarError(
            f"{where}: not JSON ({error}); the first line is an object, so every line must be"
        ) from None
    name = fields.get("example_id", fields.get("id")) if isinstance(fields, dict) else None
    if isinstance(name, (int, float)):  # as the corpus reads it
        name = json.dumps(name)
    if not isinstance(name, str) or not name or _has_half_pair(name):
        raise TrackStarError(f"{where}: no `example_id` or `id` in this line; mend it or leave it out")
    return name


def _has_half_pair(text: str) -> bool:
    """Half of a surrogate pair is no character, and no id that the corpus can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _uri(index_uri: str, name: str) -> str:
    return storage.join(index_uri, FOLDER, name + ".jsonl")


def _damaged(where: str, why: str) -> str:
    return (
        f"{where}: this record of a take-down is damaged ({why}); restore the file from a backup, or take down what it named "
        "once more with `trackstar remove` and then delete it"
    )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
