"""Distances between second moments of groups, against their definition."""

import math

import pytest
import torch

from trackstar.two_samples import OLD_GROUPS, _largest, compare

BLOCKS, WIDTH = 3, 5


def groups(count: int, seed: int = 0, stretched: float = 1.0) -> list[torch.Tensor]:
    """New documents, of which one number is stretched, and old ones."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(count, BLOCKS * WIDTH, generator=generator) for _ in range(1 + OLD_GROUPS)]
    found[0][:, 0] *= stretched
    return found


def plainly(some: list[torch.Tensor], directions: bool) -> tuple[list[list[float]], list[float]]:
    """‖M − M'‖² without bias of every two groups, summed over blocks, from sums over pairs; and ‖M‖² of each."""

    def blocks(x: torch.Tensor) -> list[torch.Tensor]:
        parts = [part.double() for part in x.split(WIDTH)]
        return [part / part.norm() if directions else part for part in parts]

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        pairs = [
            sum(float(p @ q) ** 2 for p, q in zip(blocks(x), blocks(y), strict=True))
            for i, x in enumerate(a)
            for j, y in enumerate(b)
            if a is not b or i != j
        ]
        return sum(pairs) / len(pairs)

    own = [mean(group, group) for group in some]
    squared = [
        [0.0 if a is b else own[i] + own[j] - 2 * mean(a, b) for j, b in enumerate(some)] for i, a in enumerate(some)
    ]
    return squared, own


@pytest.mark.parametrize("directions", [False, True])
def test_distances_are_those_of_the_definition(directions: bool) -> None:
    some = groups(9, stretched=4.0)
    squared, own = plainly(some, directions)
    norm = sum(own[1:]) / OLD_GROUPS
    found = compare(some, BLOCKS, directions, clipped=1.0)
    assert found.fresh == pytest.approx(math.sqrt(sum(squared[0][1:]) / OLD_GROUPS / norm), rel=1e-4)
    for number, distance in enumerate(found.old, 1):
        expected = sum(squared[number][1:]) / (OLD_GROUPS - 1) / norm
        assert distance == pytest.approx(math.sqrt(max(expected, 0.0)), rel=1e-4, abs=1e-4)


def test_many_documents_give_the_distance_of_the_matrices() -> None:
    """One number of fifteen three times as large: M differs by 8 in one entry."""
    found = compare(groups(700, stretched=3.0), BLOCKS, directions=False, clipped=1.0)
    assert found.fresh == pytest.approx(8 / math.sqrt(BLOCKS * WIDTH), rel=0.1)
    assert found.fresh_blocks[0] == pytest.approx(8 / math.sqrt(WIDTH), rel=0.1)
    assert max(found.fresh_blocks[1:]) < 0.2
    assert max(found.old_blocks) < 0.3
    assert found.chance < 0.5


def test_chance_is_what_documents_alike_are_below() -> None:
    """Of 200 trials with documents that are all alike, 2.5 % are expected above."""
    above = 0
    for seed in range(200):
        found = compare(groups(24, seed), BLOCKS, directions=True)
        above += found.fresh > found.chance
    assert 1 <= above <= 14


def test_no_distance_where_all_are_the_same() -> None:
    same = torch.ones(40, BLOCKS * WIDTH)
    found = compare([same] * (1 + OLD_GROUPS), BLOCKS, directions=True)
    assert found.fresh == pytest.approx(0.0, abs=1e-3)
    assert max(found.old) == pytest.approx(0.0, abs=1e-3)


def test_pairs_that_nearly_repeat_one_another_do_not_decide() -> None:
    """Wide blocks, of which k is about 1/200 for most pairs and 1 for a few. All else is a new direction that many share."""
    generator = torch.Generator().manual_seed(0)
    count, width = 100, 200
    some = [torch.randn(count, BLOCKS * width, generator=generator) for _ in range(1 + OLD_GROUPS)]
    some[0] += (
        0.35
        * math.sqrt(width)
        * torch.nn.functional.normalize(torch.ones(BLOCKS * width), dim=0)
        * torch.randn(count, 1, generator=generator)
    )
    for place in range(30):  # copies of one document in another group
        some[place % 5][place] = some[(place + 1) % 5][50 + place // 2]
    every, few = compare(some, BLOCKS, True, clipped=1.0), compare(some, BLOCKS, True)
    assert few.fresh / few.chance > 2 * every.fresh / every.chance
    assert few.fresh > 1.5 * few.chance
    assert max(few.old) < few.chance


def test_a_block_that_nearly_no_document_has_anything_in() -> None:
    some = groups(60)
    for group in some:
        group[3:, :WIDTH] = 0.0
    found = compare(some, BLOCKS, directions=True)
    assert all(math.isfinite(value) for value in (found.fresh, *found.fresh_blocks, *found.old_blocks, found.chance))


def test_the_largest_that_counts_leaves_out_a_document_with_itself() -> None:
    squares = torch.arange(49.0).view(7, 7)
    off = sorted(set(range(49)) - set(range(0, 49, 8)))
    assert _largest(squares, 1.0) == 47
    assert _largest(squares, 0.0) == 1
    assert _largest(squares, 0.5) == pytest.approx(torch.tensor(off).double().quantile(0.5).item())
