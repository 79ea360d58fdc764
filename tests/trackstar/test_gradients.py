"""Per-example gradients, their correction and projection, against a plain loop of autograd."""

import pytest
import torch
from torch import nn

from tests.tiny_models import ARCHITECTURES, VOCABULARY, tiny_model
from trackstar.batching import Example, collate
from trackstar.errors import TrackStarError
from trackstar.gradients import GradientEngine, ProjectingSink, SquareSumSink
from trackstar.head import PlainHead
from trackstar.models import block_layout, prepare_model
from trackstar.projection import projection
from trackstar.second_moments import Exact, Factored, SecondMoments


def examples(count: int = 6, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    result = []
    for i in range(count):
        length = int(torch.randint(2, 24, (1,), generator=generator))
        tokens = tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())
        # Every other example is a query: its prompt is not supervised.
        result.append(Example(str(i), tokens, 1 if i % 2 == 0 else max(1, length - 2)))
    return result


def plain_gradients(model: nn.Module, example: Example) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one example through the model's own logits, every parameter trainable, no batch."""
    model.requires_grad_(True)
    model.zero_grad()
    tokens = torch.tensor([example.input_ids])
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0].float()
    log_p = logits.log_softmax(dim=-1)
    loss = -sum(log_p[t - 1, tokens[0, t]] for t in range(max(1, example.first_target), len(example.input_ids)))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.requires_grad_(False)
    model.zero_grad()
    return float(loss.detach()), gradients


def random_moments(weights, kind: str) -> SecondMoments | None:
    generator = torch.Generator().manual_seed(7)

    def positive(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).pow(3) * 1e-2 + 1e-6

    if kind == "none":
        return None
    if kind == "exact":
        return SecondMoments("adamw", 1e-4, {w.name: Exact(positive(w.outputs, w.inputs)) for w in weights})
    return SecondMoments("adafactor", 0.0, {w.name: Factored(positive(w.outputs), positive(w.inputs)) for w in weights})


def reference(loaded, example, layout, d0, d1, seed, moments) -> tuple[float, torch.Tensor]:
    loss, gradients = plain_gradients(loaded.model, example)
    result = torch.zeros(len(layout.names), d0, d1, dtype=torch.float64)
    for weight in loaded.weights:
        gradient = gradients[weight.name].double()
        gradient = gradient.T if weight.transposed else gradient
        moment = moments.by_weight[weight.name] if moments else None
        if isinstance(moment, Exact):
            gradient = gradient / (moment.values.double().sqrt() + moments.epsilon)
        elif isinstance(moment, Factored):
            rows, columns = moment.rows.double(), moment.columns.double()
            gradient = gradient / (rows[:, None] * columns[None, :] / rows.mean()).sqrt()
        left = projection(seed, weight.name, "left", weight.outputs, d0).double()
        right = projection(seed, weight.name, "right", weight.inputs, d1).double()
        result[layout.block_of[weight.name]] += left.T @ gradient @ right
    return loss, result


@pytest.mark.parametrize("kind", ["none", "factored", "exact"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_projected_gradients_equal_plain_autograd(name: str, kind: str) -> None:
    loaded = prepare_model(tiny_model(name))
    layout = block_layout(loaded.weights, "blocks", 8)
    moments = random_moments(loaded.weights, kind)
    sink = ProjectingSink(loaded.weights, layout, 6, 5, 3, moments)
    batch = examples()
    with GradientEngine(loaded, sink) as engine:
        losses = engine.run(collate(batch))
    for i, example in enumerate(batch):
        loss, expected = reference(loaded, example, layout, 6, 5, 3, moments)
        assert losses[i].item() == pytest.approx(loss, rel=1e-5)
        assert (sink.encodings[i].double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_square_sums_equal_plain_autograd(name: str) -> None:
    loaded = prepare_model(tiny_model(name))
    sink = SquareSumSink(loaded.weights)
    batch = examples()
    with GradientEngine(loaded, sink) as engine:
        engine.run(collate(batch[:4]))
        engine.run(collate(batch[4:]))
    assert sink.count == 6
    alone = [plain_gradients(loaded.model, example)[1] for example in batch]
    for weight in loaded.weights:
        expected = sum(gradients[weight.name].double().square() for gradients in alone)
        expected = expected.T if weight.transposed else expected
        assert (sink.sums[weight.name].double() - expected).norm() <= 1e-5 * expected.norm()


def test_heads_are_told_apart() -> None:
    """Soft-capped logits take the general way, plain ones the closed form; both were compared with autograd above."""
    assert PlainHead.of(tiny_model("gemma2")) is None
    for name in ("gpt2", "llama-tied", "opt", "phi", "gpt_neox"):
        assert PlainHead.of(tiny_model(name)) is not None


def test_many_chunks_of_logits_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = prepare_model(tiny_model("llama"))
    layout = block_layout(loaded.weights, "blocks", 8)
    results = []
    for limit in (64 << 20, 4 * VOCABULARY * 3):  # the second: three tokens a chunk
        monkeypatch.setattr("trackstar.head._LOGIT_BYTES", limit)
        sink = ProjectingSink(loaded.weights, layout, 6, 5, 3, None)
        with GradientEngine(loaded, sink) as engine:
            losses = engine.run(collate(examples()))
        results.append((losses, sink.encodings))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0.0)
    assert (results[0][1] - results[1][1]).norm() <= 1e-5 * results[0][1].norm()


def test_no_gradient_reaches_the_vocabulary_or_any_weight() -> None:
    loaded = prepare_model(tiny_model("gpt2"))
    sink = ProjectingSink(loaded.weights, block_layout(loaded.weights, "blocks", 8), 4, 4, 0, None)
    with GradientEngine(loaded, sink) as engine:
        engine.run(collate(examples()))
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert not any(module._forward_hooks for module in loaded.model.modules())  # hooks are taken off again


def test_rows_that_belong_to_no_example_are_an_error() -> None:
    """A mixture of experts that hands each expert a part of the tokens."""
    model = tiny_model("llama")

    class Routed(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.reshape(-1, x.shape[-1])
            return torch.cat([self.inner(flat[:3]), flat[3:]]).reshape(x.shape)

    model.model.layers[1].mlp = Routed(model.model.layers[1].mlp)
    loaded = prepare_model(model)
    sink = ProjectingSink(loaded.weights, block_layout(loaded.weights, "blocks", 8), 4, 4, 0, None)
    with (
        GradientEngine(loaded, sink) as engine,
        pytest.raises(TrackStarError, match=r"mlp.inner.*cannot be attributed"),
    ):
        engine.run(collate(examples()))
