"""Searching in passages, against looking into each of them."""

import contextlib
import random

import pytest

from tests.viewer import made
from trackstar.errors import TrackStarError
from trackstar.viewer.texts import Texts

ALPHABET = "abAB .+*\\n()[]^$|?{}-&~#\u00e9\u00c9\u00df\u0130\u03a3\u03c3\u03c2\u6f22\U0001f600\ud800\x00\n\t\r"


def texts_of(records: list[list[str]]) -> Texts:
    texts = Texts()
    for passages in records:
        texts.add(passages)
    texts.finish()
    return texts


def expected(records: list[list[str]], word: str) -> list[int]:
    return [n for n, passages in enumerate(records) if any(word.lower() in text.lower() for text in passages)]


def test_words_are_found_where_they_are() -> None:
    """Whatever characters they hold: none of them means anything but itself."""
    chance = random.Random(5)
    records = [
        ["".join(chance.choices(ALPHABET, k=chance.randrange(30))) for _ in range(chance.randrange(4))]
        for _ in range(300)
    ]
    texts = texts_of(records)
    some = none = 0
    for _ in range(500):
        word = "".join(chance.choices(ALPHABET.replace("\n", ""), k=chance.randrange(1, 4)))
        found = texts.records_with(word)
        assert found == expected(records, word), ascii(word)
        some, none = some + bool(found), none + (not found)
    assert min(some, none) > 50
    texts.close()


@pytest.mark.parametrize("text", made.HOSTILE_TEXTS, ids=lambda text: ascii(text)[:24])
def test_a_whole_text_is_found(text: str) -> None:
    texts = texts_of([["x"], ["before " + text.upper() + " after"], [], ["before ", text[:-1]]])
    assert texts.records_with(text.upper()) == [1]


def test_no_word_reaches_into_the_next_passage_or_record() -> None:
    texts = texts_of([["one two", "three"], ["four"], [], ["five"]])
    for word in ("two three", "twothree", "threefour", "fourfive", "three four"):
        assert texts.records_with(word) == []
    assert texts.records_with("two") == texts.records_with("three") == [0]
    assert texts.records_with("f") == [1, 3]


def test_a_full_disk_is_said() -> None:
    """/dev/full is one."""
    texts = Texts()
    texts._file = open("/dev/full", "wb")  # noqa: SIM115
    texts.add(["a passage"])
    with pytest.raises(TrackStarError, match=r"no room in .* for the passages .* set TMPDIR"):
        texts.finish()
    with contextlib.suppress(OSError):
        texts.close()


@pytest.mark.parametrize("records", [[], [[]], [[""], []], [["", ""]]])
def test_nothing_to_search(records: list[list[str]]) -> None:
    assert texts_of(records).records_with("a") == []


def test_many_more_records_than_parts() -> None:
    records = [[f"number {n} of them" + " filler" * (n % 7)] for n in range(5_000)]
    texts = texts_of(records)
    assert texts.records_with("number 49") == expected(records, "number 49")
    assert texts.records_with("number 4999 ") == [4_999]
    assert texts.records_with("of them") == list(range(5_000))
