"""Google Cloud Storage: what `storage` needs beyond pyarrow's file system — generations, checksums, whole uploads.

pyarrow reads; the official client lists, writes and deletes. The reason is what pyarrow leaves out: it knows no
generation or checksum of a listed object, and a stream closed after an error leaves a truncated object under the final
name.
"""

import contextlib
import dataclasses
import datetime
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google.auth.exceptions
import pyarrow.fs
import requests
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage  # type: ignore[attr-defined]

from trackstar.errors import TrackStarError

SCHEME = "gs://"
_EMULATOR = "STORAGE_EMULATOR_HOST"
_RETRY_SECONDS = 120
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


def split(uri: str) -> tuple[str, str]:
    """Bucket and object name of "gs://bucket/name".

    Raises:
        TrackStarError: no bucket.
    """
    bucket, _, name = uri.removeprefix(SCHEME).partition("/")
    if not re.fullmatch(r"[a-z0-9][-_.a-z0-9]+", bucket):
        raise TrackStarError(f"{uri}: no bucket name; an object-store path is gs://BUCKET/PATH")
    return bucket, name


def filesystem() -> pyarrow.fs.FileSystem:
    """pyarrow's file system, on the emulator that STORAGE_EMULATOR_HOST names if it is set."""
    return _filesystem(os.environ.get(_EMULATOR, ""))


def listing(bucket: str, prefix: str, limit: int | None = None) -> Iterator[StoredObject]:
    """Objects whose names begin with `prefix`, in the order of their names; without folder placeholders."""
    with explained(f"{SCHEME}{bucket}/{prefix}", "be listed"):
        for blob in _client().list_blobs(bucket, prefix=prefix, max_results=limit, fields=_LISTED):
            if not blob.name.endswith("/"):
                yield _stored(blob)


def find(uri: str) -> StoredObject | None:
    """The object at `uri`, or None."""
    bucket, name = split(uri)
    if not name or name.endswith("/"):
        return None
    with explained(uri, "be read"):
        blob = _client().bucket(bucket).get_blob(name)
    return None if blob is None else _stored(blob)


def write(uri: str, data: bytes) -> None:
    """Writes the object in one upload, which the store shows whole or not at all."""
    with explained(uri, "be written"):
        _blob(uri).upload_from_string(data, content_type="application/octet-stream")


def write_if(uri: str, data: bytes, generation: int) -> int | None:
    """Writes the object in one upload if the version that is there is `generation`; 0 stands for no object at all.

    The store decides, atomically among all that write.

    Returns:
        The new generation; None where another version is there.
    """
    blob = _blob(uri)
    with explained(uri, "be written"):
        try:
            blob.upload_from_string(data, content_type="application/octet-stream", if_generation_match=generation)
        except api.PreconditionFailed:
            # The client repeats a request whose answer was lost; then what is there is what the first one wrote.
            with contextlib.suppress(api.NotFound):
                if blob.download_as_bytes() == data:
                    blob.reload()
                    return int(blob.generation)
            return None
        return int(blob.generation)


def delete_if(uri: str, generation: int) -> bool:
    """Deletes the object if the version that is there is `generation`; returns whether it was."""
    with explained(uri, "be deleted"):
        try:
            _blob(uri).delete(if_generation_match=generation)
        except (api.PreconditionFailed, api.NotFound):
            return False
        return True


def upload(path: Path, uri: str) -> None:
    """Uploads a local file; the object appears when its last byte has arrived."""
    with explained(uri, "be written"):
        _blob(uri).upload_from_filename(str(path), content_type="application/octet-stream")


def copy(source: str, target: str) -> None:
    """Copies an object inside the store, without its bytes passing through this machine."""
    with explained(source, f"be copied to {target}"):
        token, _, _ = _blob(target).rewrite(_blob(source))
        while token:
            token, _, _ = _blob(target).rewrite(_blob(source), token=token)


def delete(bucket: str, name: str) -> None:
    """Deletes an object; one that is gone already is no error."""
    with explained(f"{SCHEME}{bucket}/{name}", "be deleted"), contextlib.suppress(api.NotFound):
        _client().bucket(bucket).blob(name).delete()


@contextlib.contextmanager
def explained(uri: str, what: str) -> Iterator[None]:
    """Turns the client's exceptions into one sentence: "URI: cannot WHAT (reason); remedy"."""
    bucket = uri.removeprefix(SCHEME).partition("/")[0]
    try:
        yield
    except api.NotFound as error:
        raise TrackStarError(
            f"{uri}: cannot {what} (not found); check the name, and whether the bucket exists: "
            f"gcloud storage buckets describe {SCHEME}{bucket}"
        ) from error
    except (api.Forbidden, api.Unauthorized) as error:
        raise TrackStarError(
            f"{uri}: cannot {what} (no permission: {_brief(error)}); give this account the role "
            f"roles/storage.objectUser on {SCHEME}{bucket}"
        ) from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise TrackStarError(
            f"{uri}: cannot {what} (no Google credentials: {_brief(error)}); run: gcloud auth application-default login"
        ) from error
    except (api.GoogleAPIError, requests.RequestException, OSError, ValueError) as error:
        raise TrackStarError(f"{uri}: cannot {what} ({_brief(error)})") from error


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"


def _stored(blob: Any) -> StoredObject:
    checksum = f"md5:{blob.md5_hash}" if blob.md5_hash else f"crc32c:{blob.crc32c}-{blob.size}"
    modified = blob.updated.timestamp() if blob.updated else 0.0
    return StoredObject(
        blob.name, int(blob.size), int(blob.generation), checksum, blob.content_encoding or "", modified
    )


def _blob(uri: str) -> Any:
    bucket, name = split(uri)
    return _client().bucket(bucket).blob(name)


def _client() -> google_storage.Client:
    return _client_for(os.environ.get(_EMULATOR, ""))


@functools.lru_cache(maxsize=4)
def _client_for(emulator: str) -> google_storage.Client:
    if not emulator:
        return google_storage.Client(project=None)  # buckets are named outright: no project is needed
    return google_storage.Client(
        project=None,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": _endpoint(emulator)},
    )


@functools.lru_cache(maxsize=4)
def _filesystem(emulator: str) -> pyarrow.fs.FileSystem:
    patience = datetime.timedelta(seconds=_RETRY_SECONDS)
    if not emulator:
        return pyarrow.fs.GcsFileSystem(retry_time_limit=patience)
    scheme, _, host = _endpoint(emulator).partition("://")
    return pyarrow.fs.GcsFileSystem(
        anonymous=True, scheme=scheme, endpoint_override=host.rstrip("/"), retry_time_limit=patience
    )


def _endpoint(emulator: str) -> str:
    return emulator if "://" in emulator else f"http://{emulator}"
