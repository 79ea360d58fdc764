"""Queries and results as JSONL, in the schema of the TrackStar paper's own release.

A query: `inputs_plaintext` (the prompt), `targets_plaintext` (the target), optional `example_id`, any other fields. A
result: the query's fields, plus `query_set` and, for proponents and for opponents, three lists of equal length: texts,
ids and scores. Fields that this program does not know are carried through unchanged.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trackstar import storage
from trackstar.errors import TrackStarError

_QUERY_FIELDS = ("example_id", "inputs_plaintext", "targets_plaintext")
_LISTS = ("proponents", "proponent_ids", "proponent_scores", "opponents", "opponent_ids", "opponent_scores")


@dataclasses.dataclass(frozen=True)
class Query:
    """What a model was asked and what it said.

    Args:
        example_id: Identifier; the line number, counted from 0, where the file gives none.
        prompt: `inputs_plaintext`; may be empty.
        target: `targets_plaintext`, the completion whose loss is differentiated; not empty.
        fields: All other fields of the line, in their order.
    """

    example_id: str
    prompt: str
    target: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One end of one query's ranking, best first; the three lists have equal length.

    Args:
        texts: The examples' texts; empty strings where the index holds none.
        ids: The examples' identifiers.
        scores: φ(z)·φ(q) of each.
    """

    texts: Sequence[str] = dataclasses.field(default_factory=list)
    ids: Sequence[str] = dataclasses.field(default_factory=list)
    scores: Sequence[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.ids) == len(self.scores):
            raise TrackStarError(
                f"a ranking needs as many texts as ids and scores: {len(self.texts)}, {len(self.ids)}, {len(self.scores)}"
            )
        if not all(math.isfinite(score) for score in self.scores):
            raise TrackStarError("a ranking holds a score that is not finite")


@dataclasses.dataclass(frozen=True)
class Result:
    """A query with the examples that score highest (proponents) and lowest (opponents)."""

    query: Query
    query_set: str
    proponents: Ranking
    opponents: Ranking = dataclasses.field(default_factory=Ranking)

    def to_dict(self) -> dict[str, Any]:
        """The line's fields in the released files' order; further fields of the query follow."""
        return {
            "example_id": self.query.example_id,
            "query_set": self.query_set,
            "inputs_plaintext": self.query.prompt,
            "targets_plaintext": self.query.target,
            "proponents": list(self.proponents.texts),
            "proponent_ids": list(self.proponents.ids),
            "proponent_scores": [float(score) for score in self.proponents.scores],
            "opponents": list(self.opponents.texts),
            "opponent_ids": list(self.opponents.ids),
            "opponent_scores": [float(score) for score in self.opponents.scores],
            **self.query.fields,
        }


def read_queries(uri: str) -> list[Query]:
    """Reads a file of queries, one JSON object a line; blank lines are skipped.

    Results files are queries too: their rankings are left out, so an earlier run's output can be asked again.

    Raises:
        TrackStarError: no such file, no query in it, a line that is not a JSON object, a missing or mistyped field, an
            empty target, or an `example_id` that occurs twice; with the line's number.
    """
    queries: list[Query] = []
    seen: dict[str, int] = {}
    for number, where, fields in read_objects(uri):
        query = _query(fields, len(queries), where, left_out=(*_LISTS, "query_set"))
        if query.example_id in seen:
            first = seen[query.example_id]
            raise TrackStarError(f"{where}: example_id {query.example_id!r} was used on line {first} already")
        seen[query.example_id] = number
        queries.append(query)
    if not queries:
        raise TrackStarError(f"{uri}: no queries in this file")
    return queries


def read_results(uri: str) -> list[Result]:
    """Reads a results file: ours, or one of the paper's release.

    Raises:
        TrackStarError: as `read_queries`, or lists whose lengths do not agree.
    """
    return [result_of(fields, position, where) for position, (_, where, fields) in enumerate(read_objects(uri))]


def write_results(uri: str, results: Iterable[Result]) -> None:
    """Writes one JSON object a line; the file appears when it is complete, and equal results give equal bytes."""
    lines = [json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False) + "\n" for result in results]
    # A text may hold half of a surrogate pair, which JSON can carry as an escape and UTF-8 cannot carry at all.
    storage.write_bytes(uri, "".join(lines).encode("utf-8", "backslashreplace"))


def read_objects(uri: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Line number, "file, line n" and the object of each line that is not blank."""
    if not storage.exists(uri):
        raise TrackStarError(f"{uri}: no such file")
    for number, line in enumerate(storage.read_bytes(uri).split(b"\n"), start=1):
        fields = parse_line(line, number, uri)
        if fields is not None:
            yield number, f"{uri}, line {number}", fields


def parse_line(line: bytes, number: int, uri: str) -> dict[str, Any] | None:
    """The object of one line of JSONL; None for a blank line.

    Args:
        line: Its bytes.
        number: Its number, from 1; the first may begin with a byte order mark.
        uri: The file, for messages.

    Raises:
        TrackStarError: not UTF-8, not JSON, or not an object.
    """
    if not line.strip():
        return None
    where = f"{uri}, line {number}"
    try:
        fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise TrackStarError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise TrackStarError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(fields, dict):
        raise TrackStarError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    return fields


def _query(fields: dict[str, Any], position: int, where: str, left_out: tuple[str, ...]) -> Query:
    for name in ("inputs_plaintext", "targets_plaintext"):
        if name not in fields:
            raise TrackStarError(f"{where}: the field {name!r} is missing")
        if not isinstance(fields[name], str):
            raise TrackStarError(f"{where}: the field {name!r} must be a string, not {type(fields[name]).__name__}")
    if not fields["targets_plaintext"]:
        raise TrackStarError(f"{where}: 'targets_plaintext' is empty; there is no loss to differentiate")
    example_id = fields.get("example_id", position)
    if isinstance(example_id, list | dict | bool) or example_id is None:
        raise TrackStarError(f"{where}: 'example_id' must be a string or a number")
    others = {name: value for name, value in fields.items() if name not in (*_QUERY_FIELDS, *left_out)}
    return Query(str(example_id), fields["inputs_plaintext"], fields["targets_plaintext"], others)


def result_of(fields: dict[str, Any], position: int, where: str) -> Result:
    """The result that a line's object holds.

    Args:
        fields: The object.
        position: Which result of its file it is, from 0; its id where it has none.
        where: "file, line n", for messages.

    Raises:
        TrackStarError: as `read_results`.
    """
    query = _query(fields, position, where, left_out=(*_LISTS, "query_set"))
    return Result(
        query,
        "" if fields.get("query_set") is None else str(fields["query_set"]),
        _ranking(fields, "proponent", where),
        _ranking(fields, "opponent", where),
    )


def _ranking(fields: dict[str, Any], end: str, where: str) -> Ranking:
    texts, ids, scores = (fields.get(name) or [] for name in (f"{end}s", f"{end}_ids", f"{end}_scores"))
    for name, values in ((f"{end}s", texts), (f"{end}_ids", ids), (f"{end}_scores", scores)):
        if not isinstance(values, list):
            raise TrackStarError(f"{where}: the field {name!r} must be a list")
    if not all(isinstance(score, int | float) and not isinstance(score, bool) for score in scores):
        raise TrackStarError(f"{where}: '{end}_scores' must hold numbers")
    if not all(isinstance(i, str | int) and not isinstance(i, bool) for i in ids):
        raise TrackStarError(f"{where}: '{end}_ids' must hold strings or numbers")
    texts = texts or [""] * len(ids)
    try:
        return Ranking([str(text) for text in texts], [str(i) for i in ids], [float(score) for score in scores])
    except TrackStarError as error:
        raise TrackStarError(f"{where}: {end}s: {error}") from error
