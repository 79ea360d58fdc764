"""Results files as the page needs them: a light row a query at once, whole records when they are asked for.

A row is what the list, its filters and its metrics need; `static/rows.js` makes the same of files that are dropped on the
page, and describes the fields.
"""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.evaluation.facts import Fact, fact_id_of, is_correct
from trackstar.results import Result, parse_line, result_of

MARKS = "proponent_correct"
_PROMPT, _TARGET, _FIELD = 500, 200, 200  # Characters of each that a row holds.
_EXACT = 2**53  # Whole numbers beyond are no longer exact in JavaScript.

OnProgress = Callable[[float], None]
"""Is told the share of a file that is read, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A results file that is open.

    The file is kept open: replacing it on disk does not change what is shown.

    Args:
        name: What the page calls it.
        uri: Where it lies.
        rows: A light row a record.
    """

    name: str
    uri: str
    rows: Sequence[Mapping[str, Any]]
    _spans: Sequence[tuple[int, int, int]]  # Line number, offset and length in bytes of each record's line.
    _file: BinaryIO
    _facts: Mapping[str, Fact] | None = None

    def line(self, number: int) -> bytes:
        """A record's line as it stands in the file, with its line feed.

        Raises:
            TrackStarError: the file was changed in place.
        """
        _, offset, length = self._spans[number]
        line = os.pread(self._file.fileno(), length, offset)
        if len(line) != length:
            raise TrackStarError(f"{self.uri}: the file was changed while it is shown; start again")
        return line.rstrip(b"\n") + b"\n"

    def record(self, number: int) -> dict[str, Any]:
        """A record for the page: `Result.to_dict` with `proponent_correct` where that is known, all of it exact JSON.

        Raises:
            TrackStarError: the file was changed in place.
        """
        return _for_page(_record(*self._read(number), self._facts))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self, number: int) -> tuple[Result, str]:
        line_number, _, _ = self._spans[number]
        fields = parse_line(self.line(number), line_number, self.uri)
        if fields is None:
            raise TrackStarError(f"{self.uri}: the file was changed while it is shown; start again")
        where = f"{self.uri}, line {line_number}"
        return result_of(fields, number, where), where


def open_run(
    name: str, uri: str, facts: Mapping[str, Fact] | None = None, on_progress: OnProgress | None = None
) -> Run:
    """Reads a results file once, line by line.

    Args:
        name: What the page calls it.
        uri: Our results, or those of the paper's release; local or in a store.
        facts: Annotations that say which proponents are correct, in place of the records' own marks.
        on_progress: See `OnProgress`.

    Raises:
        TrackStarError: as `read_results`; no result in the file, or marks that do not fit their proponents.
    """
    file = _opened(uri)
    try:
        rows: list[dict[str, Any]] = []
        spans: list[tuple[int, int, int]] = []
        for number, offset, line in _lines(file, on_progress):
            fields = parse_line(line, number, uri)
            if fields is None:
                continue
            where = f"{uri}, line {number}"
            rows.append(row_of(_for_page(_record(result_of(fields, len(rows), where), where, facts))))
            spans.append((number, offset, len(line)))
        if not rows:
            raise TrackStarError(f"{uri}: no results in this file")
    except BaseException:
        file.close()
        raise
    return Run(name, uri, rows, spans, file, facts)


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The light row of a record for the page; `static/rows.js` says what it holds."""
    marks = record.get(MARKS)
    return {
        "id": record["example_id"],
        "set": record["query_set"],
        "prompt": record["inputs_plaintext"][:_PROMPT],
        "target": record["targets_plaintext"][:_TARGET],
        "n": len(record["proponent_ids"]),
        "m": len(record["opponent_ids"]),
        "best": next(iter(record["proponent_scores"]), None),
        "worst": next(iter(record["opponent_scores"]), None),
        "marks": None if marks is None else "".join("1" if mark else "0" for mark in marks),
        "fields": {name: _cut(value) for name, value in record.items() if name not in _OWN and _is_simple(value)},
    }


_OWN = {
    "example_id",
    "query_set",
    "inputs_plaintext",
    "targets_plaintext",
    "proponents",
    "proponent_ids",
    "proponent_scores",
    "opponents",
    "opponent_ids",
    "opponent_scores",
    MARKS,
}


def _is_simple(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _cut(value: Any) -> Any:
    return value[:_FIELD] if isinstance(value, str) else value


def _record(result: Result, where: str, facts: Mapping[str, Fact] | None) -> dict[str, Any]:
    """The record, with marks by the annotations or, checked, its own; without any where neither has them."""
    record = result.to_dict()
    if facts is not None:
        fact = facts.get(fact_id_of(result.query))
        record.pop(MARKS, None)
        if fact is not None and fact.gold_ids:
            record[MARKS] = [is_correct(example_id, fact.gold_ids) for example_id in result.proponents.ids]
    marks = record.get(MARKS)
    if marks is None:
        record.pop(MARKS, None)
    elif not isinstance(marks, list) or not all(isinstance(mark, bool) for mark in marks):
        raise TrackStarError(f"{where}: {MARKS!r} must be a list of true and false")
    elif len(marks) != len(result.proponents.ids):
        raise TrackStarError(f"{where}: {len(marks)} marks in {MARKS!r} for {len(result.proponents.ids)} proponents")
    return record


def _for_page(value: Any) -> Any:
    """JSON that a browser reads exactly: no NaN or infinity (null), no whole number beyond a double's (text)."""
    if isinstance(value, dict):
        return {name: _for_page(item) for name, item in value.items()}
    if isinstance(value, list):
        return value if _is_plain(value) else [_for_page(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -_EXACT < value < _EXACT:
        return str(value)
    return value


def _is_plain(values: list[Any]) -> bool:
    """A list of nothing but texts, as the passages are, need not be looked at one by one."""
    return all(type(value) is str for value in values)


def to_json(value: Any) -> str:
    """Compact JSON; halves of surrogate pairs stay as escapes when it is encoded with "backslashreplace"."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_bytes(value: Any) -> bytes:
    """`to_json` in UTF-8."""
    return to_json(value).encode("utf-8", "backslashreplace")


def _opened(uri: str) -> BinaryIO:
    """The file, or an unnamed copy of the object, to read anywhere in."""
    if not storage.exists(uri):
        raise TrackStarError(f"{uri}: no such file")
    path = storage.local_path(uri)
    if path is not None:
        try:
            return path.open("rb")
        except OSError as error:
            raise TrackStarError(f"{uri}: cannot be read ({error.strerror})") from error
    copy = tempfile.TemporaryFile(prefix="trackstar-view-")  # noqa: SIM115  It lives as long as the run.
    try:
        with storage.open_stream(uri) as source:
            shutil.copyfileobj(source, copy)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


def _lines(file: BinaryIO, on_progress: OnProgress | None) -> Iterator[tuple[int, int, bytes]]:
    """Number, from 1, offset and bytes of each line."""
    size = os.fstat(file.fileno()).st_size
    offset = 0
    for number, line in enumerate(file, start=1):
        yield number, offset, line
        offset += len(line)
        if on_progress is not None:
            on_progress(offset / size if size else 1.0)
