"""Finds what of an index is not as it was written: damaged, missing and foreign files.

Every file was hashed when it was written (`checksums`); here each is read through once and compared. What the log says of an
item's file (shard, rows, bytes) must fit too, and what the spec names by content must have that content. Memory is bounded by
one buffer, whatever the index's size.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Literal

from trackstar import checksums, manifest, removal, removed_items, second_moments, storage, whitening
from trackstar.checksums import Checksum
from trackstar.errors import TrackStarError
from trackstar.index import LOG_PATH, DataFile, Index
from trackstar.item_footer import read_item_file
from trackstar.preconditioner import Preconditioner

Kind = Literal["missing", "truncated", "changed", "foreign", "unreadable", "unrecorded", "log"]
"""missing: named and not there; truncated: shorter than it was; changed: other bytes than were written; foreign: not of this
index; unreadable: the disk or the store gives an error; unrecorded: no checksum was kept of it; log: the table's log is wrong."""
REPAIRABLE: tuple[Kind, ...] = ("missing", "truncated", "changed", "unrecorded")
_KEY = re.compile(r"[0-9a-f]{32}")
_VERSION = re.compile(r"(\d{20})\.")


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """One file that is not as it should be.

    Args:
        path: The file, relative to the index.
        kind: What is wrong.
        what: The same in words.
        key: The work item that it belongs to; empty for files of the index as a whole.
    """

    path: str
    kind: Kind
    what: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Check:
    """One item's file that is to be checked.

    Args:
        key: The item's.
        num_bytes: What the log or, for files that no snapshot names, the listing says; for progress.
        named: What the last snapshot's log says of it; None where that does not name it.
    """

    key: str
    num_bytes: int
    named: DataFile | None


def checks(index: Index, log_is_whole: bool = True) -> tuple[list[Check], list[Finding]]:
    """What there is to check among the items' files, and which files do not belong there.

    Files that only older snapshots name, or none, are checked too: a later run may take them up.

    Args:
        index: The index.
        log_is_whole: Whether `check_log` found nothing. If not, the log is not asked which files there should be.
    """
    named = {file.key: file for file in index.snapshot().files} if log_is_whole and index.versions() else {}
    folder = storage.join(index.uri, "encodings")
    found, foreign = [], []
    for info in storage.list(folder):
        path = info.uri[len(storage.normalise(folder)) + 1 :]
        key = path.removesuffix(".parquet")
        if path.startswith("_delta_log/") or (info.uri == index.item_uri(key) and key in named):
            continue
        if _KEY.fullmatch(key) and path.endswith(".parquet"):
            found.append(Check(key, info.size, None))
        else:
            what = "not a file of this index; readers of the folder may take it for one: move it away"
            foreign.append(Finding(f"encodings/{path}", "foreign", what))
    found += [Check(key, file.num_bytes, file) for key, file in named.items()]
    return sorted(found, key=lambda check: check.key), foreign


def check_item(index: Index, check: Check, tell: Callable[[int], None] = lambda num_bytes: None) -> list[Finding]:
    """Reads an item's file and its rejected records through, and compares them with what was written.

    Args:
        index: The index.
        check: What to check.
        tell: Told, now and then, how many bytes of the file have been read.
    """
    findings = _compare(index, index.item_path(check.key), check.key, tell)
    if not findings:
        findings = _against_log(index, check)
    path = index.rejects_path(check.key)
    if storage.exists(storage.join(index.uri, path)) or storage.exists(checksums.uri_of(index.uri, path)):
        findings += _compare(index, path, check.key)
    return findings


def check_settings(index: Index) -> list[Finding]:
    """Compares what is not an item's and cannot be made again: what `fit` wrote, and the take-downs."""
    names = ["spec.json", "fit.json", "second_moments.safetensors", "projections.safetensors"]
    present = [name for name in names if storage.exists(storage.join(index.uri, name))]
    known = {path for path in checksums.recorded_paths(index.uri, "") if "/" not in path}
    start = len(index.uri) + 1
    blocks = {info.uri[start:] for info in storage.list(storage.join(index.uri, "preconditioner"))}
    blocks |= checksums.recorded_paths(index.uri, "preconditioner")
    findings = []
    for path in sorted({*present, *known, *blocks}):
        findings += _compare(index, path, "")
    if not findings:
        findings += _content(index)
    for info in storage.list(storage.join(index.uri, manifest.FOLDER)):
        findings += _compare(index, info.uri[start:], "")
    try:
        removal.take_downs(index.uri)
        removed_items.written_without(index)
        removed_items.all_hits(index)
    except TrackStarError as error:
        findings.append(Finding(removal.FOLDER, "changed", str(error)))
    return findings


def check_log(index: Index) -> list[Finding]:
    """Compares the table's log with what was committed, entry by entry, and reads it."""
    start = len(index.uri) + 1
    present = {info.uri[start:] for info in storage.list(storage.join(index.uri, LOG_PATH))}
    known = checksums.recorded_paths(index.uri, LOG_PATH)
    findings = []
    for path in sorted(present & known):
        findings += [dataclasses.replace(finding, kind="log") for finding in _compare(index, path, "")]
    # Entries that a checkpoint covers may be gone; the others may not.
    covered = max((_version(path) for path in present if path.endswith(".checkpoint.parquet")), default=-1)
    for path in sorted(known - present):
        if _version(path) > covered:
            findings.append(
                Finding(path, "log", "is gone: this version of the index was committed, and cannot be read")
            )
    for path in sorted(present - known):
        if _VERSION.match(path.rsplit("/", 1)[-1]) is None and not path.rsplit("/", 1)[-1].startswith("_"):
            findings.append(Finding(path, "foreign", "not a file of the table's log: move it away"))
    if not findings:
        try:
            if index.versions():
                index.snapshot()
        except TrackStarError as error:
            findings.append(Finding(LOG_PATH, "log", str(error)))
    return findings


def unrecorded_log(index: Index) -> list[str]:
    """Entries of the log without a checksum: a run broke off right after its commit, or another program wrote them."""
    start = len(index.uri) + 1
    present = {info.uri[start:] for info in storage.list(storage.join(index.uri, LOG_PATH))}
    return sorted(present - checksums.recorded_paths(index.uri, LOG_PATH))


def advice(findings: Sequence[Finding]) -> list[str]:
    """What to do about findings, a sentence for each kind of them."""
    lines = []
    of_items = [finding for finding in findings if finding.key and finding.kind in REPAIRABLE]
    if of_items:
        lines.append("items: `trackstar verify --repair --corpus … --model …` encodes those that are damaged again")
    if any(finding.kind == "log" for finding in findings):
        lines.append(
            f"the log: restore {LOG_PATH} from a backup; or delete that folder and run `trackstar build-index`, which encodes "
            "nothing again where the item files are there, and loses older versions alone"
        )
    if any(finding.path.startswith(manifest.FOLDER) for finding in findings):
        lines.append("manifests: delete these files; the next re-index makes what it needs of them from the item files")
    if any(_is_setting(finding) for finding in findings):
        lines.append(
            "settings: restore these files from a backup; or run `trackstar fit` with the same flags on the same corpus into "
            "an empty folder, compare spec.json, and copy them from there"
        )
    if any(finding.kind == "foreign" for finding in findings):
        lines.append("foreign files: move them out of the index")
    if any(finding.kind == "unreadable" for finding in findings):
        lines.append(
            "unreadable files: check disk, network and permissions, then verify again; nothing of them was touched"
        )
    return lines


def _is_setting(finding: Finding) -> bool:
    return (
        not finding.key
        and finding.kind in REPAIRABLE
        and not finding.path.startswith((manifest.FOLDER, removal.FOLDER))
    )


def save_findings(uri: str, findings: Sequence[Finding]) -> None:
    """Writes findings for the launcher."""
    content = "".join(json.dumps(dataclasses.asdict(finding)) + "\n" for finding in findings)
    storage.write_bytes(uri, content.encode())


def load_findings(folder: str) -> list[Finding]:
    """All findings that were saved below a folder, sorted."""
    lines = [line for info in storage.list(folder) for line in storage.read_bytes(info.uri).splitlines()]
    return sorted(Finding(**json.loads(line)) for line in lines)


def _compare(index: Index, path: str, key: str, tell: Callable[[int], None] = lambda num_bytes: None) -> list[Finding]:
    """One file against its checksum."""
    problem = _problem(index, path, tell)
    return [] if problem is None else [Finding(path, *problem, key)]


def _problem(index: Index, path: str, tell: Callable[[int], None]) -> tuple[Kind, str] | None:
    uri = storage.join(index.uri, path)
    problem: tuple[Kind, str] | None = None
    try:
        expected = checksums.recorded(index.uri, path)
    except TrackStarError as error:
        return "changed", f"its checksum is damaged ({error})"
    if not storage.exists(uri):
        problem = "missing", "is not there"
    elif expected is None:
        problem = "unrecorded", "no checksum was kept of it, so whether it is as it was written cannot be told"
    else:
        try:
            problem = _difference(Checksum.of(uri, tell), expected)
        except TrackStarError as error:
            problem = "unreadable", f"cannot be read: {error}"
    return problem


def _difference(found: Checksum, expected: Checksum) -> tuple[Kind, str] | None:
    if found == expected:
        return None
    if found.num_bytes < expected.num_bytes:
        return "truncated", f"truncated: {found.num_bytes:,} bytes of {expected.num_bytes:,}"
    extra = f", {found.num_bytes - expected.num_bytes:,} bytes longer" if found.num_bytes > expected.num_bytes else ""
    return "changed", f"its bytes are not those that were written{extra}"


def _against_log(index: Index, check: Check) -> list[Finding]:
    """What the log says of a file that is as it was written."""
    if check.named is None:
        return []
    path, uri = index.item_path(check.key), index.item_uri(check.key)
    size = storage.size(uri)
    try:
        with storage.open_input(uri) as source:
            item = read_item_file(check.key, uri, source, size)
    except TrackStarError as error:
        return [Finding(path, "changed", str(error), check.key)]
    said = (check.named.shard, check.named.num_rows, check.named.num_bytes)
    if said == (item.shard, item.num_rows, item.num_bytes):
        return []
    what = (
        f"the log says {said[1]:,} rows of {said[0]} in {said[2]:,} bytes of {check.key}.parquet; the file holds "
        f"{item.num_rows:,} rows of {item.shard} in {item.num_bytes:,} bytes"
    )
    return [Finding(LOG_PATH, "log", what, check.key)]


def _content(index: Index) -> list[Finding]:
    """What the spec names by its content."""
    findings = []
    spec = index.spec
    if spec.moments != "none":
        path = "second_moments.safetensors"
        try:
            fingerprint = second_moments.read(storage.join(index.uri, path)).fingerprint
        except TrackStarError as error:
            return [Finding(path, "missing", str(error))]
        if fingerprint != spec.moments_fingerprint:
            findings.append(Finding(path, "changed", "not the second moments that spec.json names"))
    if spec.projection == "whitened":
        path = "projections.safetensors"
        try:
            fingerprint = whitening.read(storage.join(index.uri, path)).fingerprint
        except TrackStarError as error:
            return [*findings, Finding(path, "missing", str(error))]
        if fingerprint != spec.projection_fingerprint:
            findings.append(Finding(path, "changed", "not the projections that spec.json names"))
    if spec.preconditioner != "none":
        try:
            fingerprint = Preconditioner.load(storage.join(index.uri, "preconditioner")).fingerprint
        except TrackStarError as error:
            return [*findings, Finding("preconditioner", "missing", str(error))]
        if fingerprint != spec.preconditioner:
            findings.append(Finding("preconditioner", "changed", "not the preconditioner that spec.json names"))
    return findings


def _version(path: str) -> int:
    match = _VERSION.match(path.rsplit("/", 1)[-1])
    return int(match[1]) if match else -1
