"""What the winners of a scan say: ids, texts and positions of single rows."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.item_footer import read_footer


def fetch_passages(uri: str, rows: Sequence[int] | np.ndarray) -> tuple[list[str], list[str] | None, list[int]]:
    """Ids, texts (None where the index holds none) and positions of rows of a file, in the order asked for.

    Only the row groups that hold them are read, and of these not the encodings.

    Raises:
        TrackStarError: the file is damaged, or has no such row.
    """
    table, _ = fetch_rows(uri, rows, ("example_id", "text", "position"))
    texts = table["text"].to_pylist() if "text" in table.column_names else None
    return table["example_id"].to_pylist(), texts, table["position"].to_pylist()


def fetch_rows(uri: str, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> tuple[pa.Table, dict[str, str]]:
    """Some columns of rows of a file, in the order asked for, and the file's metadata; columns that it lacks are left out.

    Raises:
        TrackStarError: the file is damaged, or has no such row.
    """
    wanted = np.asarray(rows, np.int64)
    with storage.open_input(uri) as source:
        footer = read_footer(uri, source)
        metadata = {key.decode(): value.decode(errors="replace") for key, value in (footer.metadata or {}).items()}
        file = pq.ParquetFile(source, metadata=footer)
        present = [name for name in columns if name in file.schema_arrow.names]
        if not len(wanted):
            return file.schema_arrow.empty_table().select(present), metadata
        if wanted.min() < 0 or wanted.max() >= footer.num_rows:
            raise TrackStarError(
                f"{uri}: rows {wanted.min()} to {wanted.max()} were asked for; it has {footer.num_rows}"
            )
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        group_of = np.searchsorted(starts, wanted, side="right") - 1
        groups = np.unique(group_of)
        try:
            table = file.read_row_groups(groups.tolist(), columns=present)
        except (pa.ArrowException, OSError) as error:
            raise TrackStarError(f"{uri}: cannot be read ({error})") from error
    read_starts = np.concatenate([[0], np.cumsum([sizes[group] for group in groups])])
    return table.take(pa.array(wanted - starts[group_of] + read_starts[np.searchsorted(groups, group_of)])), metadata
