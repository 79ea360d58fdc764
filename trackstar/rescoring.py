"""The second pass: what a scan of a cheap index proposes is found in a better one, and scored there as a scan of it would do.

The two hold the same records in files of their own. A row is known by its shard, position and id; that it was made of the same
text is checked by its tokens and its loss. Only the rows that were proposed are read of the better index's encodings, and their
scores are those of `held_rows`: float64, in the same order of sums, so they equal a scan's to the last bit.
"""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from trackstar.candidates import Pairs
from trackstar.encoding_reader import Chunk, EncodingReader
from trackstar.errors import TrackStarError
from trackstar.held_rows import HeldRows, ScannedFile
from trackstar.index import Index
from trackstar.passages import fetch_passages, fetch_rows
from trackstar.queries import Change, QuerySet
from trackstar.row_weights import RowWeights
from trackstar.scoring import ScanSettings
from trackstar.topk import TopK

_READERS = 8
_LOSS_TOLERANCE = 0.1
"""How far the losses of one text may be apart, of their size: batches of other documents round a loss of bfloat16 otherwise."""
_COLUMNS = ("example_id", "shard", "position", "num_tokens", "loss")

Tops = tuple[TopK, TopK | None]


@dataclasses.dataclass(frozen=True)
class Proposed:
    """Rows of one file of the cheap index that the first pass proposes.

    Args:
        uri: The file.
        others: Files of the better index that can hold the same records.
        queries: Of each end of the ranking, proponents first: [P] int64, the queries that rows are proposed for.
        rows: Of each end: [P] int64, the rows.
    """

    uri: str
    others: tuple[str, ...]
    queries: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a row."""
        return sum(map(len, self.rows))

    @property
    def wanted(self) -> np.ndarray:
        """All rows, each once, ascending."""
        return np.unique(np.concatenate(self.rows))


@dataclasses.dataclass(frozen=True)
class Missing:
    """An example that was proposed and cannot be scored again."""

    example_id: str
    shard: str
    position: int
    reason: str


@dataclasses.dataclass(frozen=True)
class BetterRows:
    """Some rows in the better form.

    Args:
        file: The file that they are of.
        chunks: They, and perhaps others; ascending.
        rows: [n] int64, their numbers in the file, ascending.
        proposed: [n] int64, the rows of the cheap index's file that they are.
    """

    file: ScannedFile
    chunks: Sequence[Chunk]
    rows: np.ndarray
    proposed: np.ndarray


Found = tuple[list[BetterRows], list[Missing]]


def proposals(tops: Sequence[TopK], links: Mapping[str, Sequence[str]], count: int) -> list[list[Proposed]]:
    """What a first pass proposes, file by file, in `count` groups of about as many pairs each; some may be empty.

    Args:
        tops: Both ends of the ranking, or one.
        links: By file: the files of the better index that can hold its records.
        count: Groups.
    """
    by_file: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    nothing = (np.empty(0, np.int64), np.empty(0, np.int64))
    for end, top in enumerate(tops):
        order, queries = np.argsort(top.files, kind="stable"), top.queries
        edges = np.searchsorted(top.files[order], np.arange(len(top.uris) + 1))
        for number, uri in enumerate(top.uris):
            some = order[edges[number] : edges[number + 1]]
            if len(some):
                by_file.setdefault(uri, [nothing] * len(tops))[end] = (queries[some], top.rows[some])
    total, before = sum(map(len, tops)), 0
    groups: list[list[Proposed]] = [[] for _ in range(count)]
    for uri, ends in sorted(by_file.items()):
        queries, rows = zip(*ends, strict=True)
        groups[min(count - 1, count * before // total)].append(Proposed(uri, tuple(links[uri]), queries, rows))
        before += sum(map(len, rows))
    return groups


class SecondPass:
    """Scores proposed rows.

    Args:
        queries: As for `scoring.scan_files`, under the better spec.
        settings: See there.
        change: See there.
    """

    def __init__(self, queries: QuerySet, settings: ScanSettings, change: Change | None):
        self._queries = queries
        self._settings = settings
        self._change = change

    def weights(self, uri: str, norms: Callable[[], pa.Array]) -> RowWeights | None:
        """The weights of a file's rows, of which `norms` gives the column `grad_norm`; None where they are 1."""
        if self._change is None and self._settings.unit_norm:
            return None
        return RowWeights(self._change, None if self._settings.unit_norm else norms(), uri)

    def of_index(self, proposed: Sequence[Proposed], index: Index) -> tuple[Tops, list[Missing]]:
        """The k best of what is proposed, by the encodings of the better index; and what it does not hold.

        Raises:
            TrackStarError: a file that is gone or damaged, or rows that were made of another text.
        """
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:  # in an object store, some requests a file
            found = list(pool.map(lambda one: self._read(one, index), proposed))
        missing = [example for _, some in found for example in some]
        return self.best(proposed, [rows for rows, _ in found]), missing

    def best(self, proposed: Sequence[Proposed], found: Sequence[Sequence[BetterRows]]) -> Tops:
        """The k best of what is proposed.

        Args:
            proposed: The proposals.
            found: Of each, those of its rows that there are in the better form.
        """
        held = HeldRows.of(self._queries, self._change, self._settings.unit_norm)
        ends = 2 if self._settings.opponents else 1
        pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(ends)]
        for one, parts in zip(proposed, found, strict=True):
            wanted = one.wanted
            numbers = np.full(len(wanted), -1, np.int64)
            for part in parts:
                numbers[np.searchsorted(wanted, part.proposed)] = _hold(held, part)
            for end in range(ends):
                number = numbers[np.searchsorted(wanted, one.rows[end])]
                pairs[end].append((one.queries[end][number >= 0], number[number >= 0]))
        tops = [held.best(_pairs(some), self._settings.top_k, end == 0) for end, some in enumerate(pairs)]
        return tops[0], tops[1] if ends == 2 else None

    def _read(self, proposed: Proposed, index: Index) -> Found:
        keys = RowKeys.read(proposed.uri, proposed.wanted)
        parts: list[BetterRows] = []
        left = np.ones(len(keys), bool)
        for uri in proposed.others:
            if not left.any():
                break
            with contextlib.closing(EncodingReader(uri, index.spec.dimension)) as reader:
                places = keys.find(reader)
                left &= places < 0
                found = np.flatnonzero(places >= 0)
                found = found[np.argsort(places[found])]
                if len(found):
                    parts.append(self._take(reader, places[found], keys.rows[found]))
        missing = [
            Missing(keys.ids[i], keys.shards[i], keys.positions[i], _reason(index, proposed.others, keys.positions[i]))
            for i in np.flatnonzero(left).tolist()
        ]
        return parts, missing

    def _take(self, reader: EncodingReader, rows: np.ndarray, proposed: np.ndarray) -> BetterRows:
        chunks = reader.take(rows)
        for chunk in chunks:
            own = rows[(rows >= chunk.row) & (rows < chunk.row + len(chunk))]
            values = chunk.stored.take(torch.from_numpy(own - chunk.row)).values(torch.float32)
            bad = ~torch.isfinite(values).all(dim=1).numpy()
            if bad.any():
                raise TrackStarError(
                    f"{reader.uri}, row {own[bad][0]}: the stored encoding holds NaN or infinity; "
                    "run `trackstar verify --repair`"
                )
        ids = reader.column("example_id").cast(pa.string())
        weights = self.weights(reader.uri, lambda: reader.column("grad_norm"))
        return BetterRows(ScannedFile(reader.uri, ids, weights, None, None), chunks, rows, proposed)


@dataclasses.dataclass(frozen=True)
class RowKeys:
    """What rows of a file are known by, and what their texts are.

    Args:
        uri: The file.
        rows: [n] int64.
        ids: Their ids.
        shards: URIs of their shards.
        positions: Where their records are in these.
        num_tokens: [n] int32.
        losses: [n] float32.
    """

    uri: str
    rows: np.ndarray
    ids: list[str]
    shards: list[str]
    positions: list[int]
    num_tokens: np.ndarray
    losses: np.ndarray

    @classmethod
    def read(cls, uri: str, rows: np.ndarray) -> "RowKeys":
        """Of rows of the file at `uri`.

        Raises:
            TrackStarError: it is damaged, gone, or has no such row or column.
        """
        table, _ = fetch_rows(uri, rows, _COLUMNS)
        if lacking := sorted(set(_COLUMNS) - set(table.column_names)):
            raise TrackStarError(f"{uri}: no column {lacking[0]!r}, by which rows are found in the other index")
        ids, shards, positions = (table[name].to_pylist() for name in _COLUMNS[:3])
        return cls(uri, rows, ids, shards, positions, table["num_tokens"].to_numpy(), table["loss"].to_numpy())

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, reader: EncodingReader) -> np.ndarray:
        """[n] int64: where these records are in a file that was made of the same shard; −1 where it does not hold them.

        Raises:
            TrackStarError: a row that was made of another text.
        """
        positions = reader.column("position").to_numpy(zero_copy_only=False)
        near = np.flatnonzero(np.isin(positions, np.array(self.positions, np.int64)))
        ids = reader.column("example_id").cast(pa.string()).take(pa.array(near)).to_pylist()
        rows = {(int(positions[row]), name): row for row, name in zip(near.tolist(), ids, strict=True)}
        found = [rows.get(key, -1) for key in zip(self.positions, self.ids, strict=True)]
        places = np.array(found, np.int64)
        self._check(reader, places)
        return places

    def _check(self, reader: EncodingReader, places: np.ndarray) -> None:
        own = np.flatnonzero(places >= 0)
        if not len(own):
            return
        tokens = reader.column("num_tokens").to_numpy(zero_copy_only=False)[places[own]]
        losses = reader.column("loss").to_numpy(zero_copy_only=False)[places[own]]
        apart = np.abs(losses - self.losses[own]) > _LOSS_TOLERANCE * np.maximum(1.0, np.abs(losses))
        bad = np.flatnonzero((tokens != self.num_tokens[own]) | apart)
        if len(bad):
            here, there = own[bad[0]], bad[0]
            raise TrackStarError(
                f"{self.ids[here]!r} ({self.shards[here]}, position {self.positions[here]}) was made of different texts: of "
                f"{self.num_tokens[here]} tokens with a loss of {self.losses[here]:.4g} in {self.uri}, of {tokens[there]} with "
                f"{losses[there]:.4g} in {reader.uri}. Bring both indexes up to date with `trackstar reindex`"
            )


def texts_elsewhere(uri: str, rows: Sequence[int], others: Sequence[str], dimension: int) -> list[str]:
    """Texts of rows of one index's file, as the other index's files hold them; empty where they do not.

    Args:
        uri: The file.
        rows: The rows.
        others: Files of the other index that can hold the same records.
        dimension: d of the other index.
    """
    keys = RowKeys.read(uri, np.asarray(rows, np.int64))
    texts = [""] * len(keys)
    for other in others:
        with contextlib.closing(EncodingReader(other, dimension)) as reader:
            places = keys.find(reader)
        found = np.flatnonzero(places >= 0)
        _, there, _ = fetch_passages(other, places[found])
        for i, text in zip(found.tolist(), there or [], strict=False):
            texts[i] = text
    return texts


def _hold(held: HeldRows, part: BetterRows) -> np.ndarray:
    """Takes rows in hand; returns the numbers that they have there, [n] int64."""
    starts = np.array([held.hold(part.file, chunk) for chunk in part.chunks])
    firsts = np.array([chunk.row for chunk in part.chunks])
    chunk = np.searchsorted(firsts, part.rows, side="right") - 1
    return np.asarray(starts[chunk] + part.rows - firsts[chunk])


def _pairs(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Pairs:
    """(query, row) arrays together, sorted by query; their bounds say nothing."""
    query = np.concatenate([np.empty(0, np.int64), *(query for query, _ in parts)])
    row = np.concatenate([np.empty(0, np.int64), *(row for _, row in parts)])
    order = np.argsort(query, kind="stable")
    unknown = np.zeros(len(order), np.float32)
    return Pairs(query[order], row[order], unknown, unknown)


def _reason(index: Index, others: Sequence[str], position: int) -> str:
    """Why none of the files of an index holds the record at a position of their shard, as far as the index says it."""
    for uri in others:
        key = uri.rsplit("/", 1)[-1].split(".")[0]
        for reject in index.rejects_of(key):
            if reject.position == position:
                return f"rejected by {index.uri}: {reject.reason}"
    return f"in no file of {index.uri}: `trackstar verify --index {index.uri}` tells whether these are whole"
