"""The demo's facts, read from its tables."""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator

from trackstar.demo import culture, geography, science

# Facts that most people know: the ones that the demo shows, asked in the plainest phrasing.
WELL_KNOWN = (
    "capital/france",
    "currency/japan",
    "symbol/gold",
    "author/hobbit",
    "moon_of/titan",
    "discoverer/penicillin",
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        fact_id: Relation and subject, for example "capital/france".
        relation: Name of its relation, for example "capital".
        subject: As it stands in a sentence, for example "the Netherlands".
        object: The answer, for example "Amsterdam".
    """

    fact_id: str
    relation: str
    subject: str
    object: str


def rows(table: str) -> Iterator[tuple[str, ...]]:
    """The rows of a table, cell by cell, without the blanks around the cells."""
    for line in table.strip().splitlines():
        yield tuple(cell.strip() for cell in line.split("|"))


def _slug(text: str) -> str:
    """Lower-case ASCII words with hyphens between: "the Sagrada Família" → "sagrada-familia"."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain.removeprefix("the ")))


# table, kind of its first column, and per further column the relation (none: not a fact of the demo) and its kind
_TABLES: tuple[tuple[str, str, tuple[tuple[str | None, str | None], ...]], ...] = (
    (
        geography.COUNTRIES,
        "country",
        (("capital", "city"), ("currency", "currency"), ("language", "language"), ("continent", "continent")),
    ),
    (geography.STATES, "state", (("state_capital", "city"),)),
    (geography.LANDMARKS, "landmark", (("landmark", "city"),)),
    (science.ELEMENTS, "element", (("symbol", None), ("atomic_number", "number"), (None, None), (None, None))),
    (science.PLANETS, "planet", (("planet_order", None),)),
    (science.MOONS, "moon", (("moon_of", "planet"),)),
    (science.INVENTIONS, "thing", (("inventor", "person"),)),
    (science.DISCOVERIES, "thing", (("discoverer", "person"),)),
    (culture.BOOKS, "book", (("author", "person"),)),
    (culture.PAINTINGS, "painting", (("painter", "person"),)),
    (culture.MUSIC, "music", (("composer", "person"),)),
)


@functools.cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the tables, relation by relation, in the tables' order."""
    facts = []
    for table, _, columns in _TABLES:
        for column, (relation, _) in enumerate(columns, start=1):
            for row in rows(table):
                if relation is not None and row[column] != "-":
                    facts.append(Fact(f"{relation}/{_slug(row[0])}", relation, row[0], row[column]))
    return tuple(facts)


@functools.cache
def things() -> tuple[tuple[str, str], ...]:
    """(kind, name) of everything that the tables name, without repetitions, in the tables' order."""
    found: dict[tuple[str, str], None] = {}
    for table, subject_kind, columns in _TABLES:
        for row in rows(table):
            found[subject_kind, row[0]] = None
            for (_, kind), cell in zip(columns, row[1:], strict=True):
                if kind is not None and cell != "-":
                    found[kind, cell] = None
    return tuple(found)


def element_descriptions() -> Iterator[str]:
    """True sentences about the elements that state none of the demo's facts: their state and their family."""
    for name, _, _, family, state in rows(science.ELEMENTS):
        element = name.capitalize()
        yield f"{element} is a {state} at room temperature."
        if family != "-":
            yield f"{element} is {'an' if family[0] in 'aeiou' else 'a'} {family}."
