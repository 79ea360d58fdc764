"""The index: a folder of immutable files, one a work item, and a Delta table that says which of them count.

    spec.json                   all that determines an encoding; its hash is the index's identity
    superseded_by.json          the index that took this one's place, if one did
    second_moments.safetensors  V of each weight, where gradients are divided by it
    projections.safetensors     whitened projections, where the spec has them
    preconditioner/             R_train
    encodings/<key>.parquet     one file a work item, flat; plain Parquet
    encodings/_delta_log/       which files are in the index, version by version
    rejects/<key>.jsonl         records of the item that could not be encoded, each with its reason
    removed/                    what was taken down (`removal`)
    checksums/<path>.json       what each of these files was when it was written

The Delta table has no partition columns. A commit names the files it adds and the files it removes, so it needs none to
replace one shard's files in a single transaction; and `shard`, being an ordinary column of every file, reads the same
through Delta (pyarrow, Polars) as from the bare files (DuckDB). Each file's log entry carries its row count and, as
minimum and maximum, its shard: a reader that filters by shard skips the other files.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trackstar import checksums, storage
from trackstar.checksums import Checksum
from trackstar.corpus import Reject
from trackstar.delta_log import DeltaLog, Retained, add_action, now
from trackstar.errors import TrackStarError
from trackstar.item_footer import ItemFile, arrow_schema, read_item_file
from trackstar.spec import Spec

if TYPE_CHECKING:
    from trackstar.encodings import Encodings

SUPERSEDED = "superseded_by.json"
"""Names the index that took this one's place."""
_SUFFIX = ".parquet"
_LONGEST_CHAIN = 32
LOG_PATH = "encodings/_delta_log"
"""The table's log, relative to the index."""
_WRITTEN_UNDER_LOCK = ("encodings", "rejects", "failures", "manifests", "checksums/encodings", "checksums/rejects")
"""Folders that nothing writes to but the run that holds the lock."""

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One file of a snapshot.

    Args:
        uri: Where it lies.
        shard: URI of the corpus shard that it was made from.
        num_rows: Examples in it.
        num_bytes: Its size.
        committed: When it was committed, in seconds since 1970; 0 where that is not known.
    """

    uri: str
    shard: str
    num_rows: int
    num_bytes: int
    committed: float = 0.0

    @property
    def key(self) -> str:
        """Key of the work item."""
        return self.uri.rsplit("/", 1)[-1].removesuffix(_SUFFIX)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One committed state of the index: its version and its files, sorted by URI."""

    version: int
    files: list[DataFile]

    @property
    def num_rows(self) -> int:
        """Examples in the snapshot."""
        return sum(file.num_rows for file in self.files)

    @property
    def num_bytes(self) -> int:
        """Bytes of the snapshot's files."""
        return sum(file.num_bytes for file in self.files)


class Index:
    """An index at `uri`, a local folder or an object store's prefix.

    Use `Index.create` for a new one and `Index.open` for one that exists.
    """

    def __init__(self, uri: str, spec: Spec):
        self.uri = storage.normalise(uri)
        self.spec = spec
        self._encodings = storage.join(self.uri, "encodings")
        self._log = DeltaLog(self._encodings)

    @classmethod
    def create(cls, uri: str, spec: Spec) -> "Index":
        """Writes `spec.json`; an index with an equal spec is opened as it is.

        Raises:
            TrackStarError: an index with another spec lies there already; the message lists the fields that differ.
        """
        where = storage.join(uri, "spec.json")
        if storage.exists(where):
            index = cls.open(uri, follow=False)
            if index.spec.hash != spec.hash:
                lines = "\n  ".join(index.spec.differences(spec))
                raise TrackStarError(
                    f"{uri}: an index with other settings is there already; give another --index, or delete it:\n  {lines}"
                )
            return index
        if storage.exists(storage.join(uri, SUPERSEDED)):
            raise TrackStarError(f"{uri}: another index took this one's place ({SUPERSEDED}): give another --index")
        storage.makedirs(storage.join(uri, "encodings"))
        storage.makedirs(storage.join(uri, "rejects"))
        index = cls(uri, spec)
        fitted = [info.uri[len(index.uri) + 1 :] for info in storage.list(storage.join(index.uri, "preconditioner"))]
        checksums.record_files(
            index.uri, ["second_moments.safetensors", "projections.safetensors", "fit.json", *fitted]
        )
        content = spec.to_json().encode()
        checksums.record(index.uri, "spec.json", Checksum.of_bytes(content))
        storage.write_bytes(where, content)
        return index

    @classmethod
    def open(cls, uri: str, follow: bool = True) -> "Index":
        """Opens the index at `uri`, or the one that has taken its place.

        Args:
            uri: Folder or prefix.
            follow: Whether `superseded_by.json` is followed; without, the index that lies there is opened.

        Raises:
            TrackStarError: there is none, or its spec cannot be read.
        """
        uri = _successor(uri) if follow else uri
        where = storage.join(uri, "spec.json")
        if not storage.exists(where):
            raise TrackStarError(f"{uri}: no index here (no spec.json); run `trackstar fit` first, or check --index")
        return cls(uri, Spec.from_json(storage.read_bytes(where).decode(), where))

    def supersede(self, old: "Index") -> None:
        """Makes whoever opens the index `old` from now on open this one. Readers that have `old` open keep reading it."""
        storage.delete(storage.join(self.uri, SUPERSEDED))  # where one goes back to an older index
        note = {"index": self.uri, "spec": self.spec.hash, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        storage.write_bytes(storage.join(old.uri, SUPERSEDED), (json.dumps(note, indent=1) + "\n").encode())

    # Items.

    @staticmethod
    def item_path(key: str) -> str:
        """The item's file, relative to the index."""
        return f"encodings/{key}{_SUFFIX}"

    @staticmethod
    def rejects_path(key: str) -> str:
        """The item's rejected records, relative to the index."""
        return f"rejects/{key}.jsonl"

    def item_uri(self, key: str) -> str:
        """Where the file of the work item `key` lies, or will."""
        return storage.join(self._encodings, key + _SUFFIX)

    def has_item(self, key: str) -> ItemFile | None:
        """The item's file if it is complete, else None.

        Raises:
            TrackStarError: the file is there but cannot be read.
        """
        uri = self.item_uri(key)
        source = storage.open_if_there(uri)
        if source is None:
            return None
        with source:
            return read_item_file(key, uri, source, source.size())

    def existing_keys(self) -> set[str]:
        """Keys of all item files that lie in the index, committed or not: one listing instead of a question an item."""
        start = len(self._encodings) + 1
        names = (info.uri[start:] for info in storage.list(self._encodings))
        return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX) and "/" not in name}

    def write_item(
        self, key: str, shard: str, batches: "Iterator[Encodings]", footer: Callable[[], dict[str, str]]
    ) -> ItemFile:
        """Writes one work item's file, streaming; nothing appears under the item's name until it is complete.

        Args:
            key: The work item's key.
            shard: URI of its shard.
            batches: Its examples, in the order in which they are stored.
            footer: Called after the last batch: counts and whatever else the file's metadata shall say.
        """
        # Here, because whoever has encodings to write has torch loaded, and all that only look into an index do without.
        from trackstar.item_file import write_parquet

        uri = self.item_uri(key)
        with storage.staged(uri) as path:
            write_parquet(str(path), self.spec, shard, batches, footer)
            with path.open("rb") as source:
                item = read_item_file(key, uri, source, path.stat().st_size)
            checksums.record(self.uri, self.item_path(key), Checksum.of_local(path))
        return item

    def remove_partial_files(self) -> int:
        """Removes what killed runs left half-written in a local index; call it only while nothing else writes.

        Returns:
            How many files were removed.
        """
        folder = storage.local_path(self.uri)
        if folder is None:
            return 0
        partials = [path for name in _WRITTEN_UNDER_LOCK for path in (folder / name).glob(".*.tmp")]
        partials += (folder / LOG_PATH).glob("*.json#*")  # entries that deltalake had not given their name yet
        for partial in partials:
            partial.unlink(missing_ok=True)
        return len(partials)

    # Rejects.

    def write_rejects(self, key: str, rejects: Sequence[Reject]) -> None:
        """Writes the item's rejected records, one JSON object a line; no file where there are none."""
        uri = self._rejects_uri(key)
        if rejects:
            lines = [json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n" for reject in rejects]
            content = "".join(lines).encode("utf-8", "backslashreplace")
            checksums.record(self.uri, self.rejects_path(key), Checksum.of_bytes(content))
            storage.write_bytes(uri, content)

    def rejects(self, keys: Iterable[str] | None = None) -> Iterator[Reject]:
        """The rejected records of the items `keys`; without keys, of the last snapshot's items."""
        if keys is None:
            keys = [file.key for file in self.snapshot().files] if self.versions() else []
        present = self.keys_with_rejects()
        for key in keys:
            if key in present:
                yield from self.rejects_of(key)

    def rejects_of(self, key: str) -> list[Reject]:
        """The rejected records of one item."""
        uri = self._rejects_uri(key)
        if not storage.exists(uri):
            return []
        # Lines of bytes: a text may hold U+2028.
        return [Reject(**json.loads(line)) for line in storage.read_bytes(uri).splitlines()]

    def keys_with_rejects(self) -> set[str]:
        """Keys of the items of which some records were rejected: one listing."""
        names = (info.uri.rsplit("/", 1)[-1] for info in storage.list(storage.join(self.uri, "rejects")))
        return {name.removesuffix(".jsonl") for name in names}

    def _rejects_uri(self, key: str) -> str:
        return storage.join(self.uri, self.rejects_path(key))

    # Snapshots.

    def commit(self, items: Sequence[ItemFile | DataFile]) -> int:
        """Makes the index hold exactly the files of `items`, in one transaction.

        Files that stay are not mentioned, so a nightly commit is as small as what changed. If nothing changed, no
        version is added. Files that drop out stay on disk, for readers of older versions, until the table is vacuumed.

        Returns:
            The version that holds exactly these files.

        Raises:
            TrackStarError: the log cannot be written, or another run committed at the same time.
        """
        committed = now()
        wanted = {
            item.key + _SUFFIX: add_action(item.key + _SUFFIX, item.shard, item.num_rows, item.num_bytes, committed)
            for item in items
        }
        if not storage.list(
            storage.join(self.uri, LOG_PATH)
        ):  # what was kept of a log that was lost is of no use to this one
            storage.delete(storage.join(self.uri, checksums.FOLDER, LOG_PATH))
        self._log.replace(arrow_schema(self.spec), wanted, f"TrackStar encodings, spec {self.spec.hash}")
        self.record_log()
        snapshot = self.snapshot()
        if {file.key + _SUFFIX for file in snapshot.files} != set(wanted):
            raise TrackStarError(
                f"{self.uri}: another run committed at the same time; let one run at a time write, and run this again"
            )
        return snapshot.version

    def record_log(self) -> None:
        """Keeps checksums of what is new in the table's log; call it after every commit."""
        start = len(self.uri) + 1
        paths = [info.uri[start:] for info in storage.list(storage.join(self.uri, LOG_PATH))]
        known = checksums.recorded_paths(self.uri, LOG_PATH)
        # A name that begins with "_" is written anew by every checkpoint.
        checksums.record_files(
            self.uri, [path for path in paths if path not in known or path.rsplit("/", 1)[-1].startswith("_")]
        )

    def delete_item(self, key: str) -> None:
        """Deletes an item's file, its rejected records and their checksums: what is left of it is its entry in the log."""
        for path in (self.item_path(key), self.rejects_path(key)):
            storage.delete(storage.join(self.uri, path))
            storage.delete(checksums.uri_of(self.uri, path))

    def retained(self, since: float) -> Retained | None:
        """What readers of snapshots that were the last one at or after `since` need; None before the first commit."""
        return self._log.retained(since)

    def forget_versions(self, first: int) -> None:
        """Shortens the log to the versions from `first` on; it takes effect with a call an hour later or more."""
        for name in self._log.forget(first):
            storage.delete(checksums.uri_of(self.uri, f"{LOG_PATH}/{name}"))
        self.record_log()

    def versions(self) -> list[int]:
        """All versions that were committed and not cleaned up, ascending; empty before the first commit."""
        return self._log.versions()

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The files of `version`, by default the last.

        Raises:
            TrackStarError: nothing was committed yet, or there is no such version.
        """
        found = self._log.files(version)
        if found is None:
            versions = self.versions()
            if versions:
                raise TrackStarError(f"{self.uri}: there is no version {version} any more; the oldest is {versions[0]}")
            raise TrackStarError(f"{self.uri}: nothing was committed yet; run `trackstar build-index` first")
        number, entries = found
        files = [
            DataFile(
                storage.join(self._encodings, entry["path"]),
                entry["shard"],
                entry["num_records"],
                entry["size_bytes"],
                entry["committed"] / 1000,
            )
            for entry in entries
        ]
        return Snapshot(number, sorted(files, key=lambda file: file.uri))


def _successor(uri: str) -> str:
    """The index that took the place of the one at `uri`, or of its successor, and so on; `uri` itself where none did."""
    current = uri
    for _ in range(_LONGEST_CHAIN):
        where = storage.join(current, SUPERSEDED)
        if not storage.exists(where):
            if current != uri:
                _LOGGER.info("%s: superseded by %s, which is used instead", uri, current)
            return current
        try:
            current = str(json.loads(storage.read_bytes(where))["index"])
        except (ValueError, KeyError, TypeError) as error:
            raise TrackStarError(
                f"{where}: damaged ({error!r}); delete it, or name the newer index as --index"
            ) from error
    raise TrackStarError(f"{uri}: its {SUPERSEDED} leads in a circle; delete the one in the index that is to be used")
