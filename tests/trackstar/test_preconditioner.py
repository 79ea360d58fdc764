"""R: sums, roots, mixing, and the exact change of preconditioner."""

import pytest
import torch

from trackstar.encoder import precondition_and_normalise
from trackstar.errors import TrackStarError
from trackstar.preconditioner import (
    GramSum,
    Preconditioner,
    change_of_preconditioner,
    crossing_component,
    load_inverse_root,
    mix,
    mixing_weight,
)

BLOCKS, SIZE = 3, 12


def gradients(count: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.logspace(0, -3, SIZE) * scale
    mixing = torch.randn(BLOCKS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed // 10))
    return torch.einsum("nbi,i,bij->nbj", torch.randn(count, BLOCKS, SIZE, generator=generator), spectrum, mixing)


def of(rows: torch.Tensor, damping: float = 0.1) -> Preconditioner:
    total = GramSum(BLOCKS, SIZE)
    total.add(rows)
    return Preconditioner.of(total.mean(), damping, total.count)


def test_sums_equal_the_definition_and_merge(tmp_path) -> None:
    rows = gradients(2500, 0)
    whole, first, second = GramSum(BLOCKS, SIZE), GramSum(BLOCKS, SIZE), GramSum(BLOCKS, SIZE)
    for part in rows.split(700):
        whole.add(part)
    first.add(rows[:900])
    second.add(rows[900:])
    second.save(str(tmp_path / "second.safetensors"))
    first.merge(GramSum.load(str(tmp_path / "second.safetensors")))
    expected = torch.einsum("nbi,nbj->bij", rows.double(), rows.double()) / 2500
    for total in (whole, first):
        assert total.count == 2500
        for block, matrix in enumerate(total.mean()):
            assert (matrix - expected[block]).norm() <= 1e-5 * expected[block].norm()


def test_inverse_root_inverts_with_damping() -> None:
    preconditioner = of(gradients(500, 0), damping=0.3)
    for block, matrix in enumerate(preconditioner.matrices()):
        damped = matrix + 0.3 * matrix.diagonal().mean() * torch.eye(SIZE, dtype=torch.float64)
        root = preconditioner.power(block, -0.5)
        torch.testing.assert_close(root @ damped @ root, torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-9)
        torch.testing.assert_close(root, root.T, rtol=0, atol=1e-12)


def test_damping_is_not_added_again_and_again() -> None:
    preconditioner = of(gradients(500, 0))
    first = preconditioner.power(0, -0.5)
    preconditioner.inverse_root, preconditioner.matrices()
    assert torch.equal(first, preconditioner.power(0, -0.5))


def test_saved_and_read_back(tmp_path) -> None:
    preconditioner = of(gradients(500, 0))
    preconditioner.save(str(tmp_path / "r"))
    again = Preconditioner.load(str(tmp_path / "r"))
    assert again.fingerprint == preconditioner.fingerprint
    assert (again.damping, again.count) == (0.1, 500)
    assert torch.equal(load_inverse_root(str(tmp_path / "r")), preconditioner.inverse_root)
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    again.save(str(tmp_path / "r"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    (tmp_path / "r" / "block_00001.safetensors").unlink()
    with pytest.raises(TrackStarError, match="block_00001"):
        Preconditioner.load(str(tmp_path / "r"))


def test_crossing_component_is_the_papers_at_its_size() -> None:
    assert crossing_component(65536) == 1000
    assert crossing_component(8192) == 125


def test_mixing_weight_makes_the_curves_cross_at_the_component() -> None:
    size = 2048
    train = Preconditioner((torch.logspace(-4, 3, size, dtype=torch.float64),), (torch.eye(size).double(),), 0.1, 9)
    evaluation = Preconditioner(
        (torch.logspace(-9, 4, size, dtype=torch.float64),), (torch.eye(size).double(),), 0.1, 9
    )
    weight = mixing_weight(train, evaluation)
    component = crossing_component(size)
    descending = [p.eigenvalues[0].flip(0)[component] for p in (train, evaluation)]
    assert weight * descending[1] == pytest.approx(float((1 - weight) * descending[0]), rel=1e-9)
    assert 0 < weight < 1


def test_mixing_weight_with_fewer_queries_than_the_component() -> None:
    """R_eval of two queries has no eigenvalue at the crossing component; λ must not become 1."""
    train, evaluation = of(gradients(500, 0)), of(gradients(2, 10))
    assert 0.0 < mixing_weight(train, evaluation) < 1.0


def test_mixture_is_the_convex_combination() -> None:
    train, evaluation = of(gradients(500, 0)), of(gradients(200, 10))
    mixed = mix(train, evaluation, 0.25)
    for m, t, e in zip(mixed.matrices(), train.matrices(), evaluation.matrices(), strict=True):
        torch.testing.assert_close(m, 0.25 * e + 0.75 * t)
    with pytest.raises(TrackStarError, match="between 0"):
        mix(train, evaluation, 1.5)


@pytest.mark.parametrize("normalisation", ["vector", "block"])
def test_change_of_preconditioner_equals_encoding_afresh(normalisation: str) -> None:
    train, evaluation = of(gradients(500, 0)), of(gradients(200, 10))
    mixed = mix(train, evaluation, mixing_weight(train, evaluation))
    rows = gradients(50, 7)
    stored, _ = precondition_and_normalise(rows, train.inverse_root, normalisation)
    afresh, _ = precondition_and_normalise(rows, mixed.inverse_root, normalisation)
    change = change_of_preconditioner(train, mixed)
    moved, _ = precondition_and_normalise(stored.reshape(50, BLOCKS, SIZE), change.transpose(1, 2), normalisation)
    assert (moved * afresh).sum(dim=1).min() >= 0.9999
    assert (stored * afresh).sum(dim=1).min() < 0.99  # the change is no small one


def test_unusable_sums_are_refused() -> None:
    with pytest.raises(TrackStarError, match="sample is empty"):
        GramSum(BLOCKS, SIZE).mean()
    matrices = of(gradients(50, 0)).matrices()
    with pytest.raises(TrackStarError, match="block 1 is zero"):
        Preconditioner.of([matrices[0], torch.zeros_like(matrices[1])], 0.1, 50)
    matrices[2][0, 0] = float("nan")
    with pytest.raises(TrackStarError, match="block 2 holds values that are not finite"):
        Preconditioner.of(matrices, 0.1, 50)
