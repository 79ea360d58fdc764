"""Covariances of activations and output gradients, against plain autograd in float64, one example at a time."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.encoders import make_encoder
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.trackstar.test_gradients import examples, plain_gradients, random_moments
from trackstar.batching import Example
from trackstar.covariances import CovarianceSums, Part, plan_parts, plan_passes, shared_inputs
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.models import LoadedModel, find_weights, measure_coverage, prepare_model
from trackstar.sample_sums import sum_covariances
from trackstar.second_moments import Exact, Factored, SecondMoments


def plain_tokens(loaded: LoadedModel, example: Example) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """a [T, n] and s [T, m] of every weight for one example without a batch, by hooks of the test's own."""
    model = loaded.model
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    for weight in loaded.weights:

        def keep(module, arguments, output, name=weight.name):
            output.retain_grad()
            kept[name] = arguments[0].detach()[0], output

        handles.append(model.get_submodule(weight.module).register_forward_hook(keep))
    plain_gradients(model, example)
    for handle in handles:
        handle.remove()
    return {name: (a, output.grad[0]) for name, (a, output) in kept.items()}


def corrected_gradient(
    a: torch.Tensor, s: torch.Tensor, name: str, moments: SecondMoments | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G̃ [m, n] of one example, with a and s as factored moments scale them."""
    moment = moments.by_weight[name] if moments else None
    if isinstance(moment, Factored):
        rows, columns = moment.rows.double(), moment.columns.double()
        s, a = s * (rows.mean() / rows).sqrt(), a / columns.sqrt()
    gradient = s.T @ a
    if isinstance(moment, Exact):
        assert moments is not None
        gradient = gradient / (moment.values.double().sqrt() + moments.epsilon)
    return gradient, a, s


def expected_covariances(
    name: str, sample: Sequence[Example], moments: SecondMoments | None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """C_s and C_a of every weight by their definitions, float64; of the scaled tokens where moments are factored."""
    loaded = prepare_model(tiny_model(name, dtype=torch.float64))
    exact = {w.name for w in loaded.weights if moments and isinstance(moments.by_weight[w.name], Exact)}
    left = {w.name: torch.zeros(w.outputs, w.outputs, dtype=torch.float64) for w in loaded.weights}
    right = {w.name: torch.zeros(w.inputs, w.inputs, dtype=torch.float64) for w in loaded.weights}
    tokens = 0
    for example in sample:
        tokens += len(example.input_ids) - 1
        for weight, (a, s) in plain_tokens(loaded, example).items():
            assert not s[-1].any()  # the last token predicts nothing
            gradient, a, s = corrected_gradient(a, s, weight, moments)
            left[weight] += gradient @ gradient.T if weight in exact else s[:-1].T @ s[:-1]
            right[weight] += gradient.T @ gradient if weight in exact else a[:-1].T @ a[:-1]
    counts = {w.name: len(sample) if w.name in exact else tokens for w in loaded.weights}
    return {name: (left[name] / counts[name], right[name] / counts[name]) for name in left}


def parts_of(encoder: Encoder) -> list[Part]:
    return plan_parts(encoder.loaded.weights, shared_inputs(encoder.loaded), frozenset(encoder.inverse_roots))


def covariances(encoder: Encoder, sample: Sequence[Example]) -> tuple[list[Part], CovarianceSums]:
    parts = parts_of(encoder)
    return parts, sum_covariances(encoder, lambda: sample, parts)


@pytest.mark.parametrize("kind", ["none", "exact"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_covariances_equal_plain_autograd(name: str, kind: str) -> None:
    loaded = prepare_model(tiny_model(name))
    moments = random_moments(loaded.weights, kind)
    sample = examples(12, seed=4)
    parts, sums = covariances(make_encoder(loaded, moments=moments, batch_tokens=40), sample)
    expected = expected_covariances(name, sample, moments)
    assert {weight for part in parts for weight in part.serves} == {weight.name for weight in loaded.weights}
    for part in parts:
        for weight in part.serves:
            wanted = expected[weight][0 if part.side == "left" else 1]
            assert (sums.mean(part.key) - wanted).norm() <= 1e-5 * wanted.norm()


def test_what_reads_the_same_tensor_is_summed_once() -> None:
    def shared(name: str, layer: int) -> dict[str, str]:
        loaded = prepare_model(tiny_model(name))
        found = shared_inputs(loaded)
        names = [weight.name for weight in loaded.weights if weight.layer == layer]
        return {n.split(".", 3)[-1]: found[n].split(".", 3)[-1] for n in names if found[n] != n}

    llama = {
        "self_attn.k_proj.weight": "self_attn.q_proj.weight",
        "self_attn.v_proj.weight": "self_attn.q_proj.weight",
        "mlp.up_proj.weight": "mlp.gate_proj.weight",
    }
    assert shared("llama", 1) == llama
    assert shared("gpt2", 1) == {}
    # Attention and MLP of Phi read the same normalised input, with another weight in between.
    assert shared("phi", 1)["mlp.fc1.weight"] == "self_attn.q_proj.weight"


def test_a_model_without_weights_shares_nothing() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **ARCHITECTURES["llama"][1]))
    weights = find_weights(model)
    loaded = LoadedModel(model, None, weights, measure_coverage(model, weights), "", "")
    names = [weight.name for weight in weights]
    assert shared_inputs(loaded) == dict(zip(names, names, strict=True))


def test_parts_cover_every_side_of_every_weight() -> None:
    loaded = prepare_model(tiny_model("llama"))
    names = [weight.name for weight in loaded.weights]
    parts = plan_parts(loaded.weights, shared_inputs(loaded), [])
    assert len(parts) == 3 * (7 + 4)  # a layer: an output side each, and inputs of q-k-v, o, gate-up and down
    assert sorted(name for part in parts if part.side == "right" for name in part.serves) == sorted(names)
    exact = plan_parts(loaded.weights, shared_inputs(loaded), names[:1])  # q, whose input k and v go on sharing
    assert Part(names[0], "right", 32, (names[0],), True) in exact
    assert Part(names[1], "right", 32, tuple(names[1:3])) in exact
    assert sorted((n, part.side) for part in exact for n in part.serves) == sorted(
        (name, side) for name in names for side in ("left", "right")
    )


def test_passes_fit_their_budget_and_keep_a_weight_together() -> None:
    loaded = prepare_model(tiny_model("llama"))
    parts = plan_parts(loaded.weights, shared_inputs(loaded), [])
    assert plan_passes(parts, 1 << 30) == [parts]
    largest = 4 * (56**2 + 32**2)
    passes = plan_passes(parts, largest)
    assert [part for group in passes for part in group] == parts
    assert all(sum(part.num_bytes for part in group) <= largest for group in passes)
    assert len(passes) < len(loaded.weights)
    by_weight = plan_passes(parts, 1)  # nothing fits: each weight by itself
    assert len(by_weight) == len(loaded.weights)
    assert all(len({part.weight for part in group}) == 1 for group in by_weight)


@pytest.mark.parametrize("kind", ["none", "exact"])
def test_the_grouping_of_passes_changes_no_bit(kind: str) -> None:
    loaded = prepare_model(tiny_model("llama"))
    encoder = make_encoder(loaded, moments=random_moments(loaded.weights, kind))
    sample = examples(10, seed=4)
    parts, whole = covariances(encoder, sample)
    for group in plan_passes(parts, 20_000):
        alone = sum_covariances(encoder, lambda: sample, group)
        for part in group:
            assert torch.equal(alone.sums[part.key], whole.sums[part.key])
            assert alone.counts[part.key] == whole.counts[part.key]


@pytest.mark.parametrize("kind", ["none", "exact"])
def test_sums_of_parts_of_a_sample_merge(kind: str, tmp_path) -> None:
    loaded = prepare_model(tiny_model("gpt2"))
    encoder = make_encoder(loaded, moments=random_moments(loaded.weights, kind))
    sample = examples(10, seed=4)
    parts, whole = covariances(encoder, sample)
    for name, some in (("a", sample[:3]), ("b", sample[3:])):
        covariances(encoder, some)[1].save(str(tmp_path / name))
    merged = CovarianceSums.load(str(tmp_path / "a")).merge(CovarianceSums.load(str(tmp_path / "b")))
    assert merged.counts == whole.counts
    for part in parts:
        assert (merged.mean(part.key) - whole.mean(part.key)).norm() <= 1e-5 * whole.mean(part.key).norm()


def test_what_is_not_finite_is_left_out() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    loaded = prepare_model(model)
    good = [dataclasses.replace(e, input_ids=tuple(6 if t == 5 else t for t in e.input_ids)) for e in examples(6)]
    bad = [Example("bad", (4, 5, 6, 7))]
    for kind in ("none", "exact"):
        encoder = make_encoder(loaded, moments=random_moments(loaded.weights, kind))
        parts, expected = covariances(encoder, good)
        _, found = covariances(encoder, good[:3] + bad + good[3:])
        assert found.counts == expected.counts
        for part in parts:
            wanted = expected.mean(part.key)
            assert (found.mean(part.key) - wanted).norm() <= 1e-5 * wanted.norm()


def test_an_empty_sample_and_overflow_are_errors() -> None:
    with pytest.raises(TrackStarError, match=r"covariance w.left: its sample is empty"):
        CovarianceSums({"w.left": torch.zeros(2, 2)}, {"w.left": 0}).mean("w.left")
    with pytest.raises(TrackStarError, match="not finite"):
        CovarianceSums({"w.left": torch.full((2, 2), math.inf)}, {"w.left": 1}).mean("w.left")


def test_models_in_bfloat16_sum_in_float32() -> None:
    sample = examples(12, seed=4)
    parts, found = covariances(make_encoder(prepare_model(tiny_model("llama", dtype=torch.bfloat16))), sample)
    _, expected = covariances(make_encoder(prepare_model(tiny_model("llama"))), sample)
    assert found.counts == expected.counts
    for part in parts:
        assert found.sums[part.key].dtype == torch.float32
        wanted = expected.mean(part.key)
        assert (found.mean(part.key) - wanted).norm() <= 0.1 * wanted.norm()
