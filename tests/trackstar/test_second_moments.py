"""Second moments against optimizers that really trained: by object identity, and against autograd's own gradients."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_parameter_names

from tests.tiny_models import VOCABULARY, tiny_model
from trackstar import second_moments, storage
from trackstar.errors import TrackStarError
from trackstar.models import WeightInfo, find_weights
from trackstar.second_moments import Exact, Factored, Moment, SecondMoments

pytest_plugins = ["tests.gcs"]

TrainRun = tuple[Trainer, Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def examples(count: int = 2) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(2, VOCABULARY, (count, 12), generator=generator).tolist()
    # The first token is nobody's target; Trainer's count of targets would include it for some models.
    return [{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows]


def train(
    model: PreTrainedModel,
    folder: Path,
    steps: int = 3,
    optimizer: tuple[Any, dict] | None = None,
    trainer: type[Trainer] = Trainer,
    **settings: Any,
) -> TrainRun:
    """Trains with `transformers.Trainer`; returns it and its last checkpoint."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=steps,
        per_device_train_batch_size=2,
        weight_decay=0.1,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        **{"learning_rate": 1e-2, **settings},
    )
    run = trainer(model=model, args=arguments, train_dataset=examples(), optimizer_cls_and_kwargs=optimizer)
    run.train()
    return run, folder / f"checkpoint-{steps}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], TrainRun]:
    """(architecture, optimizer) → a finished training run, each done once."""

    @functools.cache
    def run(architecture: str, optim: str) -> TrainRun:
        return train(tiny_model(architecture).train(), tmp_path_factory.mktemp(architecture), optim=optim)

    return run


def from_checkpoint(checkpoint: Path) -> tuple[PreTrainedModel, tuple[WeightInfo, ...]]:
    """As the pipelines load it: frozen throughout."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval().requires_grad_(False)
    return model, find_weights(model)


def live_state(model: nn.Module, optimizer: Any, weight: WeightInfo) -> dict[str, Any]:
    """What the optimizer holds for this very parameter object."""
    return optimizer.state[model.get_parameter(weight.name)]


def exact(moment: Moment) -> torch.Tensor:
    assert isinstance(moment, Exact)
    return moment.values


def assert_adamw(moments: SecondMoments, model: nn.Module, optimizer: Any, weights: tuple[WeightInfo, ...]) -> None:
    assert moments.source == "adamw"
    assert list(moments.by_weight) == [weight.name for weight in weights]
    for weight in weights:
        state = live_state(model, optimizer, weight)
        stored = state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))
        found = exact(moments.by_weight[weight.name])
        assert found.shape == (weight.outputs, weight.inputs)
        torch.testing.assert_close(found, stored.T if weight.transposed else stored, rtol=1e-6, atol=0)
    # Nothing above can pass with two weights of one shape exchanged: no two have the same moments.
    sums = [float(exact(moment).sum()) for moment in moments.by_weight.values()]
    assert len(set(sums)) == len(sums)


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


def gpt_oss() -> PreTrainedModel:
    """Attention sinks are vectors that Trainer decays, biases of its fused experts matrices that it does not."""
    config = AutoConfig.for_model(
        "gpt_oss",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        eos_token_id=1,
        pad_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config)


def test_vectors_that_decay_and_matrices_that_do_not(tmp_path: Path) -> None:
    trainer, checkpoint = train(gpt_oss(), tmp_path)
    decaying, others = ([p.ndim for p in group["params"]] for group in trainer.optimizer.param_groups)
    assert 1 in decaying and 2 in others
    model, weights = from_checkpoint(checkpoint)
    assert weights
    assert_adamw(second_moments.load(str(checkpoint), model, weights), trainer.model, trainer.optimizer, weights)


# Optimizers that no Trainer built.


def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 2) -> None:
    rows = torch.tensor([example["input_ids"] for example in examples()])
    for _ in range(times):
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()


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


# Parameters that were frozen in training.


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


# Files that cannot be used.


@pytest.fixture
def state(trained: Callable[[str, str], TrainRun]) -> dict[str, Any]:
    """A writable state dict of GPT-2 under AdamW."""
    return torch.load(trained("gpt2", "adamw_torch_fused")[1] / "optimizer.pt", weights_only=True)


def load_gpt2(path: Path) -> SecondMoments:
    model = tiny_model("gpt2")
    return second_moments.load(str(path), model, find_weights(model))


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


# Memory.


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


# Moments by name.


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


# The class itself.


def some_moments() -> SecondMoments:
    values = torch.rand(5, 7, generator=torch.Generator().manual_seed(1))
    return SecondMoments("adamw", 1e-7, {"a": Exact(values), "b": Factored(torch.rand(3), torch.rand(4))})


def test_save_and_read(tmp_path: Path) -> None:
    moments = some_moments()
    first, second = str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors")
    second_moments.save(moments, first)
    second_moments.save(dataclasses.replace(moments, by_weight=dict(reversed(moments.by_weight.items()))), second)
    assert Path(first).read_bytes() == Path(second).read_bytes()
    found = second_moments.read(first)
    assert (found.source, found.epsilon, found.fingerprint) == ("adamw", 1e-7, moments.fingerprint)
    assert isinstance(found.by_weight["a"], Exact) and isinstance(found.by_weight["b"], Factored)
    assert found.by_weight["b"].shape == (3, 4)


def test_a_saved_file_can_be_given_as_optimizer_state(tmp_path: Path, trained: Callable[[str, str], TrainRun]) -> None:
    """Its layout is m×n already: GPT-2's square c_proj must not be turned a second time."""
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    moments = load_gpt2(checkpoint)
    second_moments.save(moments, str(tmp_path / "v.safetensors"))
    found = load_gpt2(tmp_path / "v.safetensors")
    assert (found.source, found.epsilon, found.fingerprint) == ("adamw", moments.epsilon, moments.fingerprint)


def test_object_store(tmp_path: Path, gcs: str, trained: Callable[[str, str], TrainRun]) -> None:
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    expected = load_gpt2(checkpoint).fingerprint
    model = tiny_model("gpt2")
    weights = find_weights(model)
    storage.copy(str(checkpoint / "optimizer.pt"), f"{gcs}/run/checkpoint-3/optimizer.pt")
    moments = second_moments.load(f"{gcs}/run/checkpoint-3", model, weights)
    second_moments.save(moments, f"{gcs}/v.safetensors")
    assert moments.fingerprint == second_moments.read(f"{gcs}/v.safetensors").fingerprint == expected
    assert second_moments.load(f"{gcs}/v.safetensors", model, weights).fingerprint == expected
    with pytest.raises(TrackStarError, match=r"gs://.*/run: no such optimizer state"):
        second_moments.load(f"{gcs}/run", model, weights)
    with pytest.raises(TrackStarError, match=r"gs://.*/none\.pt: cannot be read"):
        second_moments.load(f"{gcs}/none.pt", model, weights)


def test_read_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(TrackStarError, match=r"none\.safetensors: no second moments here; run `trackstar fit`"):
        second_moments.read(str(tmp_path / "none.safetensors"))
    metadata = {"trackstar": json.dumps({"contents": "something else"})}
    save_file({"a": torch.ones(2, 2)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(TrackStarError, match=r"other\.safetensors: holds no second moments"):
        second_moments.read(str(tmp_path / "other.safetensors"))


def test_fingerprint_follows_names_values_and_form() -> None:
    moments = some_moments()
    changed = exact(moments.by_weight["a"]).clone()
    changed[4, 6] = torch.nextafter(changed[4, 6], torch.tensor(2.0))
    variants = [
        moments,
        dataclasses.replace(moments, by_weight={**moments.by_weight, "a": Exact(changed)}),
        dataclasses.replace(moments, by_weight={"c": moments.by_weight["a"], "b": moments.by_weight["b"]}),
        dataclasses.replace(moments, by_weight={**moments.by_weight, "a": Exact(changed.reshape(7, 5))}),
        moments.factored(),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert dataclasses.replace(moments).fingerprint == moments.fingerprint


def test_factored_keeps_rank_one_and_means() -> None:
    r, c = torch.rand(6) + 0.1, torch.rand(9) + 0.1
    moments = SecondMoments("estimated", 1e-8, {"w": Exact(torch.outer(r, c)), "f": Factored(r, c)})
    found = moments.factored()
    assert found.by_weight["f"] is moments.by_weight["f"]
    w = found.by_weight["w"]
    assert isinstance(w, Factored)
    torch.testing.assert_close(torch.outer(w.rows, w.columns) / w.rows.mean(), torch.outer(r, c))


def test_select(trained: Callable[[str, str], TrainRun]) -> None:
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    model, weights = from_checkpoint(checkpoint)
    moments = second_moments.load(str(checkpoint), model, weights)
    assert list(moments.select(weights[2:4]).by_weight) == [weight.name for weight in weights[2:4]]
    other = dataclasses.replace(weights[0], name="transformer.h.9.attn.c_attn.weight")
    with pytest.raises(TrackStarError, match=r"none for transformer\.h\.9\.attn\.c_attn\.weight"):
        moments.select([*weights, other])
    turned = dataclasses.replace(weights[0], outputs=weights[0].inputs, inputs=weights[0].outputs)
    with pytest.raises(TrackStarError, match=r"h\.0\.attn\.c_attn\.weight is 32×96, its moments are 96×32"):
        moments.select([turned])


def test_estimated() -> None:
    sums = torch.rand(3, 4, dtype=torch.float64) + 1
    moments = second_moments.estimated({"w": sums}, 8)
    assert moments.source == "estimated" and exact(moments.by_weight["w"]).dtype == torch.float32
    torch.testing.assert_close(exact(moments.by_weight["w"]), (sums / 8).float())
    with pytest.raises(TrackStarError, match="0 examples: the sample is empty"):
        second_moments.estimated({"w": sums}, 0)
    with pytest.raises(TrackStarError, match="8 examples: w is zero throughout"):
        second_moments.estimated({"w": torch.zeros(3, 4)}, 8)
