"""The paper's case: the document shows what the command prints, and the figures that everything rests on are the right ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import estimates, make_case, report
from trackstar.cost.prices import load_prices

ROOT = Path(__file__).parents[2]


def test_the_document_shows_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    shown = text.split("<!-- python -m benchmarks.scaling -->\n", 1)[1].split("<!-- end -->", 1)[0]
    assert shown.strip() == report(load_prices()).strip(), "paste the output of `python -m benchmarks.scaling`"


LAYER = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14_336 * 4096


def test_amounts_by_hand() -> None:
    case = make_case("paper")
    shape, scan = case.shape, case.scan
    assert shape.attributed == 32 * LAYER
    assert shape.parameters == 32 * LAYER + 128_256 * 4096
    assert 7.4e9 < shape.parameters < 7.6e9  # 8.0B with the embedding
    assert (shape.dimension, shape.moments, case.whitening) == (65_536, "factored", None)
    assert scan.index_bytes == 365e6 * 131_072 == pytest.approx(47.84e12, rel=1e-3)
    assert scan.product_flops(shape.dimension) == 2 * 365e6 * 5415 * 65_536
    assert scan.norm_flops(shape) == 2 * 365e6 * 65_536 * 4096
    assert shape.floor_flops(160e9) == 4 * shape.parameters * 160e9
    # 10,729 items of 4.46 GB; 15 of them in an element of 64 GiB.
    assert (case.corpus.items, scan.groups) == (10_729, 716)
    assert scan.shuffle_bytes() == 716 * 5415 * 2 * 100 * 44


def test_amounts_of_the_default_by_hand() -> None:
    """Two matrices a layer, 32×32 signs each; whitened, with neither V nor R."""
    case = make_case("default")
    shape, scan, whitening = case.shape, case.scan, case.whitening
    assert shape.parameters == 32 * LAYER + 128_256 * 4096  # the model runs whole
    assert shape.matrices == ((4096, 4096), (4096, 14_336)) * 32
    assert (shape.dimension, shape.block_rows, shape.block_columns) == (65_536, 32, 32)
    assert (shape.moments, shape.preconditioned, scan.changed) == ("none", False, False)
    assert scan.index_bytes == 365e6 * 8192
    assert scan.unpacked_numbers(shape.dimension) == 365e6 * 65_536
    sides = (4096, 4096, 14_336, 4096)
    assert shape.projection_flops(1.0, 1.0) == 32 * 2 * (sum(sides) * 32 + 2 * 32 * 32)
    assert whitening is not None
    assert sorted(whitening.roots) == sorted(sides * 32)
    assert whitening.sum_bytes == 32 * 4 * sum(k * k for k in sides)
    assert whitening.passes == 4  # of 8 GiB
    assert whitening.sum_flops(1.0, 1.0) == 32 * 2 * sum(k * k for k in sides)
    # 10,729 items of 279 MB; 61 of them in an element of 16 GiB.
    assert (case.corpus.items, scan.groups) == (10_729, 176)


def test_stages_of_both() -> None:
    machine = load_prices().machine("a3-highgpu-8g")
    names = {
        recipe: [[stage.name for stage in estimate.stages] for estimate in estimates(make_case(recipe), machine)]
        for recipe in ("paper", "default")
    }
    build = ["start-up", "encoding", "commit"]
    assert names["paper"] == [
        ["start-up", "sums of R", "roots of R"],
        build,
        ["start-up", "encoding queries", "roots of R", "scan", "merge"],
    ]
    assert names["default"] == [
        ["start-up", "covariances", "whitening"],
        build,
        ["start-up", "encoding queries", "scan", "merge"],
    ]


def test_the_command_and_its_prices(tmp_path: Path) -> None:
    table = (ROOT / "trackstar" / "cost" / "prices.toml").read_text()
    (tmp_path / "prices.toml").write_text(table.replace('currency = "USD"', 'currency = "EUR"'))
    words = [sys.executable, "-m", "benchmarks.scaling", "--prices", str(tmp_path / "prices.toml")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == report(load_prices(str(tmp_path / "prices.toml"))).strip()
    assert "EUR on demand" in done.stdout
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True, cwd=ROOT)
    [fit, build, score] = json.loads(done.stdout)["paper"]["16 × a3-highgpu-8g"]
    assert (fit["command"], build["command"], score["command"]) == ("fit", "build-index", "score")
    assert f"**{build['on_demand']:,.0f}**" in report(load_prices())
