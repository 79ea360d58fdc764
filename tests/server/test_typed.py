"""Dataclasses from JSON and back."""

import dataclasses
from typing import Annotated, Any, Literal

import pytest

from trackstar.server import typed
from trackstar.server.typed import Doc, InvalidError


@dataclasses.dataclass(frozen=True)
class Part:
    """A part."""

    name: Annotated[str, Doc("its name")]


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole.

    With more lines.
    """

    count: Annotated[int, Doc("how many", minimum=1, maximum=9)]
    kind: Annotated[Literal["a", "b"], Doc("which")] = "a"
    numbers: Annotated[list[int] | None, Doc("some", maximum=2)] = None
    part: Part | None = None
    more: Annotated[dict[str, Any], Doc("anything")] = dataclasses.field(default_factory=dict)


def test_read() -> None:
    assert typed.read(Whole, {"count": 3}) == Whole(3)
    assert typed.read(Whole, {"count": 9, "kind": "b", "numbers": [1, 2]}) == Whole(9, "b", [1, 2])
    assert typed.read(Whole, {"count": 1, "numbers": None}) == Whole(1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"count": 10}, "count is 10; it must be at most 9"),
        ({"count": 1.5}, "count must be a whole number, not a number"),
        ({"count": 10**5000}, "a number of more than thirty digits"),
        ({"count": 1, "kind": "c"}, "kind is a string; it must be one of 'a', 'b'"),
        ({"count": 1, "kind": ["a"]}, "kind is a list"),
        ({"count": 1, "numbers": [1, "2"]}, r"numbers\[1\] must be a whole number, not a string"),
        ({"count": 1, "numbers": [1, 2, 3]}, "numbers: the number of items is 3; it must be at most 2"),
        ({"count": 1, "numbers": 7}, "numbers must be a list, not a whole number"),
        ({}, "the field 'count' is missing"),
        ({"count": 1, "cuont": 2}, "unknown field 'cuont'; did you mean 'count'"),
        ({"count": 1, "x" * 1000: 2}, "unknown field 'x{55}…'"),
        ([1], "expected a JSON object, found a list"),
    ],
)
def test_what_does_not_fit(value: object, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        typed.read(Whole, value)


def test_schemas() -> None:
    found = typed.schemas([Whole], closed=[Whole])
    assert set(found) == {"Part", "Whole"}
    assert found["Part"]["additionalProperties"] is True
    whole = found["Whole"]
    assert whole["description"] == "A whole."
    assert whole["required"] == ["count"]
    assert whole["additionalProperties"] is False
    assert whole["properties"]["count"] == {"type": "integer", "minimum": 1, "maximum": 9, "description": "how many"}
    assert whole["properties"]["kind"] == {"type": "string", "enum": ["a", "b"], "description": "which", "default": "a"}
    numbers = whole["properties"]["numbers"]
    assert numbers["anyOf"] == [{"type": "array", "items": {"type": "integer"}, "maxItems": 2}, {"type": "null"}]
    assert whole["properties"]["part"]["anyOf"][0] == {"$ref": "#/components/schemas/Part"}


def test_to_json() -> None:
    assert typed.to_json(Whole(1, part=Part("x"), more={"y": [Part("z")]})) == {
        "count": 1,
        "kind": "a",
        "numbers": None,
        "part": {"name": "x"},
        "more": {"y": [{"name": "z"}]},
    }
