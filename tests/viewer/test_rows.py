"""What the page is sent: rows of any results file, records on demand, and errors that name the line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.viewer import made
from trackstar.errors import TrackStarError
from trackstar.evaluation.facts import read_facts
from trackstar.viewer.rows import Run, open_run, to_bytes


def _open(tmp_path: Path, lines: list[made.Line], **settings: Any) -> Run:
    return open_run("run", made.write(tmp_path / "r.jsonl", lines), **settings)


def test_a_row_holds_what_the_list_needs(tmp_path: Path) -> None:
    line = made.line(7)
    [row] = _open(tmp_path, [line]).rows
    assert row == {
        "id": "q7",
        "set": "made",
        "prompt": "Question 7: the capital of Bulgaria is",
        "target": " Sofia",
        "n": 12,
        "m": 3,
        "best": line["proponent_scores"][0],
        "worst": -0.3,
        "marks": "".join("1" if mark else "0" for mark in line["proponent_correct"]),
        "fields": {
            "fact_id": "f7",
            "relation": "P2",
            "frequency": 21,
            "8b_confidence": line["8b_confidence"],
            "answered": False,
        },
    }


def test_a_record_is_the_line(tmp_path: Path) -> None:
    lines = made.lines(5)
    run = _open(tmp_path, lines)
    assert [run.record(number) for number in range(5)] == lines
    assert [json.loads(run.line(number)) for number in (4, 0)] == [lines[4], lines[0]]
    assert run.line(2).endswith(b"}\n")


def test_everything_optional_may_be_missing(tmp_path: Path) -> None:
    run = _open(tmp_path, [made.minimal(), made.minimal(proponents=None, opponent_ids=[], query_set=None)])
    nothing = {"n": 0, "m": 0, "best": None, "worst": None, "marks": None, "fields": {}}
    question = {"prompt": "The capital of Norway is", "target": "Oslo"}
    assert run.rows == [
        {"id": "0", "set": "", **question, **nothing},
        {"id": "1", "set": "", **question, **nothing},
    ]
    assert run.record(0)["proponents"] == []


def test_ids_and_scores_without_texts(tmp_path: Path) -> None:
    run = _open(tmp_path, [made.minimal(proponent_ids=[3, "b"], proponent_scores=[1, 0.5])])
    assert (run.rows[0]["n"], run.rows[0]["best"]) == (2, 1.0)
    assert (run.record(0)["proponents"], run.record(0)["proponent_ids"]) == (["", ""], ["3", "b"])


def test_numbers_that_a_browser_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    numbers = '"big": 9007199254740993, "nan": NaN, "in": [-Infinity, 1]'
    path.write_text(f'{{"inputs_plaintext": "p", "targets_plaintext": "t", {numbers}}}')
    run = open_run("run", str(path))
    assert run.rows[0]["fields"] == {"big": "9007199254740993"}
    assert (run.record(0)["big"], run.record(0)["nan"], run.record(0)["in"]) == ("9007199254740993", None, [None, 1])
    assert json.loads(to_bytes(run.record(0)), parse_constant=pytest.fail)


def test_long_texts_are_cut_in_rows_alone(tmp_path: Path) -> None:
    text = "\U0001f600" * 3000
    run = _open(tmp_path, [made.minimal(inputs_plaintext=text, targets_plaintext=text, note=text)])
    row = run.rows[0]
    assert [len(row["prompt"]), len(row["target"]), len(row["fields"]["note"])] == [500, 200, 200]
    assert run.record(0)["inputs_plaintext"] == text


def test_annotations_say_what_is_correct(tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    made.write(facts, [{"fact_id": "f1", "gold_ids": ["d7"]}, {"fact_id": "f2", "gold_ids": []}])
    asked = {"proponent_ids": ["d1", "d7#2"], "proponent_scores": [2.0, 1.0], "proponent_correct": [True, True]}
    lines = [made.minimal(fact_id=fact, **asked) for fact in ("f1", "f2", "f3")]
    run = _open(tmp_path, lines, facts=read_facts(str(facts)))
    assert [row["marks"] for row in run.rows] == ["01", None, None]
    assert run.record(0)["proponent_correct"] == [False, True]
    assert "proponent_correct" not in run.record(1)


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first, second = (json.dumps(made.line(number)).encode() for number in (0, 1))
    path.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\n  \n" + second)
    run = open_run("run", str(path))
    assert [row["id"] for row in run.rows] == ["q0", "q1"]
    assert [run.record(number)["example_id"] for number in (0, 1)] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proponent_ids": ["a"]}, "line 2: proponents: a ranking needs as many"),
        ({"proponent_correct": [True]}, r"line 2: 1 marks in 'proponent_correct' for 12 proponents"),
        ({"proponent_correct": [1] * 12}, "line 2: 'proponent_correct' must be a list of true and false"),
        ({"inputs_plaintext": None}, "line 2: the field 'inputs_plaintext' must be a string"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, change: made.Line, message: str) -> None:
    with pytest.raises(TrackStarError, match=message):
        _open(tmp_path, [made.line(0), {**made.line(1), **change}])


def test_files_that_are_not_results(tmp_path: Path) -> None:
    with pytest.raises(TrackStarError, match="no such file"):
        open_run("run", str(tmp_path / "none.jsonl"))
    with pytest.raises(TrackStarError, match="no results in this file"):
        _open(tmp_path, [])
    with pytest.raises(TrackStarError, match="cannot be read"):
        open_run("run", str(tmp_path))


def test_a_file_that_is_replaced_is_shown_as_it_was(tmp_path: Path) -> None:
    run = _open(tmp_path, made.lines(3))
    made.write(tmp_path / "new", made.lines(3, seed=1))
    os.replace(tmp_path / "new", tmp_path / "r.jsonl")
    assert run.record(2) == made.line(2)


def test_a_file_that_is_changed_in_place_is_an_error(tmp_path: Path) -> None:
    run = _open(tmp_path, made.lines(3))
    os.truncate(tmp_path / "r.jsonl", 100)
    with pytest.raises(TrackStarError, match="was changed while it is shown"):
        run.record(2)


def test_progress_ends_at_one(tmp_path: Path) -> None:
    shares: list[float] = []
    _open(tmp_path, made.lines(4), on_progress=shares.append)
    assert len(shares) == 4
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
