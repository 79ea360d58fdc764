"""The size of blocks that follows from the model, and the recipes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackstar.errors import TrackStarError
from trackstar.models import WeightInfo
from trackstar.recipes import RECIPES, block_shape


def weights(layers: int, outputs: int = 512, inputs: int = 512) -> list[WeightInfo]:
    """Seven matrices a layer; one is wider."""
    kinds = ["attention"] * 4 + ["mlp"] * 3
    return [
        WeightInfo(f"{layer}.{i}.weight", f"{layer}.{i}", outputs, inputs, False, kind, layer)  # type: ignore[arg-type]
        for layer in range(layers)
        for i, kind in enumerate(kinds)
    ]


def test_a_block_a_weight_fills_the_dimension() -> None:
    assert block_shape(weights(8), "weights", 8) == (34, 34)  # 56 · 34² = 64,736
    assert block_shape(weights(32), "weights", 8) == (17, 17)  # 224 · 17² = 64,736
    assert block_shape(weights(8), "weights", 8, 16_384) == (17, 17)


def test_sixteen_pooled_blocks_have_the_papers_size() -> None:
    assert block_shape(weights(24), "blocks", 8) == (64, 64)
    assert block_shape(weights(24), "blocks", 8, rows=64, columns=64) == (64, 64)
    assert block_shape(weights(2), "blocks", 8) == (128, 128)  # two groups of layers make four blocks
    paper = RECIPES["paper"]
    assert block_shape(weights(2), paper.layout, 8, 1, paper.block_rows, paper.block_columns) == (64, 64)


def test_sides_are_not_larger_than_the_matrices() -> None:
    assert block_shape(weights(1, outputs=40, inputs=300), "weights", 8) == (40, 96)
    assert block_shape(weights(1, outputs=40, inputs=50), "blocks", 8) == (40, 50)


def test_one_side_given_leaves_the_rest_to_the_other() -> None:
    assert block_shape(weights(8), "weights", 8, rows=8) == (8, 146)
    assert block_shape(weights(8), "weights", 8, columns=1) == (512, 1)
    with pytest.raises(
        TrackStarError, match=r"--dimension 1,000 is too small for 56 blocks .* with a side of 20: raise it"
    ):
        block_shape(weights(8), "weights", 8, 1000, columns=20)


def test_more_blocks_than_numbers_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(TrackStarError, match=r"--dimension 55 is too small for 56 blocks .*, or take --layout blocks"):
        block_shape(weights(8), "weights", 8, 55)
    assert block_shape(weights(8), "weights", 8, 56) == (1, 1)
    with pytest.raises(TrackStarError, match="--layout blocks"):
        block_shape(weights(8), "blocks", 8, 15)


@given(st.integers(1, 80), st.integers(80, 200_000), st.sampled_from(["weights", "blocks"]))
def test_the_largest_square_that_fits(layers: int, dimension: int, layout: str) -> None:
    model = weights(layers, 10_000, 10_000)
    blocks = 7 * layers if layout == "weights" else 2 * min(8, layers)
    if blocks > dimension:
        return
    rows, columns = block_shape(model, layout, 8, dimension)
    assert rows == columns == math.isqrt(dimension // blocks)
    assert blocks * rows * columns <= dimension < blocks * (rows + 1) ** 2
