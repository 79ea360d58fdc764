"""Examples → encodings: against plain autograd, in any batch, and each part at its place."""

import dataclasses

import pytest
import torch

from tests.encoders import make_encoder
from tests.tiny_models import VOCABULARY, tiny_model
from tests.trackstar.test_gradients import examples, random_moments, reference
from trackstar.batching import Example
from trackstar.encoder import Encoder, precondition_and_normalise
from trackstar.errors import TrackStarError
from trackstar.models import prepare_model
from trackstar.preconditioner import GramSum, Preconditioner


def fitted(encoder: Encoder, sample: list[Example], damping: float = 0.1) -> Preconditioner:
    total = GramSum(encoder.spec.num_blocks, encoder.spec.block_dimension)
    total.add(encoder.project(sample).gradients)
    return Preconditioner.of(total.mean(), damping, total.count)


@pytest.mark.parametrize("kind", ["none", "factored", "exact"])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "gemma2"])
def test_encodings_equal_the_formula_in_float64(name: str, kind: str) -> None:
    loaded = prepare_model(tiny_model(name))
    moments = random_moments(loaded.weights, kind)
    plain = make_encoder(loaded, moments=moments)
    sample, asked = examples(40, seed=1), examples(6, seed=2)
    preconditioner = fitted(plain, sample)
    encoder = Encoder(loaded, plain.spec, moments, preconditioner.inverse_root)
    encodings, bad = encoder.encode(asked)
    assert not bad
    spec = encoder.spec

    def e(example: Example) -> torch.Tensor:
        _, gradient = reference(loaded, example, encoder.layout, spec.block_rows, spec.block_columns, 0, moments)
        return gradient.flatten(1)

    r = sum(torch.einsum("bi,bj->bij", g, g) for g in map(e, sample)) / len(sample)
    for i, example in enumerate(asked):
        parts = []
        for block, gradient in enumerate(e(example)):
            sigma, u = torch.linalg.eigh(r[block])
            sigma = sigma.clamp_min(0) + 0.1 * sigma.clamp_min(0).mean()
            parts.append(u @ (sigma.rsqrt() * (u.T @ gradient)))
        expected = torch.cat(parts)
        assert encodings.grad_norm[i] == pytest.approx(float(expected.norm()), rel=1e-4)
        assert (encodings.vectors[i].double() - expected / expected.norm()).norm() <= 1e-5
        assert float(encodings.vectors[i].norm()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["none", "exact"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "mistral"])
def test_an_example_has_one_encoding_in_any_batch(name: str, kind: str) -> None:
    loaded = prepare_model(tiny_model(name))
    moments = random_moments(loaded.weights, kind)
    encoder = make_encoder(loaded, moments=moments)
    inverse_root = fitted(encoder, examples(40, seed=1)).inverse_root
    batch = examples(12, seed=5)
    alone = torch.cat([Encoder(loaded, encoder.spec, moments, inverse_root).encode([e])[0].vectors for e in batch])
    for batch_tokens in (1, 64, 10_000):  # by itself, with a few, all at once with much padding
        spec = dataclasses.replace(encoder.spec, batch_tokens=batch_tokens)
        for order in (list(range(12)), list(range(11, -1, -1))):
            together = Encoder(loaded, spec, moments, inverse_root).encode([batch[i] for i in order])[0].vectors
            assert (together - alone[order]).norm(dim=1).max() <= 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16_models_agree_in_any_batch_and_with_float32(name: str) -> None:
    loaded = prepare_model(tiny_model(name, dtype=torch.bfloat16))
    encoder = make_encoder(loaded)
    batch = examples(8, seed=5)
    alone = torch.cat([encoder.encode([e])[0].vectors for e in batch])
    together = encoder.encode(batch)[0].vectors
    assert (alone * together).sum(dim=1).min() >= 0.999
    exact = make_encoder(prepare_model(tiny_model(name))).encode(batch)[0].vectors
    assert (exact * together).sum(dim=1).min() >= 0.98


def test_a_changed_preconditioner_changes_the_ranking() -> None:
    loaded = prepare_model(tiny_model("llama"))
    encoder = make_encoder(loaded)
    documents, query = examples(30, seed=1), examples(2, seed=3)[1:]
    preconditioner = fitted(encoder, documents)
    rankings = []
    for root in (None, preconditioner.inverse_root):
        one = Encoder(loaded, encoder.spec, None, root)
        rankings.append((one.encode(documents)[0].vectors @ one.encode(query)[0].vectors[0]).argsort().tolist())
    assert rankings[0] != rankings[1]


def test_moments_change_the_ranking() -> None:
    loaded = prepare_model(tiny_model("llama"))
    documents, query = examples(30, seed=1), examples(2, seed=3)[1:]
    rankings = []
    for kind in ("none", "factored", "exact"):
        encoder = make_encoder(loaded, moments=random_moments(loaded.weights, kind))
        rankings.append(tuple((encoder.encode(documents)[0].vectors @ encoder.encode(query)[0].vectors[0]).argsort()))
    assert len(set(map(str, rankings))) == 3


def test_block_normalisation_gives_each_block_the_same_weight() -> None:
    gradients = (
        torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1])[:, None]
    )
    gradients[0, 1] = 0.0
    vectors, norms = precondition_and_normalise(gradients, None, "block")
    block_norms = vectors.reshape(5, 3, 16).norm(dim=2)
    torch.testing.assert_close(block_norms[1:], torch.full((4, 3), 3**-0.5))
    torch.testing.assert_close(block_norms[0], torch.tensor([2**-0.5, 0.0, 2**-0.5]))
    torch.testing.assert_close(norms, gradients.flatten(1).norm(dim=1))


def test_a_non_finite_gradient_is_named_and_loses_nothing_else() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    encoder = make_encoder(prepare_model(model))
    batch = [Example("good", (7, 8, 9)), Example("bad", (4, 5, 6)), Example("also good", (10, 11, 12, 13))]
    encodings, bad = encoder.encode(batch)
    assert encodings.example_ids == ["good", "also good"]
    assert list(bad) == [1]
    assert "non-finite gradient" in bad[1]


def test_another_model_is_refused_with_what_differs() -> None:
    encoder = make_encoder(prepare_model(tiny_model("llama")))
    with pytest.raises(TrackStarError, match="model_fingerprint"):
        Encoder(prepare_model(tiny_model("llama", seed=1)), encoder.spec, None, None)
    with pytest.raises(TrackStarError, match=r"model_architecture.*LlamaForCausalLM.*GPT2LMHeadModel"):
        Encoder(prepare_model(tiny_model("gpt2")), encoder.spec, None, None)
    smaller = tiny_model("llama")
    smaller.resize_token_embeddings(VOCABULARY - 7)
    with pytest.raises(TrackStarError, match="vocabulary_size: the index has 97, --model gives 90"):
        Encoder(prepare_model(smaller), encoder.spec, None, None)
