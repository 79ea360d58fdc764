"""The Delta log of the table of encodings: which files are in it, version by version.

The log is read and written by the package deltalake. Locally it works on the table's folder. For an object store the log,
which is small, is mirrored into a temporary folder, changed there, and what is new is uploaded: so that everything reaches the
store through `trackstar.storage`, with the same credentials, errors and emulator.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from trackstar import storage
from trackstar.errors import TrackStarError

_LOG = "_delta_log"
_NUMBERED = re.compile(r"(\d{20})\.")
_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
_SETTLED_SECONDS = 3600.0
_READERS = 16


@dataclasses.dataclass(frozen=True)
class Retained:
    """What a vacuum has to leave.

    Args:
        first: The oldest version that stays readable.
        last: The newest.
        paths: Files of all versions from `first` to `last`.
        dropped: Files that were in an older version and are in none of these.
    """

    first: int
    last: int
    paths: set[str]
    dropped: set[str]


class DeltaLog:
    """The log of the table at `uri`."""

    def __init__(self, uri: str):
        self.uri = uri

    def versions(self) -> list[int]:
        """All versions that can be read, ascending; empty without a table."""
        # The entries' names and not deltalake's `history`, which counts back from the version that it saw last: where a
        # commit comes in between, its numbers are one too low.
        with self._folder() as folder:
            log = Path(folder) / _LOG
            names = (path.name for path in log.iterdir()) if log.is_dir() else iter(())
            return sorted(int(found[1]) for name in names if (found := _ENTRY.fullmatch(name)))

    def files(self, version: int | None = None) -> tuple[int, list[dict[str, Any]]] | None:
        """The version's number and its files, each with `path`, `size_bytes`, `num_records`, `shard` and `committed`, its time
        in milliseconds since 1970; None without a table.

        Raises:
            TrackStarError: there is no such version, or the log cannot be read.
        """
        with self._folder() as folder:
            table = self._table(folder, version)
            return None if table is None else (table.version(), _files(table))

    def replace(self, schema: pa.Schema, files: Mapping[str, AddAction], name: str) -> None:
        """One transaction after which the table holds exactly `files`; none if it does already.

        Args:
            schema: The files' columns.
            files: By path, the action that adds each file.
            name: Description of the table, for a new one.
        """
        with self._folder() as folder, self._explained("the commit failed"):
            table = self._table(folder)
            delta_schema = Schema.from_arrow(schema)
            if table is None:
                create_table_with_add_actions(folder, delta_schema, list(files.values()), description=name)
                return
            present = {file["path"]: file for file in _files(table)}
            # A file of another size than the log says was written anew: its entry is, too.
            actions: list[AddAction | RemoveAction] = [
                action
                for path, action in files.items()
                if path not in present or present[path]["size_bytes"] != action.size
            ]
            actions += [_remove(path, present[path]["size_bytes"]) for path in present if path not in files]
            if actions:
                # "append" keeps what no action mentions; removals stand in the same commit.
                table.create_write_transaction(actions, mode="append", schema=delta_schema)

    def retained(self, since: float) -> "Retained | None":
        """What readers of snapshots need that were the last one at or after `since`, seconds since 1970; None without a table."""
        with self._folder() as folder:
            table = self._table(folder)
            if table is None:
                return None
            written = sorted((entry["version"], entry.get("timestamp", 0) / 1000) for entry in table.history())
            # A version was the last one until the next was committed.
            ended = [(version, after) for (version, _), (_, after) in itertools.pairwise(written)]
            first = next((version for version, end in ended if end >= since), table.version())
            oldest = min((version for version, _ in written), default=first)
            earlier, needed = self._paths(folder, oldest), self._paths(folder, first)
            for version, _ in written:
                if version > oldest:
                    added = _added(Path(folder) / _LOG, version)
                    earlier |= added
                    needed |= added if version > first else set()
            return Retained(first, table.version(), needed, earlier - needed)

    def forget(self, first: int) -> list[str]:
        """Shortens the log to the versions from `first` on.

        That is done in two steps, so that a reader that has just listed the log finds what it listed: this call writes a
        checkpoint, and one an hour later or more removes what the checkpoint made superfluous.

        Returns:
            Names of the log's files that were removed.
        """
        checkpoints = {}
        for info in storage.list(storage.join(self.uri, _LOG)):
            if match := _CHECKPOINT.fullmatch(info.uri.rsplit("/", 1)[-1]):
                checkpoints[int(match[1])] = info
        usable = [version for version in checkpoints if version <= first]
        settled = [version for version in usable if checkpoints[version].modified < time.time() - _SETTLED_SECONDS]
        removed = []
        for info in storage.list(storage.join(self.uri, _LOG)) if settled else ():
            name = info.uri.rsplit("/", 1)[-1]
            number = _NUMBERED.match(name)
            if number and int(number[1]) < max(settled):
                storage.delete(info.uri)
                removed.append(name)
        if first not in usable and self.versions()[0] < first:
            with self._folder() as folder, self._explained("the log cannot be shortened"):
                DeltaTable(folder, version=first).create_checkpoint()
        return removed

    def _paths(self, folder: str, version: int) -> set[str]:
        table = self._table(folder, version)
        return set() if table is None else {file["path"] for file in _files(table)}

    def _table(self, folder: str, version: int | None = None) -> DeltaTable | None:
        try:
            return DeltaTable(folder, version=version)
        except TableNotFoundError:
            return None
        except DeltaError as error:
            what = "the log cannot be read" if version is None else f"there is no version {version}"
            raise TrackStarError(f"{self.uri}: {what} ({error})") from error

    @contextlib.contextmanager
    def _folder(self) -> Iterator[str]:
        """A local folder with the log in it; what the block adds to it is in the table when the block ends."""
        path = storage.local_path(self.uri)
        if path is not None:
            yield str(path)
            return
        with storage.scratch_folder(f"to hold the log of {self.uri}") as folder:
            log = folder / _LOG
            log.mkdir()
            infos = storage.list(storage.join(self.uri, _LOG))
            with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
                contents = pool.map(lambda info: storage.read_bytes(info.uri), infos)
                for info, content in zip(infos, contents, strict=True):
                    (log / info.uri.rsplit("/", 1)[-1]).write_bytes(content)
            before = _contents(log)
            yield str(folder)
            after = _contents(log)
            # Commits first, in their order; checkpoints, which only shorten the reading of them, after.
            for name in sorted(after, key=lambda name: (not name.endswith(".json"), name)):
                if before.get(name) != after[name]:
                    self._upload(name, after[name])

    def _upload(self, name: str, data: bytes) -> None:
        target = storage.join(self.uri, _LOG, name)
        if not name.endswith(".json"):
            storage.write_bytes(target, data)
        elif not storage.create_exclusive(target, data):
            raise TrackStarError(f"{self.uri}: another run committed at the same time; run this again")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (DeltaError, OSError) as error:
            raise TrackStarError(f"{self.uri}: {what} ({error}); run the command again") from error


def add_action(path: str, shard: str, num_rows: int, num_bytes: int, committed: int) -> AddAction:
    """What the log says of a file. Its shard stands there as the smallest and largest value of the column `shard`.

    Args:
        path: In the table's folder.
        shard: Of all its rows.
        num_rows: Rows.
        num_bytes: Its size.
        committed: Milliseconds since 1970, the same for all files of a commit.
    """
    bounds = {"shard": shard}
    stats = {"numRecords": num_rows, "minValues": bounds, "maxValues": bounds, "nullCount": {"shard": 0}}
    return AddAction(path, num_bytes, {}, committed, True, json.dumps(stats))


def _remove(path: str, num_bytes: int) -> RemoveAction:
    return RemoveAction(path, data_change=True, deletion_timestamp=now(), size=num_bytes)


def _files(table: DeltaTable) -> list[dict[str, Any]]:
    actions = pa.table(table.get_add_actions(flatten=True))
    if not actions.num_rows:
        return []
    columns = {
        "path": "path",
        "size_bytes": "size_bytes",
        "num_records": "num_records",
        "min.shard": "shard",
        "modification_time": "committed",
    }
    missing = columns.keys() - set(actions.column_names)
    if missing or any(actions[name].null_count for name in columns):
        raise TrackStarError(
            f"{table.table_uri}: the log does not say of every file its path, size, rows and shard; was the table written by "
            "another program, or is its log damaged? `trackstar verify` tells"
        )
    return actions.select(list(columns)).rename_columns(list(columns.values())).to_pylist()


def _added(log: Path, version: int) -> set[str]:
    """Paths of the files that a commit added."""
    lines = (log / f"{version:020d}.json").read_bytes().splitlines()
    actions = [json.loads(line) for line in lines if line.startswith(b'{"add"')]
    return {urllib.parse.unquote(action["add"]["path"]) for action in actions}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def now() -> int:
    """Milliseconds since 1970, as the log wants them."""
    return time.time_ns() // 1_000_000
