"""Estimates as people read them."""

import json

from trackstar.cost import report
from trackstar.cost.model import Estimate, Part, Stage
from trackstar.cost.prices import load_prices

ESTIMATE = Estimate(
    "build-index",
    (
        Stage(
            "encoding",
            6,
            (
                Part("nothing of it", 0, "B", 1e6),
                Part("gradients", 7.2e15, "FLOP", 1e12),
                Part("writing", 3e9, "B", None),
                Part("model", 30, "s", 1.0, "each"),
            ),
            read_bytes=2e9,
            written_bytes=3e9,
            kept_bytes=3e9,
            flops=7.2e15,
        ),
    ),
    (("work items", "6"),),
    (("items", 6.0),),
    ("a note",),
)


def test_text() -> None:
    prices = load_prices()
    lines = report.describe(ESTIMATE, prices.machine("n4-standard-80"), 3, prices, "assumed").splitlines()
    assert lines[0] == "work items       6"
    assert "to be read       2.0 GB" in lines
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["stage", "part", "amount", "a", "second", "on", "one", "machine"]
    assert table[1].split() == ["encoding", "gradients", "7.2e+15", "FLOP", "1e+12", "2", "h", "00", "min"]
    assert table[2].split() == ["writing", "3.0", "GB", "unknown", "–"]  # named, and not counted
    assert table[3].split() == ["model", "30", "s", "each"]
    assert "time             about 40 min on 3 × n4-standard-80" in lines  # 7,200 s in two rounds of three items, 30 s
    assert "machine-hours    about 2.02" in lines
    assert "not counted      encoding: writing" in lines
    assert any(line.startswith("money            about on demand 7.35 USD, spot 2.94 USD, Dataflow ") for line in lines)
    assert "object store     0.00 USD for requests, 0.06 USD a month to keep it" in lines
    assert lines[-1] == "note             a note"


def test_without_a_price() -> None:
    prices = load_prices()
    text = report.describe(ESTIMATE, None, 2, prices, "assumed")
    assert "with 2 worker(s) like this machine's" in text
    assert "no price for this machine" in text


def test_json_has_the_same() -> None:
    prices = load_prices()
    found = json.loads(report.to_json(ESTIMATE, prices.machine("n4-standard-80"), 3, prices, "assumed"))
    assert (found["command"], found["machine"], found["machines"], found["items"]) == (
        "build-index",
        "n4-standard-80",
        3,
        6,
    )
    assert found["wall_seconds"] == 7200 * 2 / 6 + 30
    assert found["not_counted"] == ["encoding: writing"]
    assert [part["seconds"] for part in found["stages"][0]["parts"]] == [0.0, 7200.0, 0.0, 30.0]
