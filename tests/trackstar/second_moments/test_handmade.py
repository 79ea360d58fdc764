"""Second moments of optimizers that no Trainer built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_models import tiny_model
from tests.trackstar.second_moments.training import assert_adamw, gpt_oss, step
from trackstar import second_moments
from trackstar.errors import TrackStarError
from trackstar.models import find_weights


def matrices_and_vectors(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def handmade(model: nn.Module) -> dict[str, list]:
    named = list(model.named_parameters())
    compiled = torch.compile(model, backend="eager")
    return {
        "one group": list(model.parameters()),
        "matrices and vectors": matrices_and_vectors(model),
        "named, any order": named[::-1],
        "named, compiled": list(compiled.named_parameters()),
        "named, in DDP": [(f"module.{name}", parameter) for name, parameter in named],
    }


@pytest.mark.parametrize("kind", list(handmade(nn.Linear(1, 1))))
def test_handmade_optimizers(tmp_path: Path, kind: str) -> None:
    model = tiny_model("gpt2")
    optimizer = torch.optim.AdamW(handmade(model)[kind], eps=1e-6)
    step(model, optimizer)
    state = optimizer.state_dict()
    assert ("param_names" in state["param_groups"][0]) == kind.startswith("named")
    wrapped = {"one group": {"optimizer": state}, "named, compiled": {"optimizer_state_dict": state, "epoch": 1}}
    torch.save(wrapped.get(kind, state), tmp_path / "state.pth")
    weights = find_weights(model)
    moments = second_moments.load(str(tmp_path / "state.pth"), tiny_model("gpt2"), weights)
    assert_adamw(moments, model, optimizer, weights)
    assert moments.epsilon == 1e-6


def test_matrices_and_vectors_where_trainer_groups_otherwise(tmp_path: Path) -> None:
    model = gpt_oss()
    optimizer = torch.optim.AdamW(matrices_and_vectors(model))
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    weights = find_weights(model)
    assert_adamw(second_moments.load(str(tmp_path), gpt_oss(), weights), model, optimizer, weights)


def test_the_models_own_wrapper_does_not_matter(tmp_path: Path) -> None:
    model = tiny_model("llama")
    optimizer = torch.optim.AdamW(model.named_parameters())
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    compiled = torch.compile(model, backend="eager")
    weights = find_weights(compiled)
    assert weights[0].name.startswith("_orig_mod.")
    moments = second_moments.load(str(tmp_path), compiled, weights)
    assert_adamw(moments, compiled, optimizer, weights)


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("version", [1, 2])
def test_fsdp_full_state(tmp_path: Path, version: int) -> None:
    """State keyed by name, as FSDP gathers it and Accelerate writes it into optimizer.bin."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model = tiny_model("gpt2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        if version == 1:
            sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
            optimizer = torch.optim.AdamW(sharded.parameters())
            step(sharded, optimizer)
            state = FullyShardedDataParallel.optim_state_dict(sharded, optimizer)
        else:
            mesh = init_device_mesh("cpu", (1,))
            for layer in model.transformer.h:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            optimizer = torch.optim.AdamW(model.parameters())
            step(model, optimizer)
            state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    finally:
        torch.distributed.destroy_process_group()
    torch.save(state, tmp_path / "optimizer.bin")
    reference = tiny_model("gpt2")
    plain = torch.optim.AdamW(reference.parameters())
    step(reference, plain)
    weights = find_weights(reference)
    assert_adamw(second_moments.load(str(tmp_path), tiny_model("gpt2"), weights), reference, plain, weights)


def test_a_frozen_layer_in_a_file_with_names_is_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    rest = [(name, parameter) for name, parameter in model.named_parameters() if "layers.1.mlp" not in name]
    optimizer = torch.optim.AdamW(rest)
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(TrackStarError, match=r"holds nothing for model\.layers\.1\.mlp\.gate_proj\.weight"):
        second_moments.load(str(tmp_path), model, find_weights(model))


def test_a_weight_without_gradient_is_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    optimizer = torch.optim.AdamW(model.parameters())
    model.model.layers[2].mlp.up_proj.requires_grad_(False)
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    weights = find_weights(model)
    with pytest.raises(TrackStarError, match=r"no moments for model\.layers\.2\.mlp\.up_proj\.weight: it got no grad"):
        second_moments.load(str(tmp_path), model, weights)
    others = tuple(weight for weight in weights if "2.mlp.up_proj" not in weight.name)
    assert_adamw(second_moments.load(str(tmp_path), model, others), model, optimizer, others)
