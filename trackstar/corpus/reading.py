"""One work item → its records, streaming."""

import contextlib
from collections.abc import Iterator

from trackstar import storage
from trackstar.corpus import lines, parquet, records
from trackstar.corpus.items import WorkItem
from trackstar.corpus.records import Record, Reject
from trackstar.errors import ShardError, TrackStarError


def read(item: WorkItem) -> Iterator[Record | Reject]:
    """The records that begin in the item's range, in order; what cannot be used comes as a `Reject` in its place.

    Blank lines are skipped. Memory is bounded by the longest line that is read, 64 MiB; a longer one is a `Reject`.

    Raises:
        ShardError: the shard is gone, cannot be read to the end of the range, or is not the version that was planned.
            That is checked before the first record and again after the last, so a caller that finishes has read one
            version.
    """
    _check_version(item, "since the work was planned")
    with _naming(item.shard):
        if item.format == "parquet":
            for position, text, input_ids, id in parquet.rows(item.shard, item.start, item.end):
                yield records.of_row(item.shard, position, text, input_ids, id)
        else:
            parse = records.of_json if item.format.startswith("jsonl") else records.of_line
            for line in _lines(item):
                if line.length > lines.LONGEST_LINE:
                    reason = f"a line of {line.length:,} bytes; {lines.LONGEST_LINE:,} are read at most"
                    yield Reject(item.shard, line.offset, reason, records.snippet(line.content))
                elif line.content and not line.content.isspace():
                    yield parse(item.shard, line.offset, line.content)
    _check_version(item, "while it was read")


def _lines(item: WorkItem) -> Iterator[lines.Line]:
    _, _, compression = item.format.partition(".")
    if not compression:
        with storage.open_input(item.shard) as source:
            yield from lines.in_range(source, item.start, item.end)
        return
    if item.size == 0:
        raise ShardError(item.shard, f"an empty file, not a .{compression} stream")
    with storage.open_stream(item.shard) as source:
        yield from lines.split(lines.gunzipped(source) if compression == "gz" else lines.unzstandarded(source), 0)


def _check_version(item: WorkItem, when: str) -> None:
    with _naming(item.shard):
        found = storage.info(item.shard, "content" if ":" in item.fingerprint else "modified")
    if (found.size, found.fingerprint) != (item.size, item.fingerprint):
        raise ShardError(
            item.shard,
            f"changed {when} ({item.size:,} bytes, version {item.fingerprint}; now {found.size:,} bytes, version "
            f"{found.fingerprint}); run the command again",
        )


@contextlib.contextmanager
def _naming(shard: str) -> Iterator[None]:
    """Turns whatever goes wrong in reading the shard into a `ShardError`."""
    try:
        yield
    except ShardError:
        raise
    except TrackStarError as error:
        raise ShardError(shard, str(error).removeprefix(f"{shard}: ")) from error
    except lines.DamagedError as error:
        raise ShardError(shard, str(error)) from error
    except OSError as error:
        raise ShardError(shard, f"cannot be read: {' '.join(str(error).split())[:300]}") from error
