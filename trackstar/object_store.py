"""Google Cloud Storage: what `storage` needs of it, through Google's own client.

Not through pyarrow's file system: that knows no generation or checksum of a listed object, leaves a truncated object under the
final name where a stream is closed after an error, holds the interpreter's lock while it waits for a store that fails (so that
no other thread of the process runs), ends in words that do not say why, and would be a second place for credentials and
retries. Reading pieces of 64 MiB, this client is as fast.

Every request is tried again while its errors are of the passing kind (`patience`), uploads too: an object's name follows from
its content or its input, so that a second upload writes the same once more.
"""

import contextlib
import dataclasses
import errno
import functools
import http
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google.auth.exceptions
import requests
import requests.adapters
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage  # type: ignore[attr-defined]
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from trackstar.errors import TrackStarError
from trackstar.object_names import SCHEME, split
from trackstar.patience import Attempts, Patience, brief

_EMULATOR = "STORAGE_EMULATOR_HOST"
_BINARY = "application/octet-stream"
_CHANGED = "it changed or was deleted while it was read"
_UPLOAD_CHUNK = 32 << 20  # larger files go up in such pieces; one must get through in `Patience.silence`
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_CONNECTIONS = 64  # kept open; threads that ask at once wait for none
_LISTED = "items(name,size,generation,crc32c,md5Hash,contentEncoding,updated),nextPageToken"


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """One object: its name in the bucket, bytes, and what identifies its version and its content."""

    name: str
    size: int
    generation: int
    checksum: str
    """ "md5:…" or, for composed objects, which have no MD5, "crc32c:…-size"."""
    content_encoding: str
    """ "gzip" where the store would decompress on the fly, so that sizes and ranges mean nothing; mostly empty."""
    modified: float
    """When this version was written, in seconds since 1970."""


def listing(bucket: str, prefix: str, limit: int | None = None) -> Iterator[StoredObject]:
    """Objects whose names begin with `prefix`, in the order of their names; without folder placeholders."""
    with explained(f"{SCHEME}{bucket}/{prefix}", "be listed") as attempts:
        for blob in _client().list_blobs(bucket, prefix=prefix, max_results=limit, fields=_LISTED, **attempts.options):
            if not blob.name.endswith("/"):
                yield _stored(blob)


def find(uri: str) -> StoredObject | None:
    """The object at `uri`, or None."""
    bucket, name = split(uri)
    if not name or name.endswith("/"):
        return None
    with explained(uri, "be read") as attempts:
        blob = _client().bucket(bucket).get_blob(name, **attempts.options)
    return None if blob is None else _stored(blob)


def read(uri: str) -> bytes:
    """The whole object as it is stored, held against the store's checksum."""
    with explained(uri, "be read") as attempts:
        return _blob(uri).download_as_bytes(raw_download=True, **attempts.options)


def read_range(uri: str, stored: StoredObject, start: int, length: int) -> bytes:
    """Bytes [start, start + length) of one version of an object, fewer only at its end.

    Raises:
        TrackStarError: they cannot be had, or that version is gone.
    """
    length = min(length, stored.size - start)
    if length <= 0:
        return b""
    blob = _client().bucket(split(uri)[0]).blob(stored.name, generation=stored.generation)
    with explained(uri, "be read", gone=_CHANGED) as attempts:
        data = blob.download_as_bytes(
            start=start,
            end=start + length - 1,
            raw_download=True,
            single_shot_download=True,
            checksum=None,  # the store has none of a part
            **attempts.options,
        )
        if len(data) != length:
            raise ValueError(f"{len(data):,} bytes came where {length:,} from byte {start:,} on were asked for")
        return data


def download(uri: str, generation: int, path: Path) -> None:
    """Writes one version of an object to a local file, held against the store's checksum.

    Raises:
        TrackStarError: it cannot be had, or that version is gone.
        OSError: the local file cannot be written.
    """
    bucket, name = split(uri)
    blob = _client().bucket(bucket).blob(name, generation=generation)
    with explained(uri, "be read", gone=_CHANGED) as attempts:
        blob.download_to_filename(str(path), raw_download=True, **attempts.options)


def write(uri: str, data: bytes) -> None:
    """Writes the object in one upload, which the store shows whole or not at all."""
    with explained(uri, "be written") as attempts:
        _sent(_blob_to_write(uri).upload_from_string, data, attempts)


def write_if(uri: str, data: bytes, generation: int) -> int | None:
    """Writes the object in one upload if the version that is there is `generation`; 0 stands for no object at all.

    The store decides, atomically among all that write.

    Returns:
        The new generation; None where another version is there.
    """
    blob = _blob(uri)
    with explained(uri, "be written") as attempts:
        options = attempts.options
        try:
            blob.upload_from_string(data, content_type=_BINARY, if_generation_match=generation, **options)
        except api.PreconditionFailed:
            # The client repeats a request whose answer was lost; then what is there is what the first one wrote.
            with contextlib.suppress(api.NotFound):
                if blob.download_as_bytes(**options) == data:
                    blob.reload(**options)
                    return int(blob.generation)
            return None
        return int(blob.generation)


def delete_if(uri: str, generation: int) -> bool:
    """Deletes the object if the version that is there is `generation`; returns whether it was."""
    with explained(uri, "be deleted") as attempts:
        try:
            _blob(uri).delete(if_generation_match=generation, **attempts.options)
        except api.PreconditionFailed:
            return False
        except api.NotFound:
            return attempts.failed > 0  # the answer to the first request may have been lost
        return True


def upload(path: Path, uri: str) -> None:
    """Uploads a local file; the object appears when its last byte has arrived."""
    with explained(uri, "be written") as attempts:
        _sent(_blob_to_write(uri).upload_from_filename, str(path), attempts)


def copy(source: str, target: str) -> None:
    """Copies an object inside the store, without its bytes passing through this machine."""
    with explained(source, f"be copied to {target}") as attempts:
        token, _, _ = _blob(target).rewrite(_blob(source), **attempts.options)
        while token:
            token, _, _ = _blob(target).rewrite(_blob(source), token=token, **attempts.options)


def delete(bucket: str, name: str) -> None:
    """Deletes an object; one that is gone already is no error."""
    with explained(f"{SCHEME}{bucket}/{name}", "be deleted") as attempts, contextlib.suppress(api.NotFound):
        _client().bucket(bucket).blob(name).delete(**attempts.options)


@contextlib.contextmanager
def explained(uri: str, what: str, gone: str = "not found") -> Iterator[Attempts]:
    """Turns the client's exceptions into one sentence: "URI: cannot WHAT (reason); remedy".

    Args:
        uri: What is asked for.
        what: "be read", for example.
        gone: What it means if the store knows no such object.

    Yields:
        Whose `options` every request in the block is to be made with.
    """
    bucket = uri.removeprefix(SCHEME).partition("/")[0]
    attempts = Attempts(uri, Patience.from_environment())
    try:
        yield attempts
    except api.RetryError as error:
        raise TrackStarError(f"{uri}: cannot {what} ({attempts.given_up(error)}") from error
    except api.NotFound as error:
        raise TrackStarError(
            f"{uri}: cannot {what} ({gone}); check the path, and whether the bucket exists: "
            f"gcloud storage buckets describe {SCHEME}{bucket}"
        ) from error
    except (api.Forbidden, api.Unauthorized) as error:
        raise TrackStarError(
            f"{uri}: cannot {what} (no permission: {brief(error)}); give this account the role "
            f"roles/storage.objectUser on {SCHEME}{bucket}"
        ) from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise TrackStarError(
            f"{uri}: cannot {what} (no Google credentials: {brief(error)}); run: gcloud auth application-default login"
        ) from error
    except (api.GoogleAPIError, DataCorruption, InvalidResponse, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise
        raise TrackStarError(f"{uri}: cannot {what} ({brief(error)})") from error


def _stored(blob: Any) -> StoredObject:
    checksum = f"md5:{blob.md5_hash}" if blob.md5_hash else f"crc32c:{blob.crc32c}-{blob.size}"
    modified = blob.updated.timestamp() if blob.updated else 0.0
    return StoredObject(
        blob.name, int(blob.size), int(blob.generation), checksum, blob.content_encoding or "", modified
    )


def _blob(uri: str) -> Any:
    bucket, name = split(uri)
    return _client().bucket(bucket).blob(name)


def _blob_to_write(uri: str) -> Any:
    bucket, name = split(uri)
    return _client().bucket(bucket).blob(name, chunk_size=_UPLOAD_CHUNK)


def _sent(upload: Callable[..., None], what: Any, attempts: Attempts) -> None:
    """Uploads; once more from the start where the store has forgotten an upload in pieces (410)."""
    try:
        upload(what, content_type=_BINARY, **attempts.options)
    except api.GoogleAPICallError as error:
        if error.code != http.HTTPStatus.GONE:
            raise
        upload(what, content_type=_BINARY, **attempts.options)


def _client() -> google_storage.Client:
    return _client_for(os.environ.get(_EMULATOR, ""))


@functools.lru_cache(maxsize=4)
def _client_for(emulator: str) -> google_storage.Client:
    # Where OpenTelemetry is installed (Beam brings it), the client asks for the bucket's metadata behind the caller's back, for
    # traces that nobody records and with a right that is not needed otherwise.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    if not emulator:
        client = google_storage.Client(project=None)  # buckets are named outright: no project is needed
    else:
        endpoint = emulator if "://" in emulator else f"http://{emulator}"
        credentials = AnonymousCredentials()
        client = google_storage.Client(project=None, credentials=credentials, client_options={"api_endpoint": endpoint})
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return client
