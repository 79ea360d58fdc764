"""What each snapshot was made of: its shards, their versions, and which files of the index hold them.

A manifest says of every shard what a re-index needs in order to leave it alone, so that an unchanged shard is never opened. It
is one file, `manifests/<name>.jsonl`, and its name is a hash of the snapshot's files: writing it before the commit needs no
second transaction, a run that breaks off in between leaves a file that nobody asks for, and a snapshot without one (committed
by something that wrote none) can have it made afterwards from the files' own metadata.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence

from trackstar import checksums, storage
from trackstar.checksums import Checksum
from trackstar.corpus import Shard, WorkItem
from trackstar.corpus.shards import Format, format_of
from trackstar.errors import TrackStarError
from trackstar.index import Index, Snapshot
from trackstar.item_footer import ItemFile

FOLDER = "manifests"
_VERSION = 1
_FOOTER_READERS = 16

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StoredItem:
    """One work item of a shard, as the index holds it: its file's key, and its range as in `WorkItem`."""

    key: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class StoredShard:
    """One shard of a snapshot."""

    uri: str
    format: Format
    size: int
    """Bytes as stored; 0 where that is not known any more."""
    fingerprint: str
    """The version that was encoded; empty where that is not known, so that no version equals it."""
    items: tuple[StoredItem, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The shards of one snapshot, sorted by URI."""

    shards: tuple[StoredShard, ...]
    item_bytes: int | None
    """What the shards were cut by; None where the manifest was made from the files."""
    fingerprint: storage.FingerprintKind
    """How local shards' versions are told."""

    @classmethod
    def of(
        cls,
        spec_hash: str,
        shards: Iterable[Shard],
        items: Iterable[WorkItem],
        item_bytes: int,
        fingerprint: storage.FingerprintKind,
    ) -> "Manifest":
        """The manifest of shards and their work items."""
        by_shard: dict[str, list[StoredItem]] = {}
        for item in items:
            by_shard.setdefault(item.shard, []).append(StoredItem(item.key(spec_hash), item.start, item.end))
        stored = [
            StoredShard(shard.uri, shard.format, shard.size, shard.fingerprint, tuple(by_shard.get(shard.uri, ())))
            for shard in shards
        ]
        return cls(tuple(sorted(stored, key=lambda shard: shard.uri)), item_bytes, fingerprint)

    @property
    def keys(self) -> set[str]:
        """Keys of all files."""
        return {item.key for shard in self.shards for item in shard.items}

    def to_bytes(self) -> bytes:
        """JSON: a line of settings, then one line a shard."""
        head = {"version": _VERSION, "item_bytes": self.item_bytes, "fingerprint": self.fingerprint}
        lines = [json.dumps(head)]
        for shard in self.shards:
            items = [dataclasses.astuple(item) for item in shard.items]
            lines.append(
                json.dumps(
                    {
                        "shard": shard.uri,
                        "format": shard.format,
                        "size": shard.size,
                        "fingerprint": shard.fingerprint,
                        "items": items,
                    },
                    ensure_ascii=False,
                )
            )
        return "".join(f"{line}\n" for line in lines).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Parses `to_bytes`'s output.

        Raises:
            ValueError: not a manifest, or of another version.
        """
        try:
            head, *lines = [json.loads(line) for line in data.splitlines()]  # of bytes: a name may hold U+2028
            if head["version"] != _VERSION:
                raise ValueError(f"version {head['version']}; this program reads version {_VERSION}")
            shards = tuple(
                StoredShard(
                    line["shard"],
                    line["format"],
                    line["size"],
                    line["fingerprint"],
                    tuple(StoredItem(*item) for item in line["items"]),
                )
                for line in lines
            )
            return cls(shards, head["item_bytes"], head["fingerprint"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a manifest ({error!r})") from error


def uri(index: Index, keys: Iterable[str]) -> str:
    """Where the manifest of the snapshot with these files lies."""
    digest = hashlib.sha256("".join(f"{key}\n" for key in sorted(keys)).encode()).hexdigest()[:32]
    return storage.join(index.uri, FOLDER, f"{digest}.jsonl")


def save(index: Index, manifest: Manifest) -> None:
    """Writes the manifest; to be called before its snapshot is committed. One that is there already is left alone."""
    where, data = uri(index, manifest.keys), manifest.to_bytes()
    if not storage.exists(where) or storage.read_bytes(where) != data:
        checksums.record(index.uri, where[len(index.uri) + 1 :], Checksum.of_bytes(data))
        storage.write_bytes(where, data)


def load(index: Index, snapshot: Snapshot) -> Manifest:
    """The snapshot's manifest; one that is missing or damaged is made from the metadata of the snapshot's files.

    Raises:
        TrackStarError: one of the snapshot's files is gone or damaged, where they have to be asked.
    """
    keys = {file.key for file in snapshot.files}
    where = uri(index, keys)
    if storage.exists(where):
        try:
            manifest = Manifest.from_bytes(storage.read_bytes(where))
            if manifest.keys == keys:
                return manifest
            reason = "it names other files than the snapshot"
        except ValueError as error:
            reason = str(error)
        _LOGGER.warning("%s: damaged (%s); the files of the snapshot are asked instead", where, reason)
    return _from_files(index, snapshot)


def _from_files(index: Index, snapshot: Snapshot) -> Manifest:
    if snapshot.files:
        _LOGGER.info("reading what %s files are made of (no manifest of this snapshot)", f"{len(snapshot.files):,}")
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_READERS) as pool:
        files = list(pool.map(lambda file: _footer(index, file.key), snapshot.files))
    by_shard: dict[str, list[ItemFile]] = {}
    for file in files:
        by_shard.setdefault(file.shard, []).append(file)
    shards = [_stored_shard(shard, of_shard) for shard, of_shard in sorted(by_shard.items())]
    by_content = any(":" in shard.fingerprint for shard in shards)
    return Manifest(tuple(shards), None, "content" if by_content else "modified")


def _footer(index: Index, key: str) -> ItemFile:
    file = index.has_item(key)
    if file is None:
        raise TrackStarError(
            f"{index.item_uri(key)}: the snapshot names this file and it is gone; run `trackstar build-index` again"
        )
    return file


def _stored_shard(uri: str, files: Sequence[ItemFile]) -> StoredShard:
    """What the metadata of its files says of a shard. Files that say nothing, or not the same, leave its version unknown."""
    versions = {file.metadata.get("fingerprint", "") for file in files}
    items = [
        StoredItem(file.key, int(file.metadata.get("start", 0)), int(file.metadata.get("end", 0))) for file in files
    ]
    items.sort(key=lambda item: (item.start, item.end, item.key))
    format = format_of(uri) or "jsonl"
    size = 0 if format == "parquet" else max(item.end for item in items)
    return StoredShard(uri, format, size, versions.pop() if len(versions) == 1 else "", tuple(items))
