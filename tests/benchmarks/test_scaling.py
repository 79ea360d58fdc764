"""The paper's case: the document shows what the command prints, and the figures that everything rests on are the right ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import paper_case, report
from trackstar.cost.prices import load_prices

ROOT = Path(__file__).parents[2]


def test_the_document_shows_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    shown = text.split("<!-- python -m benchmarks.scaling -->\n", 1)[1].split("<!-- end -->", 1)[0]
    assert shown.strip() == report(load_prices()).strip(), "paste the output of `python -m benchmarks.scaling`"


def test_amounts_by_hand() -> None:
    case = paper_case()
    shape, scan = case.shape, case.scan
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14_336 * 4096
    assert shape.parameters == 32 * layer + 128_256 * 4096
    assert 7.4e9 < shape.parameters < 7.6e9  # 8.0B with the embedding
    assert shape.dimension == 65_536
    assert scan.index_bytes == 365e6 * 131_072 == pytest.approx(47.84e12, rel=1e-3)
    assert scan.product_flops(shape.dimension) == 2 * 365e6 * 5415 * 65_536
    assert shape.floor_flops(160e9) == 4 * shape.parameters * 160e9
    # 10,729 items of 4.46 GB; 15 of them in an element of 64 GiB.
    assert (case.corpus.items, scan.groups) == (10_729, 716)
    default = paper_case(blocks=(224, 17))
    assert default.shape.dimension == 64_736
    assert default.scan.norm_flops(default.shape) == 2 * 365e6 * 64_736 * 289
    assert scan.shuffle_bytes() == 716 * 5415 * 2 * 100 * 44


def test_the_command_and_its_prices(tmp_path: Path) -> None:
    table = (ROOT / "trackstar" / "cost" / "prices.toml").read_text()
    (tmp_path / "prices.toml").write_text(table.replace('currency = "USD"', 'currency = "EUR"'))
    words = [sys.executable, "-m", "benchmarks.scaling", "--prices", str(tmp_path / "prices.toml")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == report(load_prices(str(tmp_path / "prices.toml"))).strip()
    assert "EUR on demand" in done.stdout
