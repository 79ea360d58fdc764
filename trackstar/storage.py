"""Files on a local disk or in an object store, behind one set of functions that take URIs.

A URI is a local path ("shards/a.jsonl", "~/x", "file:///x") or "gs://bucket/path". Whatever is written appears whole
under its name or not at all: locally a temporary file in the same folder and a rename, in a store one upload. Temporary
names begin with a dot and end in ".tmp", so that no glob and no listing shows them. Every failure is a `TrackStarError`
that names the path and the remedy.
"""

import builtins
import contextlib
import dataclasses
import errno
import fnmatch
import glob as local_glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.fs

from trackstar import late, local_files, scratch
from trackstar.errors import TrackStarError
from trackstar.object_names import SCHEME, split

if TYPE_CHECKING:
    from trackstar.object_store import StoredObject

FingerprintKind = Literal["modified", "content"]
"""How a file's version is told: by size and modification time (locally) or generation (gs://); or by its content."""

_STREAM_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, order=True)
class FileInfo:
    """One file: where it is, its bytes, and what tells this version of it from another."""

    uri: str
    size: int
    fingerprint: str
    content_encoding: str = ""
    """Objects only: "gzip" where the store decompresses on the fly, and `size` is not what a reader gets."""
    modified: float = dataclasses.field(default=0.0, compare=False)
    """When the file was last written, in seconds since 1970."""


def is_object(uri: str) -> bool:
    """Whether the URI is in an object store; any scheme but gs:// and file:// is an error."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if scheme and scheme[1] not in ("gs", "file"):
        raise TrackStarError(f"{uri}: {scheme[1]}:// is not supported; give a local path or gs://BUCKET/PATH")
    if not uri:
        raise TrackStarError("an empty path was given; give a local path or gs://BUCKET/PATH")
    return uri.startswith(SCHEME)


def normalise(uri: str) -> str:
    """The one form in which a file is named from here on: an absolute path, or gs://bucket/path."""
    if is_object(uri):
        split(uri)
        return uri
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def local_path(uri: str) -> Path | None:
    """The absolute local path, or None in an object store; the file need not exist."""
    return None if is_object(uri) else Path(normalise(uri))


def join(base: str, *parts: str) -> str:
    """`base` with the parts below it."""
    if not base:
        raise TrackStarError("an empty path was given; give a local path or gs://BUCKET/PATH")
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def info(uri: str, fingerprint: FingerprintKind = "modified") -> FileInfo:
    """Size and fingerprint of one file.

    A local content fingerprint costs a pass over the file, once a process as long as the file does not change.

    Raises:
        TrackStarError: there is no such file, or it cannot be read.
    """
    if is_object(uri):
        found = late.object_store.find(uri)
        if found is None:
            raise TrackStarError(f"{uri}: cannot be read (no such object); check the path")
        return _info_of_object(split(uri)[0], found, fingerprint)
    path = normalise(uri)
    with local_files.explained(uri, "read"):
        stat = os.stat(path)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        if fingerprint == "content":
            version = local_files.content_hash(path, stat.st_size, stat.st_mtime_ns)
        else:
            version = f"{stat.st_size}-{stat.st_mtime_ns}"
        return FileInfo(path, stat.st_size, version, modified=stat.st_mtime)


def glob(pattern: str, fingerprint: FingerprintKind = "modified") -> "builtins.list[FileInfo]":
    """Files that match the pattern, sorted by URI; `*` and `?` stay inside one folder, `**` descends, `[…]` chooses.

    A path that exists as it is written is taken as it is, whatever characters it has.
    """
    if is_object(pattern):
        return _glob_objects(pattern, fingerprint)
    path = normalise(pattern)
    if os.path.isfile(path):
        paths = [path]
    else:  # of a relative pattern, the folder that it starts from is no pattern
        relative = pattern.removeprefix("file://")
        above = local_glob.escape(os.getcwd())
        paths = local_glob.glob(os.path.normpath(os.path.join(above, os.path.expanduser(relative))), recursive=True)
    found = []
    for match in sorted(set(paths)):
        if os.path.isfile(match):
            found.append(info(match, fingerprint))
    return found


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    if is_object(uri):
        bucket, name = split(uri)
        below = name.rstrip("/") + "/" if name else ""
        return late.object_store.find(uri) is not None or any(late.object_store.listing(bucket, below, limit=2))
    return os.path.exists(normalise(uri))


def size(uri: str) -> int:
    """Bytes of the file."""
    return info(uri).size


def open_input(uri: str) -> pa.NativeFile:
    """Opens for random access; use it as a context manager. In a store each read is a request: read large pieces.

    An object is read in the version that it has now; if that is gone before the last read, reading fails.
    """
    if is_object(uri):
        return pa.PythonFile(late.object_reader.ObjectReader(uri), mode="r")
    with local_files.explained(uri, "read"):
        return pyarrow.fs.LocalFileSystem().open_input_file(normalise(uri))


def open_if_there(uri: str) -> pa.NativeFile | None:
    """As `open_input`; None where there is no such file."""
    if not is_object(uri):
        return open_input(uri) if os.path.exists(normalise(uri)) else None
    found = late.object_store.find(uri)
    return None if found is None else pa.PythonFile(late.object_reader.ObjectReader(uri, version=found), mode="r")


def open_stream(uri: str) -> pa.NativeFile:
    """Opens for reading from the first byte to the last, as stored: nothing is decompressed."""
    if is_object(uri):
        return pa.PythonFile(late.object_reader.ObjectReader(uri, read_ahead=_STREAM_BYTES), mode="r")
    with local_files.explained(uri, "read"):
        return pyarrow.fs.LocalFileSystem().open_input_stream(
            normalise(uri), compression=None, buffer_size=_STREAM_BYTES
        )


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if is_object(uri):
        return late.object_store.read(uri)
    with open_stream(uri) as source, local_files.explained(uri, "read"):
        return source.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the file, whole or not at all, replacing what is there; folders above it are made."""
    if is_object(uri):
        late.object_store.write(uri, data)
        return
    with staged(uri) as path:
        path.write_bytes(data)


def create_exclusive(uri: str, data: bytes) -> bool:
    """Writes the file, whole, unless one is there: of all that try at once, one succeeds.

    Returns:
        Whether the file was written; False where there is one already.
    """
    if is_object(uri):
        # The store decides; looking first saves an upload.
        return late.object_store.find(uri) is None and late.object_store.write_if(uri, data, 0) is not None
    target = Path(normalise(uri))
    with local_files.staged(uri, target) as path:
        path.write_bytes(data)
        return local_files.linked(path, target)


def replace_version(known: FileInfo, data: bytes) -> FileInfo | None:
    """Replaces a file if it is still the version that `info` gave: of all that try at once, one succeeds.

    Returns:
        The new version; None where the file is gone or another version is there.
    """
    if is_object(known.uri):
        found = late.object_store.find(known.uri)
        if found is None or str(found.generation) != known.fingerprint:
            return None
        generation = late.object_store.write_if(known.uri, data, found.generation)
        return None if generation is None else FileInfo(known.uri, len(data), str(generation), modified=time.time())
    with local_files.alone_in_folder(Path(normalise(known.uri))) as is_there:
        if not is_there or info(known.uri) != known:
            return None
        write_bytes(known.uri, data)
        return info(known.uri)


def delete_version(known: FileInfo) -> bool:
    """Deletes a file if it is still the version that `info` gave; returns whether it was."""
    if is_object(known.uri):
        found = late.object_store.find(known.uri)
        return (
            found is not None
            and str(found.generation) == known.fingerprint
            and late.object_store.delete_if(known.uri, found.generation)
        )
    with local_files.alone_in_folder(Path(normalise(known.uri))) as is_there:
        if not is_there or info(known.uri) != known:
            return False
        delete(known.uri)
        return True


@contextlib.contextmanager
def staged(uri: str) -> Iterator[Path]:
    """A local path to write to; when the block ends, that file appears under `uri`, or after an error nothing does.

    Locally the path is a temporary name in the target's folder, which is renamed; for a store it is a file in the temporary
    folder (TMPDIR), which is uploaded at the end. An `OSError` inside the block, such as a full disk, becomes a
    `TrackStarError` that names `uri`.
    """
    if is_object(uri):
        split(uri)
        with scratch_folder(f"to be uploaded to {uri}") as folder:
            path = folder / "staged.tmp"
            yield path
            late.object_store.upload(path, uri)
        return
    target = Path(normalise(uri))
    with local_files.staged(uri, target) as path:
        yield path
        os.replace(path, target)


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder on the temporary disk (TMPDIR), gone when the block ends, or else when its process has ended.

    Args:
        purpose: What it is for, for messages: "to be uploaded to gs://…".

    Raises:
        TrackStarError: in place of any `OSError` in the block, such as a full disk; it says how to choose another disk.
    """
    folder: Path | None = None
    try:
        with scratch.folder() as folder:
            yield folder
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())[:300]
        with contextlib.suppress(OSError):
            reason += f"; {shutil.disk_usage(tempfile.gettempdir()).free:,} bytes are free there"
        raise TrackStarError(
            f"{folder or 'a temporary folder'}: cannot be written, {purpose} ({reason}); free space, or set TMPDIR to a folder "
            "on another disk"
        ) from error


def copy(source: str, target: str) -> None:
    """Copies a file, whole or not at all; between local and store in either direction."""
    if is_object(source) and is_object(target):
        late.object_store.copy(source, target)
        return
    with open_stream(source) as stream, staged(target) as path, path.open("wb") as sink:
        while chunk := stream.read(_STREAM_BYTES):
            sink.write(chunk)


def makedirs(uri: str) -> None:
    """Makes the folder and those above it; in an object store there are no folders to make."""
    path = local_path(uri)
    if path is not None:
        with local_files.explained(uri, "created as a folder"):
            path.mkdir(parents=True, exist_ok=True)


def delete(uri: str) -> None:
    """Deletes the file, or the folder with all that lies in it; what is not there is no error."""
    if is_object(uri):
        bucket, name = split(uri)
        if not name.strip("/"):
            raise TrackStarError(f"{uri}: a whole bucket is not deleted from here; give a path below it")
        if not name.endswith("/"):
            late.object_store.delete(bucket, name)
        for found in late.object_store.listing(bucket, name.rstrip("/") + "/"):
            late.object_store.delete(bucket, found.name)
        return
    path = Path(normalise(uri))
    with local_files.explained(uri, "deleted"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _glob_objects(pattern: str, fingerprint: FingerprintKind) -> "builtins.list[FileInfo]":
    bucket, name = split(pattern)
    exact = late.object_store.find(pattern)
    if exact is not None:
        return [_info_of_object(bucket, exact, fingerprint)]
    prefix = re.split(r"[*?\[]", name, maxsplit=1)[0]
    if prefix == name:
        return []
    pattern_parts = name.split("/")
    found = [
        stored
        for stored in late.object_store.listing(bucket, prefix)
        if _matches(pattern_parts, stored.name.split("/"))
    ]
    return sorted(_info_of_object(bucket, stored, fingerprint) for stored in found)


def _matches(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Whether an object's name matches a glob, both cut at "/", by the rules of Python's `glob`."""
    if not pattern or not name:
        return not pattern and not name
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        hidden = next((at for at, part in enumerate(name) if part.startswith(".")), len(name))
        if not rest:
            return hidden == len(name)
        return any(_matches(rest, name[at:]) for at in range(hidden + 1))
    visible = first.startswith(".") or not name[0].startswith(".")
    return visible and fnmatch.fnmatchcase(name[0], first) and _matches(rest, name[1:])


def _info_of_object(bucket: str, stored: "StoredObject", fingerprint: FingerprintKind) -> FileInfo:
    version = stored.checksum if fingerprint == "content" else str(stored.generation)
    uri = f"{SCHEME}{bucket}/{stored.name}"
    return FileInfo(uri, stored.size, version, stored.content_encoding, stored.modified)


def list(folder: str) -> "builtins.list[FileInfo]":
    """All files below the folder, however deep, sorted by URI, hidden ones left out; none if there is no folder."""
    if is_object(folder):
        bucket, name = split(folder)
        prefix = name.rstrip("/") + "/" if name.strip("/") else ""
        found = [
            stored
            for stored in late.object_store.listing(bucket, prefix)
            if "/." not in "/" + stored.name[len(prefix) :]
        ]
        return sorted(_info_of_object(bucket, stored, "modified") for stored in found)
    root = normalise(folder)
    files = []
    for above, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                with contextlib.suppress(TrackStarError):  # gone since it was listed
                    files.append(info(os.path.join(above, name)))
    return sorted(files)
