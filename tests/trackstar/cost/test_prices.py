"""The price table: the one that comes along is whole, and a wrong one is refused with its place."""

from importlib import resources
from pathlib import Path

import pytest

from trackstar.cost.prices import load_prices
from trackstar.errors import TrackStarError

OWN = (resources.files("trackstar.cost") / "prices.toml").read_text()


def test_the_table_that_comes_along() -> None:
    prices = load_prices()
    assert set(prices.machines) >= {"a3-highgpu-8g", "a2-ultragpu-1g", "n4-standard-80"}
    assert prices.as_of
    for machine in prices.machines.values():
        assert machine.price_per_hour > 0
        assert machine.spot_per_hour is None or machine.spot_per_hour <= machine.price_per_hour
        assert machine.peak_bfloat16 >= machine.peak_float32
        assert bool(machine.accelerator) == bool(machine.accelerators)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OWN.replace("price_per_hour = 88.49", "price_per_hour = 20"))
    prices = load_prices(str(path))
    assert prices.machine("a3-highgpu-8g").price_per_hour == 20
    assert prices.source == str(path)


def test_an_unknown_machine_lists_the_known() -> None:
    with pytest.raises(TrackStarError) as error:
        load_prices().machine("a3-highgpu")
    for part in ("--machine a3-highgpu", "did you mean a3-highgpu-8g?", "n4-standard-80", "here"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("price_per_hour = 88.49", "", r"\[machines.a3-highgpu-8g\]: price_per_hour is missing"),
        ("price_per_hour = 88.49", "price_per_hour = -1", "price_per_hour is -1; it cannot be negative"),
        ("price_per_hour = 88.49", 'price_per_hour = "88"', "price_per_hour is '88', not a number"),
        ("price_per_hour = 88.49", "price_per_hour = nan", "price_per_hour is nan, not a number"),
        ("price_per_hour = 88.49", "price_per_hour = true", "price_per_hour is True, not a number"),
        (
            "price_per_hour = 88.49",
            "price_per_hour = 88.49\nprice_an_hour = 1",
            "unknown key 'price_an_hour'; did you mean",
        ),
        ("achieved_encode = 0.35\nachieved_scan = 0.50", "achieved_encode = 35\nachieved_scan = 0.50", "at most 1"),
        ("peak_bfloat16 = 7.912e15", "peak_bfloat16 = 0", "peak_bfloat16 is 0; it must be above zero"),
        ('accelerator = "nvidia-h100-80gb"', "accelerator = 8", "accelerator is 8, not a text"),
        ("per_gb_month = 0.020", "", r"\[storage\]: per_gb_month is missing"),
        ("[dataflow]", "[dataflo]", "unknown key 'dataflo'"),
        ('currency = "USD"', "", "currency is missing"),
        ('currency = "USD"', "currency = ", "not a TOML file"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    path = tmp_path / "prices.toml"
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(TrackStarError, match=message) as error:
        load_prices(str(path))
    assert str(path) in str(error.value)


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(TrackStarError, match=r"prices\.toml"):
        load_prices(str(tmp_path / "prices.toml"))
