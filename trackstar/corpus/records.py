"""One raw record → `Record`, or `Reject` with the reason."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

_SNIPPET = 200
_LARGEST_TOKEN = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One document of the corpus; at least one of `text` and `input_ids` is there."""

    example_id: str
    """The record's own `id`, else "shard:position"."""
    shard: str
    position: int
    """Byte offset of its line in the uncompressed stream; in Parquet, number of its row in the file."""
    text: str | None
    input_ids: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """A record that cannot be used, and why."""

    shard: str
    position: int
    reason: str
    snippet: str
    """Its first characters, 200 at most."""
    example_id: str = ""
    """The record's own `id`, where it could be read."""

    @property
    def name(self) -> str:
        """What the record is called: its own `id`, else "shard:position"."""
        return self.example_id or f"{self.shard}:{self.position}"


class UnusableError(Exception):
    """Why a record cannot be used; stays inside this package."""


def snippet(raw: bytes | str) -> str:
    """The first 200 characters, whatever the bytes are."""
    if isinstance(raw, str):
        raw = raw[:_SNIPPET].encode("utf-8", "replace")
    return raw[: 4 * _SNIPPET].decode("utf-8", "replace")[:_SNIPPET]


def of_json(shard: str, position: int, line: bytes) -> Record | Reject:
    """A record from one line of JSONL."""
    id: Any = None
    try:
        fields = _object(_decoded(line, "the line"))
        text, input_ids, id = fields.get("text"), fields.get("input_ids"), fields.get("id")
        if text is None and input_ids is None:
            names = ", ".join(sorted(fields))
            raise UnusableError(f"neither text nor input_ids; its fields are: {snippet(names) or 'none'}")
        if text is not None and not isinstance(text, str):
            raise UnusableError(f"text is {_json_type(text)}, not a string")
        if input_ids is not None and not isinstance(input_ids, list):
            raise UnusableError(f"input_ids is {_json_type(input_ids)}, not a list of token ids")
        return record(shard, position, text, input_ids, id)
    except UnusableError as error:
        return Reject(shard, position, str(error), snippet(line), _known_id(shard, position, id))


def of_line(shard: str, position: int, line: bytes) -> Record | Reject:
    """A record from one line of plain text."""
    try:
        return record(shard, position, _decoded(line, "the line"), None, None)
    except UnusableError as error:
        return Reject(shard, position, str(error), snippet(line))


def of_row(shard: str, position: int, text: bytes | None, input_ids: list[Any] | None, id: Any) -> Record | Reject:
    """A record from one row of Parquet."""
    try:
        if text is None and input_ids is None:
            raise UnusableError("neither text nor input_ids")
        decoded = None if text is None else _decoded(text, "text")
        id = _decoded(id, "id") if isinstance(id, bytes) else id
        return record(shard, position, decoded, input_ids, id)
    except UnusableError as error:
        first = snippet(text if text is not None else str(input_ids or "")[:_SNIPPET])
        return Reject(shard, position, str(error), first, _known_id(shard, position, id))


def record(shard: str, position: int, text: str | None, input_ids: Sequence[Any] | None, id: Any) -> Record:
    """Checks what every format has to be checked for.

    Raises:
        UnusableError: empty or non-Unicode text, bad token ids, or an id that is no scalar.
    """
    tokens = None if input_ids is None else _tokens(input_ids)
    if text is not None:
        if not text or text.isspace():
            if tokens is None:
                raise UnusableError("text is empty")
            text = None
        elif not _is_unicode(text):
            raise UnusableError("text holds half of a surrogate pair, which is no character")
    return Record(_example_id(shard, position, id), shard, position, text, tokens)


def _decoded(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UnusableError(f"{what} is not valid UTF-8 (byte {error.start})") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnusableError(f"malformed JSON: {error.msg} at column {error.pos + 1}") from None
    except ValueError:  # Python parses no integer of more than 4,300 digits
        raise UnusableError("malformed JSON: a number with too many digits") from None
    except RecursionError:
        raise UnusableError("malformed JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise UnusableError(f"{_json_type(value)}, not a JSON object")
    return value


def _tokens(input_ids: Sequence[Any]) -> tuple[int, ...]:
    if not input_ids:
        raise UnusableError("input_ids is empty")
    for token in input_ids:
        if type(token) is not int or not 0 <= token <= _LARGEST_TOKEN:
            raise UnusableError(f"input_ids holds {snippet(repr(token))}, which is no token id")
    return tuple(input_ids)


def _example_id(shard: str, position: int, id: Any) -> str:
    if id is None or id == "":
        return f"{shard}:{position}"
    if isinstance(id, (dict, list)):
        raise UnusableError(f"id is {_json_type(id)}, not a string or a number")
    name = id if isinstance(id, str) else json.dumps(id)
    if not _is_unicode(name):
        raise UnusableError("id holds half of a surrogate pair, which is no character")
    return name


def _known_id(shard: str, position: int, id: Any) -> str:
    """The id of a record that is rejected; empty without one, or where that is what is wrong with it."""
    if id is None or id in ("", b""):
        return ""
    try:
        return _example_id(shard, position, _decoded(id, "id") if isinstance(id, bytes) else id)
    except UnusableError:
        return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
