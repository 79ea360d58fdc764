"""The page's modules against Python: filter expressions, token spans, matches, pieces of texts."""

import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page

View = Callable[..., Page]
Row = dict[str, Any]
Holds = Callable[[Row], Any]

ROWS: list[Row] = [
    {name: value for name, value in (("n", n), ("s", s), ("b", b), ("8x", x)) if value is not None}
    for n, s, b, x in zip(
        [0, 1, -2.5, 1e3, None, 7, 7, None], ["", "Oslo", "7", None, "os", "OSLO lies", "x", "lo"],
        [True, False, None, True, False, None, True, False], [None, 0.5, 1, None, 2, 3, "3", "y"], strict=True,
    )
]  # fmt: skip


def _value(chance: random.Random) -> tuple[str, Holds]:
    kind = chance.randrange(6)
    if kind < 3:
        name = chance.choice(["n", "s", "b", "8x", "missing"])
        written = f"`{name}`" if chance.random() < 0.2 else name
        return written, lambda row: row.get(name)
    if kind == 3:
        number = chance.choice([0, 1, 7, -2.5, 0.5, 1e3])
        return f"{number:g}", lambda row: number
    if kind == 4:
        text = chance.choice(["", "Oslo", "OS", "7", "x"])
        quote = chance.choice("\"'")
        return f"{quote}{text}{quote}", lambda row: text
    constant = chance.choice([True, False, None])
    written = {True: "true", False: "FALSE", None: "null"}[constant]
    return written, lambda row: constant


def _number(value: Any) -> float:
    try:
        return float(value) if value is not None and value != "" else float("nan")
    except ValueError:
        return float("nan")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _compare(operator: str, left: Any, right: Any) -> bool:
    if operator in ("~", "!~"):
        found = left is not None and right is not None and _text(right).lower() in _text(left).lower()
        return found == (operator == "~")
    if operator in ("=", "==", "!="):
        if left is None or right is None:
            equal = left is None and right is None
        elif _is_number(left) or _is_number(right):
            equal = _number(left) == _number(right)
        else:
            equal = _text(left) == _text(right)
        return equal != (operator == "!=")
    if left is None or right is None:
        return False
    if _is_number(left) or _is_number(right):
        left, right = _number(left), _number(right)
    if type(left) is not type(right):
        return False
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operator])


def _expression(chance: random.Random, depth: int) -> tuple[str, Holds]:
    kind = chance.randrange(7) if depth else 0
    if kind < 3:
        (left, left_of), (right, right_of) = _value(chance), _value(chance)
        operator = chance.choice(["=", "==", "!=", "<", "<=", ">", ">=", "~", "!~"])
        space = chance.choice(["", " "]) if operator not in ("<", "<=", ">", ">=") and right[0] not in "-" else " "
        return f"{left} {operator}{space}{right}", lambda row: _compare(operator, left_of(row), right_of(row))
    if kind == 3:
        return _value(chance)
    first, first_of = _expression(chance, depth - 1)
    if kind == 4:
        return f"not ({first})", lambda row: not first_of(row)
    second, second_of = _expression(chance, depth - 1)
    if kind == 5:
        return f"({first}) AND ({second})", lambda row: bool(first_of(row)) and bool(second_of(row))
    return f"(({first}) or {second})", lambda row: bool(first_of(row)) or bool(second_of(row))


@pytest.fixture(scope="module")
def _chance() -> random.Random:
    return random.Random(11)


def test_expressions_mean_what_they_say(view: View, _chance: random.Random) -> None:
    made = [_expression(_chance, 3) for _ in range(600)]
    found = view().evaluate(
        """async ([expressions, rows]) => {
            const { parseFilter } = await import("./filter.js");
            return expressions.map(source => {
                const holds = parseFilter(source);
                return rows.map(row => holds(name => Object.hasOwn(row, name) ? row[name] : null));
            });
        }""",
        [[source for source, _ in made], ROWS],
    )
    results = {True: 0, False: 0}
    for (source, holds), values in zip(made, found, strict=True):
        expected = [bool(holds(row)) for row in ROWS]
        assert values == expected, source
        for value in values:
            results[value] += 1
    assert min(results.values()) > 500


def test_and_binds_before_or_and_not_before_both(view: View) -> None:
    sources = ["t or f and f", "not f or t", "not t and f", "not (t and f)", "f and f or t", "not not t", "t and not f"]
    found = view().evaluate(
        """async sources => {
            const { parseFilter } = await import("./filter.js");
            return sources.map(source => parseFilter(source)(name => name === "t"));
        }""",
        sources,
    )
    values = {"t": True, "f": False}
    assert found == [eval(source, {}, values) for source in sources]  # Python binds the same way.


def test_token_spans_are_pythons_slices(view: View, _chance: random.Random) -> None:
    alphabet = "ab \u00e9\u6f22\U0001f600\U0001f468\u200d\n"
    cases = []
    for _ in range(200):
        text = "".join(_chance.choices(alphabet, k=_chance.randrange(1, 30)))
        borders = sorted(_chance.sample(range(len(text) + 1), min(len(text) + 1, 5)))
        spans = [[a, b, _chance.uniform(-1, 1)] for a, b in itertools.pairwise(borders)]
        cases.append([text, _chance.sample(spans, len(spans))])
    found = view().evaluate(
        """async cases => {
            const { tokenSpans } = await import("./text.js");
            return cases.map(([text, tokens]) => tokenSpans(text, tokens).map(
                span => [Array.from(text.slice(span.start, span.end), c => c.codePointAt(0)), span.value]));
        }""",
        cases,
    )
    for (text, tokens), spans in zip(cases, found, strict=True):
        assert spans == [[list(map(ord, text[start:end])), value] for start, end, value in sorted(tokens)]


def test_pieces_put_together_are_the_text(view: View, _chance: random.Random) -> None:
    cases = []
    for _ in range(200):
        length = _chance.randrange(0, 40)

        def spans(length: int = length) -> list[dict[str, Any]]:
            borders = sorted(_chance.choices(range(length + 5), k=_chance.randrange(0, 7) // 2 * 2))
            return [
                {"start": a, "end": b, "kind": "target", "value": 1.0}
                for a, b in zip(borders[::2], borders[1::2], strict=True)
                if a < b
            ]

        cases.append([length, spans(), spans()])
    found = view().evaluate(
        """async cases => {
            const { pieces } = await import("./text.js");
            return cases.map(words => pieces(...words));
        }""",
        cases,
    )

    def covering(spans: list[dict[str, Any]], place: int) -> dict[str, Any] | None:
        return next((span for span in spans if span["start"] <= place < span["end"]), None)

    for (length, matches, tokens), parts in zip(cases, found, strict=True):
        assert [place for part in parts for place in range(part["start"], part["end"])] == list(range(length))
        for part in parts:
            for place in range(part["start"], part["end"]):
                assert (part["kind"] is not None) == (covering(matches, place) is not None)
                assert part["token"] == covering(tokens, place)


def test_matches_are_whole_words_of_any_case(view: View) -> None:
    texts = ["Oslo oslo OSLOX xoslo Oslo's (oslo) os\nlo", "S\u00e3o  Paulo s\u00e3o paulo Paulo", "C++ c++x .C++."]
    phrases = ["Oslo", "S\u00e3o Paulo", "C++"]
    found = view().evaluate(
        """async ([texts, phrases]) => {
            const { matchesIn, patternOf } = await import("./text.js");
            return texts.map((text, n) => matchesIn(text, [{kind: "k", pattern: patternOf([phrases[n]])}])
                .map(({start, end}) => text.slice(start, end)));
        }""",
        [texts, phrases],
    )
    expected = [
        re.findall(r"\boslo\b", texts[0], re.IGNORECASE),
        re.findall(r"\bs\u00e3o\s+paulo\b", texts[1], re.IGNORECASE),
        ["C++", "c++", "C++"],
    ]
    assert found == expected
