"""Second moments of optimizers that Trainer built: by object identity, and against autograd's own gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import get_parameter_names

from tests.tiny_models import tiny_model
from tests.trackstar.second_moments.training import (
    TrainRun,
    assert_adamw,
    exact,
    examples,
    from_checkpoint,
    gpt_oss,
    live_state,
    train,
)
from trackstar import second_moments
from trackstar.errors import TrackStarError
from trackstar.models import WeightInfo, find_weights
from trackstar.second_moments import Factored

ADAMW_ARCHITECTURES = [
    "gpt2",
    "gpt2-untied",
    "llama",
    "llama-tied",
    "qwen2",
    "qwen3",
    "gemma2",
    "olmo",
    "olmo2",
    "opt",
    "phi",
]


@pytest.mark.parametrize("architecture", ADAMW_ARCHITECTURES)
def test_adamw_of_trainer(trained: Callable[[str, str], TrainRun], architecture: str) -> None:
    trainer, checkpoint = trained(architecture, "adamw_torch_fused")
    sizes = [len(group["params"]) for group in trainer.optimizer.param_groups]
    assert len(sizes) == 2
    assert bool(sizes[1]) == (architecture != "olmo"), "only OLMo has norms without parameters"
    model, weights = from_checkpoint(checkpoint)
    moments = second_moments.load(str(checkpoint), model, weights)
    assert_adamw(moments, trainer.model, trainer.optimizer, weights)
    assert moments.epsilon == 1e-8


@pytest.mark.parametrize("architecture", ["gpt2", "llama-tied"])
def test_adafactor_of_trainer(trained: Callable[[str, str], TrainRun], architecture: str) -> None:
    trainer, checkpoint = trained(architecture, "adafactor")
    model, weights = from_checkpoint(checkpoint)
    moments = second_moments.load(str(checkpoint / "optimizer.pt"), model, weights)
    assert moments.source == "adafactor"
    for weight in weights:
        state = live_state(trainer.model, trainer.optimizer, weight)
        pair = (state["exp_avg_sq_row"], state["exp_avg_sq_col"])
        found = moments.by_weight[weight.name]
        assert isinstance(found, Factored) and found.shape == (weight.outputs, weight.inputs)
        assert torch.equal(found.rows, pair[1] if weight.transposed else pair[0])
        assert torch.equal(found.columns, pair[0] if weight.transposed else pair[1])


def squared_gradients(model: PreTrainedModel, weights: tuple[WeightInfo, ...]) -> dict[str, torch.Tensor]:
    """G ⊙ G [m, n] of the mean loss over `examples()`, by autograd."""
    rows = torch.tensor([example["input_ids"] for example in examples()])
    model.zero_grad()
    model(input_ids=rows, labels=rows).loss.backward()
    gradients = {weight.name: model.get_parameter(weight.name).grad for weight in weights}
    return {w.name: (gradients[w.name].T if w.transposed else gradients[w.name]).square() for w in weights}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("optimizer", ["adamw", "transformers Adafactor", "torch Adafactor"])
def test_after_one_step_the_moments_are_the_squared_gradient(tmp_path: Path, architecture: str, optimizer: str) -> None:
    """Independent of how optimizers keep their state: bias correction, row and column means, orientation."""
    initial = tiny_model(architecture)
    for module in initial.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    weights = find_weights(initial)
    expected = squared_gradients(initial, weights)
    chosen = {
        "adamw": {"optim": "adamw_torch"},
        "transformers Adafactor": {"optim": "adafactor"},
        "torch Adafactor": {"optimizer": (torch.optim.Adafactor, {"lr": 1e-2})},
    }[optimizer]
    _, checkpoint = train(initial.train(), tmp_path, steps=1, max_grad_norm=0.0, **chosen)
    model, weights = from_checkpoint(checkpoint)
    moments = second_moments.load(str(checkpoint), model, weights)
    for weight in weights:
        squares, found = expected[weight.name], moments.by_weight[weight.name]
        if optimizer == "adamw":
            torch.testing.assert_close(exact(found), squares, rtol=1e-3, atol=1e-12)
        else:
            assert isinstance(found, Factored)
            torch.testing.assert_close(found.rows, squares.mean(1), rtol=1e-3, atol=1e-12)
            torch.testing.assert_close(found.columns, squares.mean(0), rtol=1e-3, atol=1e-12)


class EarlyTrainer(Trainer):
    """Groups parameters as transformers up to 4.49 did for models whose norm class it had not registered."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name in get_parameter_names(model, [nn.LayerNorm]) if "bias" not in name]


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "qwen2"])
def test_adamw_of_earlier_trainers(tmp_path: Path, architecture: str) -> None:
    trainer, checkpoint = train(tiny_model(architecture).train(), tmp_path, trainer=EarlyTrainer)
    model, weights = from_checkpoint(checkpoint)
    assert_adamw(second_moments.load(str(checkpoint), model, weights), trainer.model, trainer.optimizer, weights)


def test_vectors_that_decay_and_matrices_that_do_not(tmp_path: Path) -> None:
    trainer, checkpoint = train(gpt_oss(), tmp_path)
    decaying, others = ([p.ndim for p in group["params"]] for group in trainer.optimizer.param_groups)
    assert 1 in decaying and 2 in others
    model, weights = from_checkpoint(checkpoint)
    assert weights
    assert_adamw(second_moments.load(str(checkpoint), model, weights), trainer.model, trainer.optimizer, weights)


def test_frozen_embeddings_leave_one_way_to_place_the_rest(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.get_input_embeddings().requires_grad_(False)
    trainer, checkpoint = train(model.train(), tmp_path)
    loaded, weights = from_checkpoint(checkpoint)
    held = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert held == len(list(loaded.parameters())) - 1
    assert_adamw(second_moments.load(str(checkpoint), loaded, weights), trainer.model, trainer.optimizer, weights)


def test_frozen_norms_leave_the_second_group_empty(tmp_path: Path) -> None:
    model = tiny_model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" not in name)
    trainer, checkpoint = train(model.train(), tmp_path)
    assert not trainer.optimizer.param_groups[1]["params"]
    loaded, weights = from_checkpoint(checkpoint)
    assert_adamw(second_moments.load(str(checkpoint), loaded, weights), trainer.model, trainer.optimizer, weights)


def test_a_frozen_layer_is_an_error_and_never_another_layers_moments(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.layers[0].requires_grad_(False)
    _, checkpoint = train(model.train(), tmp_path)
    loaded, weights = from_checkpoint(checkpoint)
    with pytest.raises(TrackStarError, match=r"cannot tell .* model\.layers\.0\.self_attn\.q_proj\.weight.*frozen"):
        second_moments.load(str(checkpoint), loaded, weights)
