"""Files that cannot be used, and what is read and kept of those that can."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.tiny_models import tiny_model
from tests.trackstar.second_moments.training import TrainRun, load_gpt2, step, train
from trackstar import second_moments
from trackstar.errors import TrackStarError
from trackstar.models import find_weights


def test_missing_and_wrong_folders(tmp_path: Path, trained: Callable[[str, str], TrainRun]) -> None:
    with pytest.raises(TrackStarError, match=r"nowhere: no such optimizer state"):
        load_gpt2(tmp_path / "nowhere")
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    with pytest.raises(TrackStarError, match=r"checkpoints, not one checkpoint; give .*checkpoint-3$"):
        load_gpt2(checkpoint.parent)
    with pytest.raises(TrackStarError, match=r"no optimizer.pt or optimizer.bin in this folder"):
        load_gpt2(tmp_path)
    (tmp_path / "global_step12").mkdir()
    with pytest.raises(TrackStarError, match=r"lies in parts \(global_step12\)"):
        load_gpt2(tmp_path)


def test_unreadable_files(tmp_path: Path, trained: Callable[[str, str], TrainRun]) -> None:
    whole = (trained("gpt2", "adamw_torch_fused")[1] / "optimizer.pt").read_bytes()
    (tmp_path / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrackStarError, match=r"optimizer\.pt: cannot be read as optimizer state \(.+\)"):
        load_gpt2(tmp_path)
    torch.save({"weights": torch.ones(2)}, tmp_path / "optimizer.pt")
    with pytest.raises(TrackStarError, match=r"not the state dict of a PyTorch optimizer"):
        load_gpt2(tmp_path)
    torch.save({"state": Path("."), "param_groups": []}, tmp_path / "optimizer.pt")  # weights_only refuses it
    with pytest.raises(TrackStarError, match=r"cannot be read as optimizer state \(.*[Ww]eights"):
        load_gpt2(tmp_path)


def test_old_format_without_mapping(tmp_path: Path, state: dict[str, Any]) -> None:
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(state, tmp_path / "new.pt")
    assert load_gpt2(tmp_path / "old.pt").fingerprint == load_gpt2(tmp_path / "new.pt").fingerprint


def test_another_models_state(trained: Callable[[str, str], TrainRun]) -> None:
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    other = tiny_model("llama")
    with pytest.raises(TrackStarError, match=r"optimizer\.pt: does not belong to this model: it holds \d+ parameters"):
        second_moments.load(str(checkpoint), other, find_weights(other))
    wider = tiny_model("gpt2")
    wider.transformer.wpe = nn.Embedding(64, 32)
    with pytest.raises(TrackStarError, match=r"transformer\.wpe\.weight is 64×32 in the model, its moments are 128×32"):
        second_moments.load(str(checkpoint), wider, find_weights(wider))


@pytest.mark.parametrize("optim", ["sgd", "adagrad", "rmsprop"])
def test_optimizers_without_known_second_moments(tmp_path: Path, optim: str) -> None:
    _, checkpoint = train(tiny_model("gpt2").train(), tmp_path, steps=1, optim=optim)
    with pytest.raises(
        TrackStarError, match=r"optimizer\.pt: (holds no state|its optimizer keeps .* for transformer\.h)"
    ):
        load_gpt2(checkpoint)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"c_attn\.weight has values from nan .*diverge"),
        (float("inf"), r"c_attn\.weight has values from .* to inf"),
        (-1.0, r"c_attn\.weight has values from -"),
        (None, r"c_attn\.weight is zero throughout"),
    ],
)
def test_values_that_no_gradient_can_be_divided_by(
    tmp_path: Path, state: dict[str, Any], value: float | None, message: str
) -> None:
    names = [name for name, _ in tiny_model("gpt2").named_parameters()]
    decaying = [name for name in names if "ln_" not in name and "bias" not in name]
    number = decaying.index("transformer.h.1.attn.c_attn.weight")
    if value is None:
        state["state"][number]["exp_avg_sq"].zero_()
    else:
        state["state"][number]["exp_avg_sq"][3, 4] = value
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(TrackStarError, match=r"optimizer\.pt: transformer\.h\.1\.attn\." + message):
        load_gpt2(tmp_path)


def test_no_step_taken_and_unequal_epsilons(tmp_path: Path, state: dict[str, Any]) -> None:
    state["param_groups"][1]["eps"] = 1e-3  # vectors only: nothing attributed is in it
    torch.save(state, tmp_path / "optimizer.pt")
    assert load_gpt2(tmp_path).epsilon == 1e-8
    for entry in state["state"].values():
        entry["step"].zero_()
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(TrackStarError, match=r"c_attn\.weight has taken no step"):
        load_gpt2(tmp_path)
    model = tiny_model("llama")
    halves = [p for p in model.parameters() if p.shape[0] == 56], [p for p in model.parameters() if p.shape[0] != 56]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {"params": [(names[id(parameter)], parameter) for parameter in half], "eps": 10.0**-i}
        for i, half in enumerate(halves, 6)
    ]
    optimizer = torch.optim.AdamW(groups)
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(TrackStarError, match=r"different eps \(1e-07, 1e-06\)"):
        second_moments.load(str(tmp_path), model, find_weights(model))


def anonymous_bytes() -> int:
    """Resident memory of this process that is not a mapped file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    from trackstar import optimizer_state

    model = tiny_model("gpt2")
    model.resize_token_embeddings(400_000, mean_resizing=False)  # 51 MB, and as much for each of its moments
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer, times=1)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    weights = find_weights(model)
    before = anonymous_bytes()
    content = optimizer_state.open_state_dict(tmp_path / "optimizer.pt", "here")
    moments = second_moments.load(str(tmp_path), model, weights)
    assert anonymous_bytes() - before < 30_000_000
    assert content["state"] and len(moments.by_weight) == len(weights)


@pytest.mark.parametrize("kind", ["adamw_torch_fused", "adafactor", "safetensors"])
def test_nothing_stays_mapped(tmp_path: Path, trained: Callable[[str, str], TrainRun], kind: str) -> None:
    """The next checkpoint may overwrite the file."""
    path = tmp_path / f"v.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file({name: torch.rand(value.shape) for name, value in tiny_model("gpt2").named_parameters()}, path)
    else:
        path.write_bytes((trained("gpt2", kind)[1] / "optimizer.pt").read_bytes())
    moments = load_gpt2(path)
    fingerprint = moments.fingerprint
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert dataclasses.replace(moments).fingerprint == fingerprint
