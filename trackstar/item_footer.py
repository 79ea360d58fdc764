"""One work item's Parquet file as those see it who decode no encoding: its columns, and what its footer says.

Nothing here needs torch: an index is opened, listed, compared with its corpus and cleaned up without it.
"""

import dataclasses
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trackstar.corpus import WorkItem
from trackstar.errors import TrackStarError
from trackstar.spec import Spec

ENCODING = "encoding"
SCALE = "scale"
"""What the integers of an encoding are multiplied with, where it is stored as such."""
STORAGE, DIMENSION = "storage", "dimension"
"""Metadata: the form of the encodings, and how many numbers each has; of bits, their bytes do not tell."""
MAX_NORM = "max_norm"
"""Metadata: the largest norm of the file's stored encodings, about 1. A scan derives from it how far rounding can go. Not of sign
bits, which all stand for unit vectors."""


@dataclasses.dataclass(frozen=True)
class ItemFile:
    """One immutable file of the index.

    Args:
        key: The work item's key, 32 hexadecimal digits; also the file's name.
        uri: Where the file lies.
        shard: URI of the corpus shard that the item is a range of.
        num_rows: Examples in the file.
        num_bytes: Size of the file.
        metadata: What the writer's `footer` returned: counts, range, spec hash.
    """

    key: str
    uri: str
    shard: str
    num_rows: int
    num_bytes: int
    metadata: dict[str, str]


@dataclasses.dataclass
class ItemCounts:
    """What became of the records of one work item; kept in the metadata of its file.

    Where documents are not split, examples + rejected + removed = records.
    """

    records: int = 0
    """Records read, good and bad."""
    rejected: int = 0
    """Records or passages in `rejects/`."""
    truncated: int = 0
    """Documents that lost their end at `max_length`, those that were taken down included."""
    examples: int = 0
    """Rows of the file."""
    tokens: int = 0
    """Tokens of those rows."""
    removed: int = 0
    """Records that were taken down, whole or in part."""

    @classmethod
    def of(cls, metadata: dict[str, str]) -> "ItemCounts":
        """From the metadata of an item's file."""
        return cls(**{field.name: int(metadata.get(field.name, 0)) for field in dataclasses.fields(cls)})

    def footer(self, item: WorkItem) -> dict[str, str]:
        """What the metadata of the item's file says."""
        counts = {name: str(value) for name, value in dataclasses.asdict(self).items()}
        return {**counts, "start": str(item.start), "end": str(item.end), "fingerprint": item.fingerprint}

    def __add__(self, other: "ItemCounts") -> "ItemCounts":
        return ItemCounts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def arrow_schema(spec: Spec) -> pa.Schema:
    """The columns of an item's file under `spec`."""
    fields = [
        pa.field(ENCODING, pa.binary(spec.bytes_per_encoding), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("grad_norm", pa.float32(), nullable=False),
    ]
    if spec.stores_text:
        fields.insert(4, pa.field("text", pa.string(), nullable=False))
    if spec.has_scales:
        fields.append(pa.field(SCALE, pa.float32(), nullable=False))
    return pa.schema(fields)


def read_item_file(key: str, uri: str, source: Any, num_bytes: int) -> ItemFile:
    """Reads the footer of the file at `uri`.

    Raises:
        TrackStarError: the file is truncated or not Parquet.
    """
    footer = read_footer(uri, source)
    metadata = {
        name.decode(): value.decode()
        for name, value in (footer.metadata or {}).items()
        if not name.startswith((b"ARROW:", b"PARQUET:"))
    }
    return ItemFile(key, uri, metadata.get("shard", ""), footer.num_rows, num_bytes, metadata)


def read_footer(uri: str, source: Any) -> pq.FileMetaData:
    """The Parquet footer of the open file `source`; a truncated or foreign file gives an error that names `uri`."""
    try:
        return pq.read_metadata(source)
    except (pa.ArrowException, OSError) as error:
        raise TrackStarError(f"{uri}: truncated, or not Parquet ({error}); run `trackstar verify --repair`") from error
