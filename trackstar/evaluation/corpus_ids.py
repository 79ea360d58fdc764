"""Which of some ids are in a corpus, by an index's snapshot or a list of ids.

The corpus is read once, in order, and only what was asked for is remembered: memory is bounded by the question.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.evaluation.facts import document_of
from trackstar.item_footer import read_footer

_STREAM_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class CorpusIds:
    """Ids that were found in a corpus.

    Args:
        source: Where the corpus's ids come from, for messages.
        listed: Those of the ids asked for, and of their documents, that are listed as they are.
        documents: Those that are documents of listed passages.
    """

    source: str
    listed: frozenset[str]
    documents: frozenset[str]

    def __contains__(self, example_id: str) -> bool:
        """Whether the id is listed, or its document is, or it is a document of which a passage is listed."""
        return example_id in self.listed or example_id in self.documents or document_of(example_id) in self.listed


def find_in_index(uri: str, wanted: Collection[str], version: int | None = None) -> CorpusIds:
    """Looks for ids in the snapshot of an index; of each file only the column `example_id` is read.

    Raises:
        TrackStarError: no index, no such snapshot, or a damaged file.
    """
    from trackstar.index import Index  # Here, because torch comes with it: seconds that the command can do without.

    snapshot = Index.open(uri).snapshot(version)
    return _find(uri, wanted, (ids for file in snapshot.files for ids in _column(file.uri)))


def find_in_list(uri: str, wanted: Collection[str]) -> CorpusIds:
    """Looks for ids in a text file that holds one id a line.

    Raises:
        TrackStarError: no such file, none of it an id, or not UTF-8.
    """
    if not storage.exists(uri):
        raise TrackStarError(f"{uri}: no such file")
    if not storage.size(uri):
        raise TrackStarError(f"{uri}: no ids in this file; it must hold one id a line")
    return _find(uri, wanted, _lines(uri))


def _find(source: str, wanted: Collection[str], batches: Iterable[pa.Array]) -> CorpusIds:
    asked = pa.array(sorted({*wanted, *map(document_of, wanted)}), pa.string())
    listed: set[str] = set()
    documents: set[str] = set()
    for ids in batches:
        listed.update(ids.filter(pc.is_in(ids, value_set=asked)).to_pylist())
        passages = ids.filter(pc.match_substring_regex(ids, "#[0-9]+$"))
        if len(passages):
            above = pc.replace_substring_regex(passages, "#[0-9]+$", "")
            documents.update(above.filter(pc.is_in(above, value_set=asked)).to_pylist())
    return CorpusIds(source, frozenset(listed), frozenset(documents))


def _column(uri: str) -> Iterator[pa.Array]:
    """The ids of one file of an index, a row group at a time."""
    with storage.open_input(uri) as source:
        footer = read_footer(uri, source)
        file = pq.ParquetFile(source, metadata=footer)
        for group in range(footer.num_row_groups):
            try:
                yield file.read_row_group(group, columns=["example_id"])["example_id"].combine_chunks()
            except (pa.ArrowException, OSError, KeyError) as error:
                raise TrackStarError(f"{uri}: the column example_id cannot be read ({error})") from error


def _lines(uri: str) -> Iterator[pa.Array]:
    """The lines of a text file, some at a time."""
    with storage.open_stream(uri) as source:
        rest = b""
        while chunk := source.read(_STREAM_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            yield _ids(uri, lines)
        yield _ids(uri, [rest])


def _ids(uri: str, lines: list[bytes]) -> pa.Array:
    try:
        return pa.array([line.rstrip(b"\r").decode("utf-8") for line in lines], pa.string())
    except UnicodeDecodeError as error:
        raise TrackStarError(f"{uri}: not UTF-8 ({error.reason}); it must hold one id a line") from error
