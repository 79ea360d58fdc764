"""Tail-patch against a naive implementation: a deep copy of the model, the real optimizer, one real step, a plain pass."""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from tests.tiny_models import VOCABULARY, tiny_model
from tests.trackstar.evaluation.trained import (
    CAPITALS,
    PROMPT,
    UNRELATED,
    arguments,
    bits,
    fact,
    random_tokens,
    train,
    train_on_facts,
)
from trackstar.batching import Example
from trackstar.errors import TrackStarError
from trackstar.evaluation.tail_patch import TailPatch, TailPatchSettings, TailPatchSource
from trackstar.models import load_model, prepare_model
from trackstar.tokenization import UnusableRecordError

DOCUMENTS = [Example(f"d{i}", row) for i, row in enumerate(random_tokens(3, 17, seed=1))]
QUERIES = [
    Example("q0", random_tokens(1, 9, seed=2)[0], 6),
    Example("q1", random_tokens(1, 14, seed=3)[0], 13),
    Example("q2", random_tokens(1, 5, seed=4)[0], 2),
]
RATES = (1e-6, 1e-4, 1e-2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(architecture, optimizer) → a checkpoint of a finished training run, each done once."""

    @functools.cache
    def run(architecture: str, optim: str = "adamw_torch") -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        settings = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "adam_beta2": 0.99}
        return train(tiny_model(architecture), random_tokens(6), folder, 4, optim=optim, **settings)[1]

    return run


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that half knows the capitals."""
    return train_on_facts(tmp_path_factory.mktemp("facts"))


def probability(model: PreTrainedModel, query: Example) -> float:
    """p(target | prompt) by a plain forward pass over the one query."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([query.input_ids])).logits[0].float().log_softmax(-1)
    first = query.first_target
    return math.exp(sum(float(log_p[t - 1, query.input_ids[t]]) for t in range(first, len(query.input_ids))))


def loss(model: PreTrainedModel, document: Example) -> torch.Tensor:
    ids = torch.tensor([document.input_ids])
    return model(input_ids=ids, labels=ids).loss


def one_step(
    checkpoint: Path, document: Example, build: Callable[[PreTrainedModel], torch.optim.Optimizer], rate: float
) -> PreTrainedModel:
    """A deep copy of the checkpoint's model after one step of a real optimizer in the saved state."""
    model = copy.deepcopy(AutoModelForCausalLM.from_pretrained(checkpoint)).eval()
    optimizer = build(model)
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss(model, document).backward()
    optimizer.step()
    return model


def assert_naive(patch: TailPatch, checkpoint: Path, build: Callable[[PreTrainedModel], torch.optim.Optimizer]) -> None:
    original = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    moved = 0.0
    for document in DOCUMENTS[:2]:
        measured = patch.measure(document, QUERIES, *RATES)
        assert measured.before == pytest.approx([probability(original, query) for query in QUERIES], abs=1e-6)
        for rate, after in zip(RATES, measured.after, strict=True):
            naive = one_step(checkpoint, document, build, rate)
            assert after == pytest.approx([probability(naive, query) for query in QUERIES], abs=1e-6)
            moved = max(moved, *(abs(a - b) for a, b in zip(after, measured.before, strict=True)))
    assert moved > 1e-3  # so that 1e-6 says something


def trainers_optimizer(folder: Path, optim: str) -> Callable[[PreTrainedModel], torch.optim.Optimizer]:
    """Builds the optimizer as `transformers.Trainer` does, groups with and without weight decay among it."""

    def build(model: PreTrainedModel) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {"optim": optim, "adam_beta2": 0.99}
        trainer = Trainer(model=model, args=arguments(folder, 1, **settings))
        return trainer.create_optimizer()

    return build


@pytest.mark.parametrize("architecture", ["gpt2", "llama-tied", "llama", "gemma2", "opt"])
def test_adamw_equals_a_real_step_on_a_deep_copy(
    trained: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    checkpoint = trained(architecture)
    patch = TailPatch(load_model(str(checkpoint)), str(checkpoint))
    assert (patch.rules.kind, patch.rules.steps) == ("adamw", 4)
    names = [name for name, _ in patch.loaded.model.named_parameters()]
    assert list(patch.rules.by_name) == names  # embeddings, norms and head, too
    assert_naive(patch, checkpoint, trainers_optimizer(tmp_path, "adamw_torch"))


def test_adafactor_equals_a_real_step_on_a_deep_copy(trained: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = trained("llama-tied", "adafactor")
    patch = TailPatch(load_model(str(checkpoint)), str(checkpoint))
    assert patch.rules.kind == "adafactor"
    assert_naive(patch, checkpoint, trainers_optimizer(tmp_path, "adafactor"))


def handmade(folder: Path, build: Callable[[PreTrainedModel], torch.optim.Optimizer]) -> Path:
    """A checkpoint trained by a loop of our own with another optimizer."""
    model = tiny_model("llama")
    optimizer = build(model)
    for row in random_tokens(4):
        optimizer.zero_grad()
        loss(model, Example("", row)).backward()
        optimizer.step()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder


def layerwise(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Two groups whose learning rates are 1 : 4."""
    groups = [list(group) for group in ([], [])]
    for i, pair in enumerate(model.named_parameters()):
        groups[i % 2].append(pair)
    return torch.optim.AdamW([{"params": groups[0], "lr": 5e-3}, {"params": groups[1], "lr": 2e-2}], weight_decay=0.3)


def test_adam_with_decay_in_the_gradient(tmp_path: Path) -> None:
    def build(model: PreTrainedModel) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.named_parameters(), lr=1e-2, weight_decay=0.3, eps=1e-6)

    checkpoint = handmade(tmp_path, build)
    assert_naive(TailPatch(load_model(str(checkpoint)), str(checkpoint)), checkpoint, build)


def test_groups_keep_the_proportion_of_their_learning_rates(tmp_path: Path) -> None:
    checkpoint = handmade(tmp_path, layerwise)
    patch = TailPatch(load_model(str(checkpoint)), str(checkpoint))
    assert patch.rules.saved_rate == pytest.approx(2e-2)
    model = copy.deepcopy(AutoModelForCausalLM.from_pretrained(checkpoint)).eval()
    optimizer = layerwise(model)
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    loss(model, DOCUMENTS[0]).backward()
    optimizer.step()
    [after] = patch.measure(DOCUMENTS[0], QUERIES, 2e-2).after
    assert after == pytest.approx([probability(model, query) for query in QUERIES], abs=1e-6)


def test_sgd_and_its_sum_over_tokens(trained: Callable[..., Path]) -> None:
    checkpoint = trained("llama")
    for kind, scale in (("mean", 1.0), ("sum", len(DOCUMENTS[0].input_ids) - 1.0)):
        patch = TailPatch(load_model(str(checkpoint)), None, TailPatchSettings(step="sgd", loss=kind))
        model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        loss(model, DOCUMENTS[0]).backward()
        torch.optim.SGD(model.parameters(), lr=1e-3 * scale).step()
        measured = patch.measure(DOCUMENTS[0], QUERIES, 1e-3)
        assert measured.after[0] == pytest.approx([probability(model, query) for query in QUERIES], abs=1e-6)
        assert max(abs(a - b) for a, b in zip(measured.after[0], measured.before, strict=True)) > 1e-5


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_normalised_is_the_gradient_over_the_root_of_v(
    trained: Callable[..., Path], tmp_path: Path, optim: str
) -> None:
    checkpoint = trained("llama", optim)
    patch = TailPatch(load_model(str(checkpoint)), str(checkpoint), TailPatchSettings(step="normalised"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    optimizer = trainers_optimizer(tmp_path, optim)(model)
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    loss(model, DOCUMENTS[0]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            state = optimizer.state[parameter]
            if optim == "adamw_torch":
                v = state["exp_avg_sq"] / (1 - 0.99 ** int(state["step"]))
            elif parameter.ndim == 2:
                v = torch.outer(state["exp_avg_sq_row"], state["exp_avg_sq_col"]) / state["exp_avg_sq_row"].mean()
            else:
                v = state["exp_avg_sq"]
            parameter -= 1e-3 * parameter.grad / (v.sqrt() + (1e-8 if optim == "adamw_torch" else 0.0))
    measured = patch.measure(DOCUMENTS[0], QUERIES, 1e-3)
    assert measured.after[0] == pytest.approx([probability(model, query) for query in QUERIES], abs=1e-6)
    assert measured.after[0] != pytest.approx(measured.before, abs=1e-4)


def test_a_step_without_gradient_is_momentum_and_decay_alone(trained: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = trained("llama")
    patch = TailPatch(load_model(str(checkpoint)), str(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    optimizer = trainers_optimizer(tmp_path, "adamw_torch")(model)
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    measured = patch.measure(None, QUERIES, 1e-3)
    assert measured.after[0] == pytest.approx([probability(model, query) for query in QUERIES], abs=1e-6)
    assert measured.after[0] != pytest.approx(measured.before, abs=1e-5)
    plain = TailPatch(load_model(str(checkpoint)), None, TailPatchSettings(step="sgd"))
    still = plain.measure(None, QUERIES, 1e-3)
    assert still.after[0] == still.before


def test_the_model_has_the_same_bits_after_hundreds_of_pairs(trained: Callable[..., Path]) -> None:
    checkpoint = trained("gpt2")
    loaded = load_model(str(checkpoint))
    before, addresses = bits(loaded.model), [parameter.data_ptr() for parameter in loaded.model.parameters()]
    patch = TailPatch(loaded, str(checkpoint))
    first = patch.measure(DOCUMENTS[0], QUERIES, *RATES)
    for number, row in enumerate(random_tokens(100, 10, seed=5)):
        patch.measure(Example("", row), QUERIES, 10.0 ** (number % 7 - 5))
    patch.measure(DOCUMENTS[1], QUERIES, 1e30)  # not finite
    patch.slope(DOCUMENTS[1], QUERIES[0])
    with pytest.raises(IndexError):
        patch.measure(DOCUMENTS[0], [Example("", (5, VOCABULARY + 5, 6))], 1e-3)
    assert bits(loaded.model) == before
    assert [parameter.data_ptr() for parameter in loaded.model.parameters()] == addresses
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in loaded.model.parameters())
    assert patch.measure(DOCUMENTS[0], QUERIES, *RATES) == first


def test_any_grouping_and_order_gives_the_same_numbers(trained: Callable[..., Path]) -> None:
    checkpoint = trained("llama")
    loaded = load_model(str(checkpoint))
    together = TailPatch(loaded, str(checkpoint)).measure(DOCUMENTS[0], QUERIES, 1e-3)
    for order in itertools.permutations(range(3)):
        for settings in (TailPatchSettings(), TailPatchSettings(batch_tokens=1)):
            patch = TailPatch(loaded, str(checkpoint), settings)
            patch.measure(DOCUMENTS[1], QUERIES[:1], 1e-2)
            measured = patch.measure(DOCUMENTS[0], [QUERIES[i] for i in order], 1e-3)
            assert measured.before == pytest.approx([together.before[i] for i in order], abs=1e-6)
            assert measured.after[0] == pytest.approx([together.after[0][i] for i in order], abs=1e-6)


def test_the_slope_is_that_of_small_steps(trained: Callable[..., Path]) -> None:
    for architecture in ("llama-tied", "gemma2"):
        checkpoint = trained(architecture)
        patch = TailPatch(load_model(str(checkpoint)), str(checkpoint))
        for document, query in itertools.product(DOCUMENTS, QUERIES):
            before, slope = patch.slope(document, query)
            up, down = patch.measure(document, [query], 1e-4, -1e-4).after
            assert before == pytest.approx(patch.measure(document, [query]).before[0], abs=1e-9)
            assert slope == pytest.approx((up[0] - down[0]) / 2e-4, rel=0.02, abs=1e-3 * before)


def test_long_documents_are_summed_in_chunks(trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained("llama-tied")
    loaded = load_model(str(checkpoint))
    whole = TailPatch(loaded, str(checkpoint)).measure(DOCUMENTS[0], QUERIES, 1e-3)
    monkeypatch.setattr("trackstar.evaluation.tail_patch._LOGIT_BYTES", 4 * VOCABULARY * 3)
    chunked = TailPatch(loaded, str(checkpoint)).measure(DOCUMENTS[0], QUERIES, 1e-3)
    assert chunked.after[0] == pytest.approx(whole.after[0], abs=1e-7)


def changes(patch: TailPatch, text: str, countries: Sequence[str], rate: float) -> list[float]:
    queries = [patch.query(PROMPT.format(country), CAPITALS[country]) for country in countries]
    measured = patch.measure(patch.document(text)[0] if text else None, queries, rate)
    return [after - before for before, after in zip(measured.before, measured.after[0], strict=True)]


@pytest.mark.parametrize("step", ["adamw", "normalised", "sgd"])
def test_a_fact_raises_its_own_query_and_unrelated_texts_do_not(facts: Path, step: str) -> None:
    patch = TailPatch(load_model(str(facts)), str(facts), TailPatchSettings(step=step))
    rate = {"adamw": 3e-4, "normalised": 1e-5, "sgd": 1e-3}[step]
    countries = list(CAPITALS)
    drift = changes(patch, "", countries, rate)
    for i, country in enumerate(countries):
        own = changes(patch, fact(country), [country], rate)[0] - drift[i]
        assert own > 0
        for text in UNRELATED:
            assert changes(patch, text, [country], rate)[0] - drift[i] < own / 3


def test_documents_that_are_too_long_or_too_short(facts: Path) -> None:
    patch = TailPatch(load_model(str(facts)), str(facts), TailPatchSettings(max_length=8, append_eos=True))
    example, cut = patch.document("The capital of France is Paris, and so on and on and on.")
    assert cut and len(example.input_ids) == 8
    example, cut = patch.document("Rome")
    assert not cut and example.input_ids[-1] == patch.loaded.tokenizer.eos_token_id
    with pytest.raises(UnusableRecordError):
        TailPatch(load_model(str(facts)), str(facts)).document("a")
    with pytest.raises(TrackStarError, match="above the model's context"):
        TailPatch(load_model(str(facts)), str(facts), TailPatchSettings(max_length=4096))


def test_bfloat16_is_refused_in_memory_and_loaded_as_float32(facts: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(facts).to(torch.bfloat16)
    with pytest.raises(TrackStarError, match="bfloat16, which loses small steps"):
        TailPatch(prepare_model(model), str(facts))
    model.save_pretrained(tmp_path)
    torch.save(torch.load(facts / "optimizer.pt", weights_only=True), tmp_path / "optimizer.pt")
    patch = TailPatchSource(str(tmp_path), None, TailPatchSettings()).load()
    for name, parameter in patch.loaded.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, model.get_parameter(name).float())
    example = Example("", tuple(patch.loaded.model.config.vocab_size - 1 - i for i in range(6)), 4)
    [after] = patch.measure(example, [example], 1e-5).after
    assert after != patch.measure(example, [example]).before


def saved(folder: Path, state: dict[str, Any]) -> str:
    torch.save(state, folder / "optimizer.pt")
    return str(folder / "optimizer.pt")


def test_states_that_cannot_be_used(trained: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load_model(str(trained("llama")))
    with pytest.raises(TrackStarError, match=r"needs the optimizer's state and none is given.*--step sgd"):
        TailPatch(loaded)
    with pytest.raises(TrackStarError, match="no such optimizer state"):
        TailPatch(loaded, str(tmp_path / "nowhere"))
    with pytest.raises(TrackStarError, match="does not belong to this model"):
        TailPatch(loaded, str(trained("gpt2")))
    with pytest.raises(TrackStarError, match="this is a state of adamw; give --step adamw"):
        TailPatch(loaded, str(trained("llama")), TailPatchSettings(step="adafactor"))
    (tmp_path / "moments.safetensors").write_bytes(b"")
    with pytest.raises(TrackStarError, match="a step moves all parameters"):
        TailPatch(loaded, str(tmp_path / "moments.safetensors"))

    state = torch.load(trained("llama") / "optimizer.pt", weights_only=True)
    for group in state["param_groups"]:
        group["amsgrad"] = True
    with pytest.raises(TrackStarError, match="ran with amsgrad, which is not supported"):
        TailPatch(loaded, saved(tmp_path, state))

    model = tiny_model("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss(model, DOCUMENTS[0]).backward()
    optimizer.step()
    with pytest.raises(TrackStarError, match=r"keeps momentum_buffer, and its step is not known here; known are Adam"):
        TailPatch(loaded, saved(tmp_path, optimizer.state_dict()))


def test_parameters_that_never_moved_stay(tmp_path: Path) -> None:
    """A state that holds nothing for a parameter: training gave it no gradient, so a step leaves it alone."""
    model = tiny_model("llama")
    frozen = model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss(model, DOCUMENTS[2]).backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    saved(tmp_path, optimizer.state_dict())
    patch = TailPatch(load_model(str(tmp_path)), str(tmp_path))
    assert "model.layers.1.mlp.up_proj.weight" not in patch.rules.by_name
    naive = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    naive.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    again = torch.optim.AdamW(naive.parameters())
    again.load_state_dict(optimizer.state_dict())
    loss(naive, DOCUMENTS[0]).backward()
    again.step()
    [after] = patch.measure(DOCUMENTS[0], QUERIES, 1e-2).after
    assert after == pytest.approx([probability(naive, query) for query in QUERIES], abs=1e-6)
    assert torch.equal(naive.model.layers[1].mlp.up_proj.weight, frozen)
