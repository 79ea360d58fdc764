"""Moments by name, laid out as the parameters are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_models import tiny_model
from tests.trackstar.second_moments.training import TrainRun, exact, from_checkpoint, live_state, load_gpt2
from trackstar import second_moments
from trackstar.errors import TrackStarError


def test_by_name_exact_is_laid_out_like_the_parameter(tmp_path: Path, trained: Callable[[str, str], TrainRun]) -> None:
    trainer, checkpoint = trained("gpt2", "adamw_torch_fused")
    model, weights = from_checkpoint(checkpoint)
    by_name = {
        name: trainer.optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.999**3)
        for name, parameter in trainer.model.named_parameters()
    }
    save_file(by_name, tmp_path / "v.safetensors", metadata={"epsilon": "1e-6"})
    moments = second_moments.load(str(tmp_path / "v.safetensors"), model, weights)
    reference = second_moments.load(str(checkpoint), model, weights)
    assert moments.source == "safetensors" and moments.epsilon == 1e-6
    for weight in weights:  # c_proj is square: only its values tell which way it lies
        torch.testing.assert_close(
            exact(moments.by_weight[weight.name]), exact(reference.by_weight[weight.name]), rtol=1e-6, atol=0
        )


def test_by_name_factored_is_laid_out_like_the_parameter(
    tmp_path: Path, trained: Callable[[str, str], TrainRun]
) -> None:
    trainer, checkpoint = trained("gpt2", "adafactor")
    model, weights = from_checkpoint(checkpoint)
    by_name = {}
    for weight in weights:
        state = live_state(trainer.model, trainer.optimizer, weight)
        by_name[f"{weight.name}.rows"], by_name[f"{weight.name}.columns"] = (
            state["exp_avg_sq_row"],
            state["exp_avg_sq_col"],
        )
    save_file(by_name, tmp_path / "v.safetensors")
    moments = second_moments.load(str(tmp_path / "v.safetensors"), model, weights)
    assert moments.epsilon == second_moments.DEFAULT_EPSILON
    assert moments.fingerprint == second_moments.load(str(checkpoint), model, weights).fingerprint


def by_name_files() -> dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]]:
    """Ways to spoil a good file, each with the message it has to give."""
    name = "transformer.h.0.mlp.c_fc.weight"

    def two_forms(good: dict) -> None:
        good[f"{name}.rows"] = torch.ones(32)

    def half(good: dict) -> None:
        good[f"{name}.rows"] = good.pop(name).mean(1)

    def sums(good: dict) -> None:
        v = good.pop(name)
        good[f"{name}.rows"], good[f"{name}.columns"] = v.sum(1), v.sum(0)

    def vector(good: dict) -> None:
        good[name] = good[name].reshape(-1)

    return {
        "missing": (lambda good: good.pop(name), rf"holds nothing for {name}; write either"),
        "two forms": (two_forms, rf"holds {name} and {name}\.rows for {name}"),
        "half": (half, rf"holds {name}\.rows for {name}"),
        "sums": (sums, rf"{name}\.rows has mean .* not the sums"),
        "turned": (lambda good: good.update({name: good[name].T.contiguous()}), rf"{name} is 128×32, its .* 32×128"),
        "flat": (vector, rf"{name} has shape 4096; write a matrix"),
    }


@pytest.mark.parametrize("spoil", list(by_name_files()))
def test_by_name_errors(tmp_path: Path, spoil: str) -> None:
    change, message = by_name_files()[spoil]
    model = tiny_model("gpt2")
    good = {name: torch.rand(parameter.shape) for name, parameter in model.named_parameters()}
    save_file(good, tmp_path / "v.safetensors")
    assert load_gpt2(tmp_path / "v.safetensors").source == "safetensors"
    change(good)
    save_file(good, tmp_path / "v.safetensors")
    with pytest.raises(TrackStarError, match=message):
        load_gpt2(tmp_path / "v.safetensors")


def test_by_name_truncated_and_bad_epsilon(tmp_path: Path) -> None:
    good = {name: torch.rand(parameter.shape) for name, parameter in tiny_model("gpt2").named_parameters()}
    path = tmp_path / "v.safetensors"
    for epsilon in ("small", "-1", "nan"):
        save_file(good, path, metadata={"epsilon": epsilon})
        with pytest.raises(TrackStarError, match=r"v\.safetensors: .*(small|epsilon is)"):
            load_gpt2(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrackStarError, match=r"v\.safetensors: cannot be read as second moments"):
        load_gpt2(path)


def test_a_saved_file_can_be_given_as_optimizer_state(tmp_path: Path, trained: Callable[[str, str], TrainRun]) -> None:
    """Its layout is m×n already: GPT-2's square c_proj must not be turned a second time."""
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    moments = load_gpt2(checkpoint)
    second_moments.save(moments, str(tmp_path / "v.safetensors"))
    found = load_gpt2(tmp_path / "v.safetensors")
    assert (found.source, found.epsilon, found.fingerprint) == ("adamw", moments.epsilon, moments.fingerprint)
