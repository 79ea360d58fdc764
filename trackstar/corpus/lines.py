"""Streams of bytes → lines with their offsets, in bounded memory, whatever is between two newlines."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import zstandard

_CHUNK = 4 << 20  # also one request to an object store
_TAIL = 64 << 10
_ZSTD_INPUT = 2 << 10  # bytes: at zstd's densest, 128 KiB from 4 bytes, they become 64 MiB
_ZSTD_WINDOW = 1 << 31  # as `zstd --long=31` writes
_KEPT = 1 << 10
LONGEST_LINE = 64 << 20


class DamagedError(Exception):
    """A compressed stream that does not decompress to its end; the text says why."""


class Line(NamedTuple):
    """One line without its line end."""

    offset: int
    """Of its first byte in the (uncompressed) stream."""
    content: bytes
    """Only the first 1,024 bytes where the line is longer than is read."""
    length: int
    """Bytes of the whole line, newline excluded."""


def split(chunks: Iterable[bytes], offset: int, end: int | None = None, longest: int = LONGEST_LINE) -> Iterator[Line]:
    """The lines of a stream whose first byte is at `offset`, where a line begins.

    Lines end in "\\n" or "\\r\\n"; the last may lack it. Those that begin at `end` or later are left out, and no chunk
    is asked for that could hold only such. Memory: twice `longest`, and a chunk.
    """
    pending: list[bytes] = []
    length = 0  # bytes of the line so far
    for chunk in chunks:
        at = 0
        while True:
            newline = chunk.find(b"\n", at)
            piece = chunk[at : newline if newline >= 0 else len(chunk)]
            length += len(piece)
            if length <= longest:
                pending.append(piece)
            else:
                pending = [b"".join(part[:_KEPT] for part in [*pending, piece])[:_KEPT]]
            if newline < 0:
                break
            yield _line(offset, pending, length)
            at = newline + 1
            offset += length + 1
            pending, length = [], 0
            if end is not None and offset >= end:
                return
    if length:
        yield _line(offset, pending, length)


def _line(offset: int, pending: list[bytes], length: int) -> Line:
    content = pending[0] if len(pending) == 1 else b"".join(pending)
    if offset == 0 and content.startswith(b"\xef\xbb\xbf"):  # byte order mark
        content = content[3:]
    return Line(offset, content.removesuffix(b"\r"), length)


def in_range(source: pa.NativeFile, start: int, end: int, longest: int = LONGEST_LINE) -> Iterator[Line]:
    """The lines that begin in bytes [start, end) of a file; beyond `end` only the rest of the last is read."""
    first = _first_line(source, start, end)
    if first < end:
        source.seek(first)
        yield from split(_chunks(source, first, end), first, end, longest)


def _first_line(source: pa.NativeFile, start: int, end: int) -> int:
    """Offset of the first line that begins in [start, end); `end` if there is none."""
    if start == 0:
        return 0
    position = start - 1  # a line begins at `start` if this byte is a newline
    source.seek(position)
    while position < end - 1:
        chunk = source.read(min(_TAIL, end - 1 - position))
        if not chunk:
            break
        newline = chunk.find(b"\n")
        if newline >= 0:
            return position + newline + 1
        position += len(chunk)
    return end


def _chunks(source: pa.NativeFile, position: int, end: int) -> Iterator[bytes]:
    while chunk := source.read(max(min(_CHUNK, end - position), _TAIL)):
        yield chunk
        position += len(chunk)


def gunzipped(source: pa.NativeFile) -> Iterator[bytes]:
    """The content of a gzip file of any number of members.

    Raises:
        DamagedError: truncated, corrupt, or not gzip.
    """
    try:
        with gzip.GzipFile(fileobj=source, mode="rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except EOFError:
        raise DamagedError("truncated gzip stream: it ends before its end mark") from None
    except gzip.BadGzipFile as error:
        raise DamagedError(f"corrupt gzip stream: {error}") from error
    except zlib.error as error:
        raise DamagedError(f"corrupt gzip stream: {error}") from error


def unzstandarded(source: pa.NativeFile) -> Iterator[bytes]:
    """The content of a zstd file of any number of frames.

    The library's stream reader takes a truncated file for a complete one; so frames are followed here, in steps that
    bound what one step can decompress to.

    Raises:
        DamagedError: truncated, corrupt, or not zstd.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = decompressor.decompressobj()
    inside = False  # whether the frame has begun
    try:
        while compressed := source.read(_CHUNK):
            view = memoryview(compressed)
            at = 0
            while at < len(view):
                step = view[at : at + _ZSTD_INPUT]
                chunk = frame.decompress(step)
                inside = True
                at += len(step)
                if frame.eof:
                    at -= len(frame.unused_data)
                    frame, inside = decompressor.decompressobj(), False
                if chunk:
                    yield chunk
    except zstandard.ZstdError as error:
        raise DamagedError(f"corrupt zstd stream: {error}") from error
    if inside:
        raise DamagedError("truncated zstd stream: it ends inside a frame")
