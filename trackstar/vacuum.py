"""Retention: what no snapshot needs any more goes away.

A snapshot that was the last one at some time within the retention stays readable, file for file. What was in older ones alone
is deleted, and so is what killed runs left behind, once it is a day old: younger, it may be a failed run's work that the next
one takes up. What was taken down knows no retention: its files go as soon as the last snapshot does without them, and older
snapshots that name them cannot be read any more. To be called while holding the index's `WriteLock`.
"""

import concurrent.futures
import contextlib
import dataclasses
import time

from trackstar import checksums, manifest, storage
from trackstar.amounts import human_bytes
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.removed_items import files_to_purge
from trackstar.storage import FileInfo

_DAY = 86400.0
_DELETERS = 16
_SUFFIX = ".parquet"
_WORK_FOLDERS = ("queries", "failures")
"""What runs write for themselves and delete at their end."""


@dataclasses.dataclass(frozen=True)
class VacuumPlan:
    """What a vacuum deletes.

    Args:
        first: The oldest version that stays readable; None before the first commit.
        last: The newest.
        items: Files of encodings.
        others: Rejects and manifests of what is gone, and leftovers of killed runs.
    """

    first: int | None
    last: int | None
    items: tuple[FileInfo, ...]
    others: tuple[FileInfo, ...]
    taken_down: int = 0
    """How many of the files of encodings hold what was taken down."""

    @property
    def num_bytes(self) -> int:
        """Bytes that become free."""
        return sum(info.size for info in [*self.items, *self.others])

    def describe(self) -> str:
        """One line for people."""
        what = f"{len(self.items):,} files of encodings and {len(self.others):,} others ({human_bytes(self.num_bytes)})"
        if self.first is None:
            return what
        but = f", but for {self.taken_down:,} files with something that was taken down" if self.taken_down else ""
        return f"{what}; versions {self.first} to {self.last} stay readable{but}"


def plan_vacuum(index: Index, days: float, now: float | None = None) -> VacuumPlan:
    """Finds what no snapshot of the last `days` days needs.

    Args:
        index: The index.
        days: Snapshots that were the last one within so many days stay; with 0, the last one alone.
        now: Seconds since 1970; the present by default.
    """
    now = time.time() if now is None else now
    retained = index.retained(now - days * _DAY)
    old = now - max(days, 1) * _DAY
    needed = {path.removesuffix(_SUFFIX) for path in retained.paths} if retained else set()
    dropped = {path.removesuffix(_SUFFIX) for path in retained.dropped} if retained else set()

    taken_down = files_to_purge(index)

    def goes(info: FileInfo, suffix: str) -> bool:
        key = info.uri.rsplit("/", 1)[-1].removesuffix(suffix)
        return key in taken_down or (key not in needed and (key in dropped or info.modified < old))

    files = storage.list(storage.join(index.uri, "encodings"))
    items = [info for info in files if _is_item(index, info) and goes(info, _SUFFIX)]
    others = [info for info in storage.list(storage.join(index.uri, "rejects")) if goes(info, ".jsonl")]
    current = manifest.uri(index, (file.key for file in index.snapshot().files)) if retained else ""
    manifests = storage.list(storage.join(index.uri, manifest.FOLDER))
    others += [info for info in manifests if info.uri != current and info.modified < now - _DAY]
    for folder in _WORK_FOLDERS:
        others += [info for info in storage.list(storage.join(index.uri, folder)) if info.modified < old]
    others += _temporary_files(index, now - _DAY)
    first, last = (retained.first, retained.last) if retained else (None, None)
    return VacuumPlan(first, last, tuple(items), tuple(others), len(taken_down & needed))


def vacuum(index: Index, plan: VacuumPlan) -> None:
    """Deletes what was planned, and shortens the log of versions; a file that is gone already is no error.

    Raises:
        TrackStarError: something cannot be deleted; what else was planned goes, and another run finds the rest.
    """
    keys = [info.uri.rsplit("/", 1)[-1].removesuffix(_SUFFIX) for info in plan.items]
    with concurrent.futures.ThreadPoolExecutor(_DELETERS) as pool:
        tasks = [pool.submit(index.delete_item, key) for key in keys]
        tasks += [pool.submit(storage.delete, info.uri) for info in plan.others]
        paths = [info.uri[len(index.uri) + 1 :] for info in plan.others]
        tasks += [pool.submit(storage.delete, checksums.uri_of(index.uri, path)) for path in paths]
    for task in tasks:
        task.result()
    if plan.first is not None:
        index.forget_versions(plan.first)


def _is_item(index: Index, info: FileInfo) -> bool:
    folder, _, name = info.uri.rpartition("/")
    return name.endswith(_SUFFIX) and folder == storage.join(index.uri, "encodings")


def _temporary_files(index: Index, before: float) -> list[FileInfo]:
    """Files that killed runs left half-written; an object store shows none."""
    root = storage.local_path(index.uri)
    found = []
    for path in sorted(root.rglob(".*.tmp")) if root else []:
        with contextlib.suppress(TrackStarError):  # gone since it was listed
            info = storage.info(str(path))
            if info.modified < before:
                found.append(info)
    return found
