"""Checkpoints that lie in an object store, copied to this machine once and used by all its processes.

    TRACKSTAR_CACHE, or trackstar-cache-<user> in the temporary folder
      <key>/                the files; complete, or not there at all
      <key>.lock            held by the process that fetches or looks
      <key>.<random>.tmp/   a copy being made, or what a killed process left of one

A key is a hash over names, sizes and generations, so a checkpoint that changed is fetched anew. The process that holds the lock
fetches, the others wait; if it dies, the kernel drops the lock and the next one begins again. Copies that nobody has asked for
in a week go when the next one is made.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from trackstar import late, storage
from trackstar.errors import TrackStarError
from trackstar.storage import FileInfo

VARIABLE = "TRACKSTAR_CACHE"
"""Environment variable: the folder for copies of checkpoints that lie in an object store."""

_UNUSED_SECONDS = 7 * 24 * 3600.0
_FETCHERS = 8
_STATE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LOGGER = logging.getLogger(__name__)


def checkpoint(path: str, weights: bool = True) -> str:
    """A local folder with the checkpoint: `path` itself, or for gs:// the copy that this machine has, or now gets.

    Only what loading takes is fetched: the files of configuration and tokenizer, and the weights in one format.

    Args:
        path: Checkpoint folder (or hub name).
        weights: Whether the weights are needed.

    Raises:
        TrackStarError: there is no checkpoint, it cannot be fetched, or the disk has no room for it.
    """
    if not storage.is_object(path):
        return path
    inside = {info.uri.removeprefix(f"{path.rstrip('/')}/"): info for info in storage.list(path)}
    if "config.json" not in inside:
        raise TrackStarError(f"{path}: no checkpoint here (no config.json); check the path")
    small = [name for name in inside if "/" not in name and not name.endswith(_STATE_SUFFIXES)]
    wanted = [*small, *(_weights(path, inside) if weights else [])]
    return str(_local(path, {name: inside[name] for name in wanted}))


def file(uri: str) -> Path:
    """A local path to the file: its own, or for gs:// that of the copy that this machine has, or now gets.

    Raises:
        TrackStarError: no such object, it cannot be fetched, or the disk has no room for it.
    """
    local = storage.local_path(uri)
    if local is not None:
        return local
    name = uri.rsplit("/", 1)[-1]
    return _local(uri, {name: storage.info(uri)}) / name


def _weights(path: str, inside: dict[str, FileInfo]) -> list[str]:
    """Names of the files that hold the weights, in the format that transformers prefers."""
    for name in _WEIGHTS:
        if name in inside:
            return [name]
        index = f"{name}.index.json"
        if index not in inside:
            continue
        try:
            shards = sorted(set(json.loads(storage.read_bytes(inside[index].uri))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrackStarError(
                f"{inside[index].uri}: not an index of weights ({error}); save the checkpoint again"
            ) from error
        missing = [shard for shard in shards if shard not in inside]
        if missing:
            raise TrackStarError(f"{path}: {missing[0]} is not there, and {index} names it; copy the checkpoint again")
        return shards
    raise TrackStarError(f"{path}: no weights here ({' or '.join(_WEIGHTS)}, whole or in shards); check the path")


def _local(uri: str, files: Mapping[str, FileInfo]) -> Path:
    """The folder that holds copies of these files, by these names."""
    versions = sorted([name, info.uri, info.size, info.fingerprint] for name, info in files.items())
    key = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:32]
    target = _root() / key
    with _locked(target.with_name(f"{key}.lock"), uri):
        if not target.is_dir():
            _sweep(target)
            _fetch(uri, files, target)
        os.utime(target)  # in use: see `_sweep`
    return target


def _root() -> Path:
    """The cache's folder, made if need be; only this user may read it."""
    named = os.environ.get(VARIABLE)
    root = Path(named).expanduser() if named else Path(tempfile.gettempdir()) / f"trackstar-cache-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = root.stat().st_uid
    except OSError as error:
        raise TrackStarError(
            f"{root}: cannot be made as the folder for copies of checkpoints ({error.strerror}); "
            f"set {VARIABLE} to a folder that can be written"
        ) from error
    if not named and owner != os.getuid():
        raise TrackStarError(f"{root}: belongs to another user; set {VARIABLE} to a folder of your own")
    return root


@contextlib.contextmanager
def _locked(path: Path, uri: str) -> Iterator[None]:
    """Holds the lock; says so where it has to be waited for."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TrackStarError(
            f"{path}: cannot be written ({error.strerror}); set {VARIABLE} to a folder that can be written"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOGGER.info("waiting for another process of this machine to fetch %s", uri)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetch(uri: str, files: Mapping[str, FileInfo], target: Path) -> None:
    """Copies the files; the folder appears under its name when the last byte is there. The caller holds its lock."""
    needed, free = sum(info.size for info in files.values()), shutil.disk_usage(target.parent).free
    if needed > free:
        raise TrackStarError(
            f"{uri}: its {needed:,} bytes do not fit into {target.parent}, where {free:,} are free; free space, or set "
            f"{VARIABLE} to a folder on a larger disk"
        )
    _LOGGER.info("fetching %s (%.1f MB) to %s, once for this machine", uri, needed / 1e6, target.parent)
    making = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        making.mkdir()
        with concurrent.futures.ThreadPoolExecutor(_FETCHERS) as pool:
            list(pool.map(lambda name: _download(files[name], making / name), files))
        os.rename(making, target)
    except OSError as error:
        raise TrackStarError(
            f"{uri}: cannot be copied to {target.parent} ({error.strerror}; {needed:,} bytes are needed); free space, or set "
            f"{VARIABLE} to a folder on a larger disk"
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _download(info: FileInfo, path: Path) -> None:
    """Copies one file, in the version that was listed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    late.object_store.download(info.uri, int(info.fingerprint), path)


def _sweep(target: Path) -> None:
    """Removes copies that nobody has asked for in a week, and what killed processes left half-made.

    The caller holds the lock of `target`; nothing is removed while another process holds the lock that belongs to it.
    """
    for path in target.parent.iterdir():
        key, _, rest = path.name.partition(".")
        if rest.endswith("lock") or not path.is_dir():
            continue
        lock = contextlib.nullcontext() if key == target.name else _locked_if_free(path.with_name(f"{key}.lock"))
        with contextlib.suppress(OSError), lock:  # in use, or gone since it was listed
            if not rest and time.time() - path.stat().st_mtime > _UNUSED_SECONDS:
                path = path.rename(
                    path.with_name(f"{key}.{uuid.uuid4().hex[:12]}.tmp")
                )  # never half a copy under its name
                shutil.rmtree(path)
            elif rest:
                shutil.rmtree(path)


@contextlib.contextmanager
def _locked_if_free(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
