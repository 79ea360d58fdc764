"""Which files are the corpus, and of which format each is."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Literal

from trackstar import storage
from trackstar.errors import ShardError, TrackStarError

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "txt", "txt.gz", "txt.zst", "parquet"]

_LINE_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "txt"}
_COMPRESSIONS = {"": "", ".gz": ".gz", ".zst": ".zst"}
FORMATS: dict[str, Format] = {
    **{
        suffix + compression: f"{name}{stored}"  # type: ignore[misc]
        for suffix, name in _LINE_FORMATS.items()
        for compression, stored in _COMPRESSIONS.items()
    },
    ".parquet": "parquet",
}
"""Format of a shard by the end of its name. A ".json" holds one object a line, as in C4."""
_HASHERS = 8


@dataclasses.dataclass(frozen=True)
class Shard:
    """One corpus file."""

    uri: str
    """Absolute path, or gs://bucket/path."""
    format: Format
    size: int
    """Bytes as stored."""
    fingerprint: str
    """What tells this version of the file from another; see `storage.FileInfo`."""


def format_of(uri: str) -> Format | None:
    """The format that the name's end says, or None."""
    return next((format for suffix, format in FORMATS.items() if uri.lower().endswith(suffix)), None)


def expand(
    patterns: Sequence[str], fingerprint: storage.FingerprintKind = "modified", allow_no_match: bool = False
) -> list[Shard]:
    """The shards that glob patterns name, sorted by URI, each once however many patterns match it.

    Args:
        patterns: Local paths or gs:// URIs, with `*`, `?`, `[…]`, `**`.
        fingerprint: "modified": size and modification time, or an object's generation; "content": a hash of the
            content, which a copied corpus keeps, and which costs one pass over local files.
        allow_no_match: Whether a pattern may match no file.

    Raises:
        TrackStarError: a pattern matches no file, or a file whose format is unknown.
        ShardError: a shard that cannot be read as it is stored.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not patterns:
        raise TrackStarError("no corpus was given; name its shards, for example 'shards/*.jsonl.gz'")
    found: dict[str, storage.FileInfo] = {}
    for pattern in patterns:
        matches = storage.glob(pattern)
        if not matches and not allow_no_match:
            raise TrackStarError(f"{pattern}: {_why_no_match(pattern)}")
        found.update((match.uri, match) for match in matches)
    formats = {uri: _known_format(uri) for uri in found}
    for match in found.values():
        if match.content_encoding:
            raise ShardError(
                match.uri,
                f"stored with Content-Encoding {match.content_encoding}, so the store decompresses it on the way and "
                "its size is not what is read; name it .gz, and run: "
                f"gcloud storage objects update --clear-content-encoding {match.uri}",
            )
    infos = sorted(found.values())
    if fingerprint == "content":
        with concurrent.futures.ThreadPoolExecutor(_HASHERS) as pool:
            infos = list(pool.map(lambda match: storage.info(match.uri, "content"), infos))
    return [Shard(match.uri, formats[match.uri], match.size, match.fingerprint) for match in infos]


def _known_format(uri: str) -> Format:
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise TrackStarError(f"{uri!a}: the file's name is not valid UTF-8; rename it") from None
    format = format_of(uri)
    if format is None:
        raise TrackStarError(f"{uri}: unknown format; a shard's name ends in one of {', '.join(FORMATS)}")
    return format


def _why_no_match(pattern: str) -> str:
    path = storage.local_path(pattern)
    if path is not None and path.is_dir():
        return f"a folder; name the shards in it, for example '{path}/*.jsonl'"
    return "no file matches; check the path, and put a pattern in quotes"
