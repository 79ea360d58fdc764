"""Whitened projections against whitening the whole gradient in float64 and projecting it then."""

import dataclasses
from pathlib import Path

import pytest
import scipy.linalg
import torch

from tests.encoders import make_encoder
from tests.tiny_models import tiny_model
from tests.trackstar.test_covariances import corrected_gradient, covariances, expected_covariances, plain_tokens
from tests.trackstar.test_gradients import examples, random_moments
from trackstar import whitening
from trackstar.covariances import Part
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.models import LoadedModel, prepare_model
from trackstar.projection import Side, projection
from trackstar.second_moments import SecondMoments
from trackstar.spec import Spec
from trackstar.whitening import DampedPower, Projections

DAMPING = 0.03


def whitened_spec(encoder: Encoder) -> Spec:
    return dataclasses.replace(encoder.spec, projection="whitened", whitening_damping=DAMPING)


def make_whitened(
    loaded: LoadedModel,
    sample,
    moments: SecondMoments | None,
    exponents: tuple[float, float] = (-0.5, -0.5),
    **settings,
) -> Encoder:
    """An encoder with projections fitted on a sample."""
    plain = make_encoder(loaded, moments=moments, **settings)
    spec = whitened_spec(plain)
    projections = whitening.whitened(*covariances(plain, sample), spec, moments, *exponents)
    spec = dataclasses.replace(spec, projection_fingerprint=projections.fingerprint)
    return Encoder(loaded, spec, moments, None, projections)


def orthogonal(weight: str, side: Side, rows: int, columns: int) -> torch.Tensor:
    """Gram and Schmidt, column by column: against those before it in its set of `rows`."""
    gaussian = projection(0, weight, side, rows, columns).double()
    found = torch.zeros_like(gaussian)
    for column in range(columns):
        left = gaussian[:, column].clone()
        for _ in range(2):  # once leaves rounding
            for other in range(column // rows * rows, column):
                left -= (left @ found[:, other]) * found[:, other]
        found[:, column] = left / left.norm()
    return found * (rows / columns) ** 0.5


def inverse_root(covariance: torch.Tensor) -> torch.Tensor:
    """(C + δI)^(-1/2) by a way of its own: a matrix square root, inverted."""
    damped = covariance + DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    return torch.linalg.inv(torch.from_numpy(scipy.linalg.sqrtm(damped.numpy()).real))


@pytest.mark.parametrize("kind", ["none", "factored", "exact"])
@pytest.mark.parametrize(("name", "sides"), [("gpt2", (6, 5)), ("llama", (6, 5)), ("llama", (40, 60))])
def test_equals_whitening_the_whole_gradient(name: str, sides: tuple[int, int], kind: str) -> None:
    """Also with blocks larger than the weights (16 × 32 the smallest)."""
    loaded = prepare_model(tiny_model(name))
    moments = random_moments(loaded.weights, kind)
    sample, asked = examples(30, seed=4), examples(4, seed=2)
    encoder = make_whitened(loaded, sample, moments, block_rows=sides[0], block_columns=sides[1])
    found = encoder.project(asked).gradients.double()
    roots = {}
    for weight, (left, right) in expected_covariances(name, sample, moments).items():
        right = right / right.trace() if kind == "exact" else right
        roots[weight] = inverse_root(left), inverse_root(right)
    exact = prepare_model(tiny_model(name, dtype=torch.float64))
    for number, example in enumerate(asked):
        expected = torch.zeros(len(encoder.layout.names), *sides, dtype=torch.float64)
        for weight, (a, s) in plain_tokens(exact, example).items():
            gradient, _, _ = corrected_gradient(a, s, weight, moments)
            white = roots[weight][0] @ gradient @ roots[weight][1]
            left = orthogonal(weight, "left", white.shape[0], sides[0])
            right = orthogonal(weight, "right", white.shape[1], sides[1])
            expected[encoder.layout.block_of[weight]] += left.T @ white @ right
        assert (found[number] - expected.flatten(1)).norm() <= 2e-4 * expected.norm()


@pytest.mark.parametrize("kind", ["none", "factored"])
def test_whitened_tokens_have_the_identity_as_covariance(kind: str) -> None:
    """With next to no damping: L'ᵀ C L' = Lᵀ L for the covariance C of what L' is applied to."""
    loaded = prepare_model(tiny_model("llama"))
    moments = random_moments(loaded.weights, kind)
    plain = make_encoder(loaded, moments=moments, block_rows=8, block_columns=8)
    parts, sums = covariances(plain, examples(60, seed=4))
    spec = dataclasses.replace(whitened_spec(plain), whitening_damping=1e-6)
    made = whitening.whitened(parts, sums, spec, moments)
    unwhitened = whitening.whitened(parts, sums, spec, None, 0, 0)
    for part in parts:
        for name in part.serves:
            side = 0 if part.side == "left" else 1
            white, plain_side = made.by_weight[name][side].double(), unwhitened.by_weight[name][side].double()
            expected = plain_side.T @ plain_side
            found = white.T @ sums.mean(part.key) @ white
            assert (found - expected).norm() <= 0.01 * expected.norm()


def test_a_kronecker_factored_gradient_becomes_white() -> None:
    """G = A Z B with Z of independent entries: exact moments' covariances, from which the scale is gone, too."""
    generator = torch.Generator().manual_seed(0)
    a = 1e-3 * torch.randn(7, 7, generator=generator, dtype=torch.float64)
    b = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    left_covariance, right_covariance = a @ a.T * (b * b).sum(), b.T @ b * (a * a).sum()  # E G Gᵀ and E Gᵀ G
    spec = dataclasses.replace(whitened_spec(make_encoder(prepare_model(tiny_model("llama")))), whitening_damping=1e-9)
    named = whitening.folded(Part("w", "left", 7, ("w",), True), left_covariance, spec, None)
    named |= whitening.folded(Part("w", "right", 9, ("w",), True), right_covariance, spec, None)
    left, right = named["w.left"].double(), named["w.right"].double()
    found = torch.kron(left.T @ a @ a.T @ left, right.T @ b.T @ b @ right)  # covariance of vec(L'ᵀ G R')
    plain_left, plain_right = orthogonal("w", "left", 7, 6), orthogonal("w", "right", 9, 5)
    expected = torch.kron(plain_left.T @ plain_left, plain_right.T @ plain_right)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("kind", ["none", "factored", "exact"])
def test_exponent_zero_whitens_nothing(kind: str) -> None:
    """With as many directions as a side has, an orthogonal projection keeps every inner product: nothing is left to chance."""
    loaded = prepare_model(tiny_model("llama"))
    moments = random_moments(loaded.weights, kind)
    sample, asked = examples(10, seed=4), examples(4, seed=2)
    sides = {"block_rows": 224, "block_columns": 224, "layout": "weights"}
    plain = make_whitened(loaded, sample, moments, (0.0, 0.0), **sides).project(asked).gradients
    exact = torch.zeros(4, 4, len(loaded.weights), dtype=torch.float64)
    model = prepare_model(tiny_model("llama", dtype=torch.float64))
    tokens = [plain_tokens(model, example) for example in asked]
    for number, weight in enumerate(loaded.weights):
        of_weight = torch.stack(
            [corrected_gradient(*t[weight.name], weight.name, moments)[0].flatten() for t in tokens]
        )
        exact[:, :, number] = of_weight @ of_weight.T
        assert {weight.outputs, weight.inputs} <= {16, 32, 56}  # divisors of 224: whole sets of directions
    found = torch.einsum("qwd,nwd->qnw", plain.double(), plain.double())
    assert (found - exact).norm() <= 2e-4 * exact.norm()
    left, both = (make_whitened(loaded, sample, moments, (-0.5, p)).project(asked).gradients for p in (0.0, -0.5))
    unwhitened = make_whitened(loaded, sample, moments, (0.0, 0.0)).project(asked).gradients
    distances = [
        (x / x.norm() - y / y.norm()).norm() for x, y in ((left, unwhitened), (left, both), (both, unwhitened))
    ]
    assert min(distances) > 0.05  # one side alone is neither


def test_powers() -> None:
    half = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    power, identity = DampedPower(half @ half.T, 0.1), torch.eye(8, dtype=torch.float64)
    quarter = power.apply(-0.25, identity)
    torch.testing.assert_close(quarter @ quarter, power.apply(-0.5, identity))
    damped = half @ half.T + 0.1 * (half @ half.T).trace() / 8 * identity
    torch.testing.assert_close(power.apply(-0.5, power.apply(-0.5, identity)) @ damped, identity)


def test_a_weight_without_a_gradient_adds_nothing() -> None:
    """Zero down projections stop the gradient on its way into gate and up."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    loaded = prepare_model(model)
    dead = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up")}
    for kind in ("none", "exact"):
        moments = random_moments(loaded.weights, kind)
        encoder = make_whitened(loaded, examples(20, seed=4), moments)
        parts, sums = covariances(make_encoder(loaded, moments=moments), examples(20, seed=4))
        made = whitening.whitened(parts, sums, whitened_spec(encoder), moments)
        assert {name for name, (left, _) in made.by_weight.items() if not left.any()} == dead
        assert all(torch.isfinite(tensor).all() for tensor in made.named().values())
        encodings, bad = encoder.encode(examples(4, seed=2))
        assert not bad
        assert torch.isfinite(encodings.vectors).all()


def test_an_example_has_one_encoding_in_any_batch_and_type() -> None:
    sample, asked = examples(20, seed=4), examples(8, seed=2)
    loaded = prepare_model(tiny_model("llama"))
    encoder = make_whitened(loaded, sample, None)
    together = encoder.encode(asked)[0].vectors
    alone = torch.cat([encoder.encode([example])[0].vectors for example in asked])
    assert (together - alone).norm(dim=1).max() <= 1e-5
    half = make_whitened(prepare_model(tiny_model("llama", dtype=torch.bfloat16)), sample, None)
    assert (half.encode(asked)[0].vectors * together).sum(dim=1).min() >= 0.95


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    loaded = prepare_model(tiny_model("llama"))
    plain = make_encoder(loaded)
    parts, sums = covariances(plain, examples(10, seed=4))
    spec = whitened_spec(plain)
    made = whitening.whitened(parts, sums, spec, None)
    uri = str(tmp_path / "projections.safetensors")
    with pytest.raises(TrackStarError, match=r"no whitened projections here; run `trackstar fit`"):
        whitening.read(uri)
    whitening.save(made, uri)
    again = whitening.read_for(uri, dataclasses.replace(spec, projection_fingerprint=made.fingerprint))
    assert again.fingerprint == made.fingerprint
    assert again.named().keys() == made.named().keys()
    assert all(torch.equal(tensor, made.named()[name]) for name, tensor in again.named().items())
    with pytest.raises(TrackStarError, match=r"these projections are not the index's; run fit again"):
        whitening.read_for(uri, dataclasses.replace(spec, projection_fingerprint="another"))
    sums.save(uri)
    with pytest.raises(TrackStarError, match="holds no whitened projections"):
        whitening.read(uri)


def test_projections_made_file_by_file_are_the_same(tmp_path: Path) -> None:
    loaded = prepare_model(tiny_model("llama"))
    plain = make_encoder(loaded)
    parts, sums = covariances(plain, examples(10, seed=4))
    spec = whitened_spec(plain)
    sums.save(str(tmp_path / "sums"))
    for part in parts:
        whitening.fold_file(part, str(tmp_path / "sums"), spec, None, str(tmp_path / whitening.part_file(part)))
    collected = whitening.collect(str(tmp_path / whitening.part_file(part)) for part in parts)
    assert collected.fingerprint == whitening.whitened(parts, sums, spec, None).fingerprint


def test_projections_that_do_not_belong_are_refused() -> None:
    loaded = prepare_model(tiny_model("llama"))
    encoder = make_whitened(loaded, examples(10, seed=4), None)
    with pytest.raises(TrackStarError, match="projections are whitened, and whitened ones were not given"):
        Encoder(loaded, encoder.spec, None, None)
    made = Projections({weight.name: (torch.ones(1, 6), torch.ones(1, 5)) for weight in loaded.weights})
    with pytest.raises(TrackStarError, match="projections are gaussian, and whitened ones were given"):
        Encoder(loaded, make_encoder(loaded).spec, None, None, made)
    with pytest.raises(
        TrackStarError, match=r"q_proj.weight has \(1, 6\) and \(1, 5\), wanted are \(32, 6\) and \(32, 5\)"
    ):
        Encoder(loaded, encoder.spec, None, None, made)
    with pytest.raises(TrackStarError, match="projections: none for"):
        Encoder(loaded, encoder.spec, None, None, Projections({}))


def test_whitening_changes_the_ranking() -> None:
    loaded = prepare_model(tiny_model("llama"))
    documents, query = examples(30, seed=1), examples(2, seed=3)[1:]
    rankings = [
        (encoder.encode(documents)[0].vectors @ encoder.encode(query)[0].vectors[0]).argsort().tolist()
        for encoder in (make_encoder(loaded), make_whitened(loaded, documents, None))
    ]
    assert rankings[0] != rankings[1]


def test_damping_must_be_above_zero() -> None:
    with pytest.raises(TrackStarError, match=r"--whitening_damping 0\.0: .* above zero"):
        make_encoder(prepare_model(tiny_model("llama")), projection="whitened", whitening_damping=0.0)
