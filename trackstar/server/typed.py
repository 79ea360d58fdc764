"""Dataclasses as JSON: what a client sends is read strictly, and both directions have a JSON Schema from the same annotations.

A field's annotation is str, int, float, bool, a dataclass, a list or a dict of these, a Literal, or one of them with None; its
meaning and bounds stand beside it, as `Annotated[int, Doc("how many", minimum=1)]`.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

T = TypeVar("T")

_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
_SCHEMAS = {str: "string", int: "integer", float: "number", bool: "boolean"}


class InvalidError(Exception):
    """A value that does not fit; its text says which and why."""


@dataclasses.dataclass(frozen=True)
class Doc:
    """What a field means.

    Args:
        text: For people.
        minimum: Least number, or least number of items of a list.
        maximum: Greatest number, or greatest number of items of a list.
    """

    text: str
    minimum: int | None = None
    maximum: int | None = None


def read(kind: type[T], value: object) -> T:
    """The dataclass that a parsed JSON value stands for.

    Raises:
        InvalidError: not an object, a field that is missing, unknown, of another type or out of bounds, or text that is not
            Unicode (half of a surrogate pair).
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        raise InvalidError(f"expected a JSON object, found {_describe(value)}")
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise InvalidError(
                f"unknown field {_quoted(name)}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(fields)}")
            )
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {name: _read(hints[name], value[name], name) for name in fields if name in value}
    missing = [name for name, field in fields.items() if name not in found and _required(field)]
    if missing:
        raise InvalidError(f"the field {missing[0]!r} is missing")
    return kind(**found)


def to_json(value: Any) -> Any:
    """What `json.dumps` takes, from dataclasses, lists and dicts of them."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def schemas(kinds: list[type], closed: Collection[type]) -> dict[str, Any]:
    """JSON Schemas by name of these dataclasses and of all that they are made of; those in `closed` take no other fields."""
    found: dict[str, Any] = {}
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if kind.__name__ not in found:
            found[kind.__name__] = _object_schema(kind, kind in closed)
            waiting += _dataclasses_in(kind)
    return dict(sorted(found.items()))


def reference(kind: type) -> dict[str, str]:
    """Where the document has a dataclass's schema."""
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _read(hint: Any, value: object, where: str, doc: Doc | None = None) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _read(arguments[0], value, where, next(a for a in arguments[1:] if isinstance(a, Doc)))
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, where, doc)
    if origin is Literal:
        if value not in arguments:
            raise InvalidError(f"{where} is {_describe(value)}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise InvalidError(f"{where} must be a list, not {_describe(value)}")
        _check_bounds(len(value), doc, f"{where}: the number of items")
        return [_read(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidError(f"{where} must be a whole number, not {_describe(value)}")
    if not isinstance(value, hint):
        raise InvalidError(f"{where} must be {_NAMES[hint]}, not {_describe(value)}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidError(f"{where} holds half of a surrogate pair: that is no Unicode text")
    if isinstance(value, int):
        _check_bounds(value, doc, where)
    return value


def _check_bounds(number: int, doc: Doc | None, where: str) -> None:
    if doc is None:
        return
    if doc.minimum is not None and number < doc.minimum:
        raise InvalidError(f"{where} is {_number(number)}; it must be at least {doc.minimum}")
    if doc.maximum is not None and number > doc.maximum:
        raise InvalidError(f"{where} is {_number(number)}; it must be at most {doc.maximum}")


def _number(number: int) -> str:
    """A number to read; Python refuses to write out those of thousands of digits."""
    return str(number) if abs(number) < 10**30 else "a number of more than thirty digits"


def _describe(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "a string" if isinstance(value, str) else _NAMES.get(type(value), type(value).__name__)


def _quoted(name: object) -> str:
    """A client's own word in a message to it: short, and nothing but ASCII."""
    text = ascii(str(name))
    return text if len(text) <= 60 else text[:56] + "…'"


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _object_schema(kind: type, closed: bool) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field in dataclasses.fields(kind):
        schema = _schema(hints[field.name])
        if _required(field):
            required.append(field.name)
        elif field.default is not dataclasses.MISSING:
            schema["default"] = field.default
        properties[field.name] = schema
    return {
        "type": "object",
        "description": (kind.__doc__ or "").split("\n\n")[0].strip(),
        "properties": properties,
        "required": required,
        "additionalProperties": not closed,
    }


def _schema(hint: Any, doc: Doc | None = None) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    schema: dict[str, Any]
    if origin is Annotated:
        doc = next(a for a in arguments[1:] if isinstance(a, Doc))
        schema = {**_schema(arguments[0], doc), "description": doc.text}
    elif origin in (Union, types.UnionType):
        inner = _schema(next(a for a in arguments if a is not type(None)), doc)
        schema = {"anyOf": [inner, {"type": "null"}]}
    elif origin is Literal:
        schema = {"type": "string", "enum": list(arguments)}
    elif origin is list:
        schema = {"type": "array", "items": _schema(arguments[0]), **_bounds(doc, "minItems", "maxItems")}
    elif origin is dict:
        schema = {"type": "object", "additionalProperties": True if arguments[1] is Any else _schema(arguments[1])}
    elif dataclasses.is_dataclass(hint):
        schema = dict(reference(typing.cast(type, hint)))
    else:
        schema = {"type": _SCHEMAS[hint], **_bounds(doc, "minimum", "maximum")}
    return schema


def _bounds(doc: Doc | None, least: str, greatest: str) -> dict[str, int]:
    bounds = {least: doc.minimum, greatest: doc.maximum} if doc else {}
    return {name: value for name, value in bounds.items() if value is not None}


def _dataclasses_in(kind: type) -> list[type]:
    found: list[type] = []
    waiting = list(typing.get_type_hints(kind, include_extras=True).values())
    while waiting:
        hint = waiting.pop()
        if dataclasses.is_dataclass(hint):
            found.append(typing.cast(type, hint))
        waiting += [argument for argument in typing.get_args(hint) if not isinstance(argument, str | Doc)]
    return found
