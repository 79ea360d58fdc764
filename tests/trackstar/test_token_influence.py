"""Contributions of tokens, weights and blocks, against plain autograd in float64 with a weight of its own for every position."""

import copy
import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import ByT5Tokenizer

from tests.encoders import make_encoder
from tests.tiny_models import ARCHITECTURES, VOCABULARY, tiny_model, tiny_tokenizer
from tests.trackstar.test_encoder import fitted
from tests.trackstar.test_gradients import random_moments
from trackstar.batching import Example, collate
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.forward_mode import Directions, loss_derivatives
from trackstar.gradients import ProjectingSink
from trackstar.models import LoadedModel, WeightInfo, prepare_model
from trackstar.preconditioner import mix
from trackstar.projection import projection
from trackstar.second_moments import Exact, Factored, SecondMoments
from trackstar.token_influence import Contributions, ContributionSink, contributions
from trackstar.token_text import pieces_of, spans_of
from trackstar.tokenization import Tokenization
from trackstar.trace import Segment, TokenContributions

KINDS = ["none", "factored", "exact"]
LAYOUTS = [("blocks", "vector"), ("blocks", "block"), ("weights", "vector"), ("weights", "block")]


def made_up(lengths: tuple[int, ...], first_target: int = 1, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Example(
            f"e{length}", tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()), first_target
        )
        for length in lengths
    ]


def encoder_of(
    loaded: LoadedModel, kind: str, layout: str, normalisation: str, root: str
) -> tuple[Encoder, SecondMoments | None]:
    """An encoder under no preconditioner ("none"), R_train ("train"), or a mixture of it and another R ("mixed")."""
    moments = random_moments(loaded.weights, kind)
    plain = make_encoder(loaded, moments=moments, layout=layout, normalisation=normalisation)
    if root == "none":
        return plain, moments
    train = fitted(plain, made_up((5, 9, 14, 3) * 8, seed=7))
    used = train if root == "train" else mix(train, fitted(plain, made_up((6, 4) * 5, 2, seed=8)), 0.4)
    return Encoder(loaded, plain.spec, moments, used.inverse_root), moments


class Reference:
    """φ and contributions by the formula, in float64.

    Every attributed weight becomes a stack of T copies, one for each position, so that autograd tells each position's gradient.
    """

    def __init__(self, encoder: Encoder, moments: SecondMoments | None, example: Example):
        self.encoder = encoder
        self.example = example
        model = copy.deepcopy(encoder.loaded.model).double()
        tokens = torch.tensor([example.input_ids])
        stacks = {}
        for weight in encoder.loaded.weights:
            module = model.get_submodule(weight.module)
            oriented = module.weight.detach().T if weight.transposed else module.weight.detach()
            stack = oriented.repeat(tokens.shape[1], 1, 1).requires_grad_()
            module.forward = functools.partial(self._forward, stack, module.bias)
            stacks[weight.name] = stack
        log_p = model(input_ids=tokens, use_cache=False).logits[0].log_softmax(dim=-1)
        first = max(1, example.first_target)
        losses = [-log_p[t - 1, tokens[0, t]] for t in range(first, tokens.shape[1])]
        # [targets, T, weights, d_b]: E of every loss token, position and weight.
        self.parts = torch.stack([self._projected(loss, stacks, moments) for loss in losses])
        self.loss = float(sum(losses).detach())
        self.first = first
        total = self.parts.sum(dim=(0, 1))  # [weights, d_b]
        blocks = torch.zeros(encoder.spec.num_blocks, total.shape[1], dtype=torch.float64)
        for number, weight in enumerate(encoder.loaded.weights):
            blocks[encoder.layout.block_of[weight.name]] += total[number]
        preconditioned = torch.stack([self._root(b) @ blocks[b] for b in range(len(blocks))])
        norms = preconditioned.norm(dim=1)
        if encoder.spec.normalisation == "block":
            self.scales = 1 / (norms * (norms > 0).sum().sqrt())
        else:
            self.scales = torch.full_like(norms, 1 / float(preconditioned.norm()))
        self.vector = preconditioned * self.scales[:, None]

    @staticmethod
    def _forward(stack: torch.Tensor, bias: nn.Parameter | None, x: torch.Tensor) -> torch.Tensor:
        out = torch.einsum("tmn,btn->btm", stack, x)
        return out if bias is None else out + bias

    def _root(self, block: int) -> torch.Tensor:
        root = self.encoder.inverse_root
        return (
            torch.eye(self.encoder.spec.block_dimension, dtype=torch.float64) if root is None else root[block].double()
        )

    def _projected(self, loss: torch.Tensor, stacks: dict, moments: SecondMoments | None) -> torch.Tensor:
        gradients = torch.autograd.grad(loss, list(stacks.values()), retain_graph=True)
        return torch.stack(
            [
                self._project(weight, gradient, moments)
                for weight, gradient in zip(self.encoder.loaded.weights, gradients, strict=True)
            ],
            dim=1,
        )

    def _project(self, weight: WeightInfo, gradient: torch.Tensor, moments: SecondMoments | None) -> torch.Tensor:
        """[T, m, n] → [T, d_b]."""
        spec = self.encoder.spec
        moment = moments.by_weight[weight.name] if moments else None
        if isinstance(moment, Exact):
            gradient = gradient / (moment.values.double().sqrt() + moments.epsilon)
        elif isinstance(moment, Factored):
            rows, columns = moment.rows.double(), moment.columns.double()
            gradient = gradient / (rows[:, None] * columns[None, :] / rows.mean()).sqrt()
        left = projection(spec.projection_seed, weight.name, "left", weight.outputs, spec.block_rows).double()
        right = projection(spec.projection_seed, weight.name, "right", weight.inputs, spec.block_columns).double()
        return (left.T @ gradient @ right).flatten(1)

    def toward(self, other: "Reference") -> np.ndarray:
        """Contributions to the score with `other`: [targets, T, weights]."""
        encoder = self.encoder
        found = []
        for number, weight in enumerate(encoder.loaded.weights):
            block = encoder.layout.block_of[weight.name]
            found.append(self.scales[block] * (self.parts[:, :, number] @ self._root(block) @ other.vector[block]))
        return torch.stack(found, dim=2).detach().numpy()

    def by_target(self, grid: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros(self.first), grid.sum(axis=(1, 2))])


def near(found: np.ndarray | None, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    """Within `tolerance` of the largest contribution."""
    assert found is not None
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("root", ["none", "mixed"])
@pytest.mark.parametrize(("layout", "normalisation"), LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_contributions_equal_plain_autograd(name: str, kind: str, layout: str, normalisation: str, root: str) -> None:
    encoder, moments = encoder_of(prepare_model(tiny_model(name)), kind, layout, normalisation, root)
    [query], documents = made_up((9,), 6, seed=3), made_up((7, 4), seed=4)
    asked = Reference(encoder, moments, query)
    for document, found in zip(documents, contributions(encoder, query, documents), strict=True):
        held = Reference(encoder, moments, document)
        grid, back = held.toward(asked), asked.toward(held)
        score = float((held.vector * asked.vector).sum())
        assert found.score == pytest.approx(score, abs=2e-5)
        assert found.loss == pytest.approx(held.loss, rel=1e-5)
        near(found.by_position, grid.sum(axis=(0, 2)))
        near(found.by_weight, grid.sum(axis=(0, 1)))
        near(found.by_block, (held.vector * asked.vector).sum(dim=1).detach().numpy())
        near(found.by_target, held.by_target(grid))
        near(found.query_by_position, back.sum(axis=(0, 2)))
        near(found.query_by_target, asked.by_target(back))
        check_sums(found)


def check_sums(found: Contributions, tolerance: float = 1e-4) -> None:
    for field in dataclasses.fields(found)[2:]:
        values = getattr(found, field.name)
        assert values.sum() == pytest.approx(found.score, abs=tolerance * max(1.0, np.abs(values).max())), field.name


@pytest.mark.parametrize("kind", ["none", "exact"])
@pytest.mark.parametrize("layout", ["blocks", "weights"])
def test_before_the_division_by_the_norm_contributions_sum_exactly(kind: str, layout: str) -> None:
    """With small whole numbers, and halves and quarters for 1/√V, float32 rounds nothing: every sum is to be equal, not near."""
    loaded = prepare_model(tiny_model("gpt2"))
    generator = torch.Generator().manual_seed(2)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    blocks = make_encoder(loaded, layout=layout).layout
    roots = {w.name: 2.0 ** torch.randint(0, 3, (w.outputs, w.inputs), generator=generator) for w in loaded.weights}
    moments = SecondMoments("adamw", 0.0, {name: Exact(root**2) for name, root in roots.items()})
    given = {w.name: (whole(w.outputs, 3), whole(w.inputs, 2)) for w in loaded.weights}
    exact = moments if kind == "exact" else None
    projecting = ProjectingSink(loaded.weights, blocks, 3, 2, 0, exact, projections=given)
    directions = whole(2, len(blocks.names), 3, 2)
    sink = ContributionSink(projecting, loaded, directions)
    size, width = 3, 5
    sink.begin(collate(made_up((width,) * size)))
    expected = torch.zeros(size, 2, width, len(loaded.weights), dtype=torch.float64)
    for number, weight in enumerate(loaded.weights):
        a, s = whole(size, width, weight.inputs), whole(size, width, weight.outputs)
        sink.backward(weight, sink.forward(weight, a), s)
        left, right = (part.double() for part in given[weight.name])
        divided = roots[weight.name].double() if kind == "exact" else torch.ones(weight.outputs, weight.inputs)
        for k, direction in enumerate(directions[:, blocks.block_of[weight.name]].double()):
            matrix = left @ direction @ right.T / divided
            expected[:, k, :, number] = torch.einsum("btm,mn,btn->bt", s.double(), matrix, a.double())
    assert expected.abs().max() > 1_000
    assert torch.equal(sink.contributions.double(), expected)
    products = torch.einsum("bide,kide->bk", projecting.encodings.double(), directions.double())  # E·U
    assert torch.equal(sink.contributions.double().sum(dim=(2, 3)), products)
    for block in range(len(blocks.names)):
        mine = [number for number, weight in enumerate(loaded.weights) if blocks.block_of[weight.name] == block]
        part = torch.einsum("bde,kde->bk", projecting.encodings[:, block].double(), directions[:, block].double())
        assert torch.equal(sink.contributions.double()[..., mine].sum(dim=(2, 3)), part)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_has_contributions_that_sum_to_the_score(name: str) -> None:
    """Forwards too: rotary positions, soft caps, sliding windows, grouped queries."""
    encoder, _ = encoder_of(prepare_model(tiny_model(name)), "exact", "weights", "block", "train")
    [query], documents = made_up((12,), 8, seed=3), made_up((20, 5, 11), seed=4)
    vectors = encoder.encode([query, *documents])[0].vectors.double()
    for vector, found in zip(vectors[1:], contributions(encoder, query, documents), strict=True):
        assert found.score == pytest.approx(float(vector @ vectors[0]), abs=1e-5)
        check_sums(found)


def test_in_bfloat16_they_sum_to_the_score_as_well_as_bfloat16_can() -> None:
    loaded = prepare_model(tiny_model("llama", dtype=torch.bfloat16))
    encoder, _ = encoder_of(loaded, "factored", "blocks", "vector", "train")
    exact, _ = encoder_of(prepare_model(tiny_model("llama")), "factored", "blocks", "vector", "train")
    [query], documents = made_up((12,), 8, seed=3), made_up((20, 11), seed=4)
    precise = contributions(exact, query, documents)
    for found, expected in zip(contributions(encoder, query, documents), precise, strict=True):
        check_sums(found, tolerance=0.05)
        assert np.corrcoef(found.by_position, expected.by_position)[0, 1] > 0.95
        assert np.corrcoef(found.by_target, expected.by_target)[0, 1] > 0.95


@pytest.mark.parametrize("kind", ["none", "exact"])
def test_contributions_do_not_depend_on_the_batch(kind: str) -> None:
    loaded = prepare_model(tiny_model("gpt2"))
    encoder, moments = encoder_of(loaded, kind, "weights", "block", "train")
    [query], documents = made_up((10,), 6, seed=3), made_up((20, 3, 11, 20, 7), seed=4)
    together = contributions(encoder, query, documents)
    small = Encoder(loaded, dataclasses.replace(encoder.spec, batch_tokens=1), moments, encoder.inverse_root)
    for document, found in zip(documents, together, strict=True):
        [alone] = contributions(small, query, [document])
        for field in dataclasses.fields(found)[2:]:
            near(getattr(found, field.name), getattr(alone, field.name))


def test_many_documents_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _ = encoder_of(prepare_model(tiny_model("llama")), "exact", "blocks", "block", "train")
    [query], documents = made_up((10,), 6, seed=3), made_up((9, 3, 11), seed=4)
    expected = contributions(encoder, query, documents)
    monkeypatch.setattr("trackstar.token_influence._CONTRIBUTION_BYTES", 1)
    for found, one in zip(contributions(encoder, query, documents), expected, strict=True):
        near(found.query_by_position, one.query_by_position)


def test_what_is_not_asked_for_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _ = encoder_of(prepare_model(tiny_model("llama")), "none", "blocks", "vector", "none")
    [query], documents = made_up((10,), 6, seed=3), made_up((9,), seed=4)
    monkeypatch.setattr("trackstar.token_influence.loss_derivatives", None)
    [found] = contributions(encoder, query, documents, by_target=False)
    assert found.by_target is None and found.query_by_target is None
    assert contributions(encoder, query, []) == []


def test_no_hook_and_no_gradient_is_left_behind() -> None:
    loaded = prepare_model(tiny_model("gpt2"))
    encoder, _ = encoder_of(loaded, "exact", "blocks", "vector", "none")
    [query], documents = made_up((10,), 6, seed=3), made_up((9,), seed=4)
    before = encoder.encode(documents)[0].vectors
    contributions(encoder, query, documents)
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert torch.equal(encoder.encode(documents)[0].vectors, before)


def test_a_gradient_without_direction_is_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    encoder, _ = encoder_of(prepare_model(model), "none", "blocks", "vector", "none")
    [query] = made_up((10,), 6, seed=3)
    query = dataclasses.replace(query, input_ids=tuple(token if token != 5 else 6 for token in query.input_ids))
    with pytest.raises(TrackStarError, match="spoilt: its gradient has norm nan"):
        contributions(encoder, query, [Example("spoilt", (4, 5, 6))])


class Unknown(torch.autograd.Function):
    """An operation without a forward-mode derivative."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient


def test_without_a_forward_derivative_only_contributions_by_target_are_left_out(caplog) -> None:
    model = tiny_model("llama")
    inner = model.model.layers[1].mlp

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Unknown.apply(self.inner(x))

    model.model.layers[1].mlp = Wrapped()
    encoder, _ = encoder_of(prepare_model(model), "none", "blocks", "vector", "none")
    [query], documents = made_up((10,), 6, seed=3), made_up((9,), seed=4)
    [found] = contributions(encoder, query, documents)
    assert found.by_target is None and found.query_by_target is None
    assert found.by_position.sum() == pytest.approx(found.score, abs=1e-4)
    assert "cannot be differentiated forwards" in caplog.text
    directions = Directions(torch.ones(1, encoder.spec.num_blocks, 6, 5), torch.ones(1, encoder.spec.num_blocks))
    assert loss_derivatives(encoder, documents, directions) is None


# Tokens and characters.


def of_text(text: str) -> tuple[list[tuple[int, int]], tuple[int, ...], Tokenization]:
    tokenization = Tokenization(tiny_tokenizer(), 300, 64, "truncate", False)
    tokens, _ = tokenization.tokens(text)
    return spans_of(tokenization, text, tokens), tokens, tokenization


def test_spans_are_the_tokens_characters() -> None:
    text = "The capital of Italy is Rome."
    spans, tokens, tokenization = of_text(text)
    pieces = pieces_of(tokenization.tokenizer, tokens)
    assert [text[start:end].strip() for start, end in spans] == [piece.strip() for piece in pieces]
    end = tokenization.tokenizer.eos_token_id
    assert spans_of(tokenization, text, (*tokens, end)) == [*spans, (len(text), len(text))]
    assert spans_of(tokenization, text, (77, *tokens), context=1) == [(0, 0), *spans]
    assert spans_of(tokenization, text, tokens[3:]) == spans[3:]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40), seed=st.integers(0, 5))
def test_spans_of_any_text_are_in_order_and_inside_it(text: str, seed: int) -> None:
    """Also of tokens that are not this text's."""
    spans, tokens, tokenization = of_text(text)
    other = torch.randint(2, 300, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
    for found, count in ((spans, len(tokens)), (spans_of(tokenization, text, other), 12)):
        assert len(found) == count
        assert all(0 <= start <= end <= len(text) for start, end in found)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(found))
    covered = {at for start, end in spans for at in range(start, end)}
    assert covered == set(range(len(text)))


def test_a_tokenizer_without_offsets() -> None:
    """Bytes as tokens: those of one character share its place."""
    tokenizer = ByT5Tokenizer()
    tokenization = Tokenization(tokenizer, 400, 64, "truncate", False)
    text = "né à"
    tokens, offsets = tokenization.tokens(text)
    assert offsets is None
    spans = spans_of(tokenization, text, tokens)
    assert len(tokens) == 7  # n, é in two, space, à in two, end of text
    assert spans == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4), (3, 4), (3, 4)]


def test_segments_do_not_overlap() -> None:
    """Halves of a character are one segment; tokens outside the text are in none."""
    tokens = TokenContributions(
        "aéb", (1, 2, 3, 4, 5), ("a", "", "", "b", ""), ((0, 1), (1, 2), (1, 2), (2, 3), (3, 3)), 1,
        (1.0, 2.0, 3.0, 4.0, 5.0), (0.0, 1.0, 1.0, 1.0, 1.0),
    )  # fmt: skip
    assert tokens.segments() == [Segment(0, 1, 1.0), Segment(1, 2, 5.0), Segment(2, 3, 4.0)]
    assert tokens.segments("target") == [Segment(0, 1, 0.0), Segment(1, 2, 2.0), Segment(2, 3, 1.0)]
    assert dataclasses.replace(tokens, by_target=None).segments("target") == []


def test_directions_of_a_batch_are_those_of_its_examples() -> None:
    matrices, scales = torch.randn(4, 2, 3, 5), torch.randn(4, 2)
    some = Directions(matrices, scales).of([3, 1])
    assert torch.equal(some.matrices, torch.stack([matrices[3], matrices[1]]))
    assert torch.equal(some.scales, torch.stack([scales[3], scales[1]]))
    shared = Directions(matrices[:1], scales).of([3, 1])
    assert torch.equal(shared.matrices, matrices[:1])
    assert torch.equal(shared.scales, some.scales)
