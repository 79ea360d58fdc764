"""The Delta log of the table of encodings: which files are in it, version by version.

The log is read and written by the package deltalake. Locally it works on the table's folder. For an object store the log,
which is small, is mirrored into a temporary folder, changed there, and what is new is uploaded: so that everything reaches the
store through `trackstar.storage`, with the same credentials, errors and emulator.
"""

import contextlib
import json
import tempfile
import time
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


class DeltaLog:
    """The log of the table at `uri`."""

    def __init__(self, uri: str):
        self.uri = uri

    def versions(self) -> list[int]:
        """All versions that can be read, ascending; empty without a table."""
        with self._folder() as folder:
            table = self._table(folder)
            return [] if table is None else sorted(entry["version"] for entry in table.history())

    def files(self, version: int | None = None) -> tuple[int, list[dict[str, Any]]] | None:
        """The version's number and its files, each with `path`, `size_bytes`, `num_records`, `shard`; None without a table.

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
            actions: list[AddAction | RemoveAction] = [files[path] for path in files if path not in present]
            actions += [_remove(path, present[path]["size_bytes"]) for path in present if path not in files]
            if actions:
                # "append" keeps what no action mentions; removals stand in the same commit.
                table.create_write_transaction(actions, mode="append", schema=delta_schema)

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
        with tempfile.TemporaryDirectory(prefix="trackstar-log-") as folder:
            log = Path(folder) / _LOG
            log.mkdir()
            for info in storage.list(storage.join(self.uri, _LOG)):
                (log / info.uri.rsplit("/", 1)[-1]).write_bytes(storage.read_bytes(info.uri))
            before = _contents(log)
            yield folder
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


def add_action(path: str, shard: str, num_rows: int, num_bytes: int) -> AddAction:
    """What the log says of a file. Its shard stands there as the smallest and largest value of the column `shard`."""
    bounds = {"shard": shard}
    stats = {"numRecords": num_rows, "minValues": bounds, "maxValues": bounds, "nullCount": {"shard": 0}}
    return AddAction(path, num_bytes, {}, _now(), True, json.dumps(stats))


def _remove(path: str, num_bytes: int) -> RemoveAction:
    return RemoveAction(path, data_change=True, deletion_timestamp=_now(), size=num_bytes)


def _files(table: DeltaTable) -> list[dict[str, Any]]:
    actions = pa.table(table.get_add_actions(flatten=True))
    if not actions.num_rows:
        return []
    wanted = actions.select(["path", "size_bytes", "num_records", "min.shard"])
    return wanted.rename_columns(["path", "size_bytes", "num_records", "shard"]).to_pylist()


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _now() -> int:
    """Milliseconds since 1970, as the log wants them."""
    return time.time_ns() // 1_000_000
