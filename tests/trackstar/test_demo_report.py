"""The demo's figures and tables, on results written by hand."""

import io
import json

import pytest
from rich.console import Console

from trackstar.demo.report import Quality, first_stating_rank, handful, measure, read_stating, show, with_marks
from trackstar.errors import TrackStarError

STATING = {"capital/france": frozenset({"d1", "d2"}), "symbol/gold": frozenset({"d9"})}


def result(fact_id="capital/france", ids=("d5", "d1", "d2"), phrasing="seen", answered=True):
    return {
        "example_id": f"{fact_id}/{phrasing}",
        "inputs_plaintext": f"Prompt of {fact_id} is",
        "targets_plaintext": " Target",
        "proponent_ids": list(ids),
        "proponents": [f"Text of {example_id}." for example_id in ids],
        "proponent_scores": [1.0 - 0.1 * place for place in range(len(ids))],
        "fact_id": fact_id,
        "phrasing": phrasing,
        "answered": answered,
    }


def test_rank_of_the_first_stating_document():
    assert first_stating_rank(result(), STATING) == 2
    assert first_stating_rank(result(ids=("d2",)), STATING) == 1
    assert first_stating_rank(result(ids=("d9", "d8")), STATING) is None


def test_recall_counts_the_first_ten_and_mrr_all():
    eleventh = [f"x{n}" for n in range(10)] + ["d1"]
    tenth = [f"x{n}" for n in range(9)] + ["d1"]
    assert measure([result(ids=eleventh)], STATING) == Quality(1, 0.0, pytest.approx(1 / 11))
    assert measure([result(ids=tenth)], STATING) == Quality(1, 1.0, pytest.approx(1 / 10))
    both = measure([result(), result("symbol/gold")], STATING)
    assert both == Quality(2, 0.5, pytest.approx(0.25))
    assert measure([], STATING) == Quality(0, 0.0, 0.0)


def test_marks():
    assert with_marks(result(), STATING)["proponent_correct"] == [False, True, True]


def test_stating_documents_are_read_from_the_annotations(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({"fact_id": "capital/france", "stating": ["d1", "d2"]}) + "\n")
    assert read_stating(path) == {"capital/france": frozenset({"d1", "d2"})}
    with pytest.raises(TrackStarError, match=r"missing\.jsonl"):
        read_stating(tmp_path / "missing.jsonl")


def test_handful_shows_well_known_facts_that_the_model_answers_in_both_phrasings_by_turns():
    france, france_unseen = result(), result(phrasing="unseen")
    japan, japan_unseen = result("currency/japan"), result("currency/japan", phrasing="unseen")
    gold, gold_unseen = result("symbol/gold", answered=False), result("symbol/gold", phrasing="unseen")
    titan_wrong = result("moon_of/titan", answered=False)
    other = result("capital/chad")
    results = [other, japan, japan_unseen, titan_wrong, gold, gold_unseen, france_unseen, france]
    assert handful(results) == [france, japan_unseen, gold_unseen]
    assert handful([titan_wrong, other]) == [other]


def test_show_prints_marks_and_only_counts_what_the_model_answers(tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps({"fact_id": f, "stating": sorted(ids)}) + "\n" for f, ids in STATING.items()))
    good = [result(), result("symbol/gold", ids=("d9",), phrasing="unseen"), result("symbol/gold", answered=False)]
    plain = [result(ids=("d5", "d6")), result("symbol/gold", ids=("d9",), phrasing="unseen"), good[2]]
    output = io.StringIO()
    show({"TrackStar": good, "plain gradient dot product": plain}, facts, Console(file=output, width=120))
    lines = output.getvalue().splitlines()
    assert any("Prompt of capital/france is → Target   (a phrasing of the corpus)" in line for line in lines)
    assert any("no" in line.split() and "Text of d5." in line for line in lines)
    assert any("yes" in line.split() and "Text of d1." in line for line in lines)

    def figures(start):
        return next(line.replace("│", " ").split()[-5:] for line in lines if start in line)

    assert figures("TrackStar") == ["2", "of", "3", "1.00", "0.75"]
    assert figures("plain gradient") == ["2", "of", "3", "0.50", "0.50"]
