"""Training runs that leave an optimizer's state behind, and how it is held against what is read from their files."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from tests.tiny_models import VOCABULARY, tiny_model
from trackstar import second_moments
from trackstar.models import WeightInfo, find_weights
from trackstar.second_moments import Exact, Moment, SecondMoments

TrainRun = tuple[Trainer, Path]


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


def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 2) -> None:
    rows = torch.tensor([example["input_ids"] for example in examples()])
    for _ in range(times):
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()


def load_gpt2(path: Path) -> SecondMoments:
    model = tiny_model("gpt2")
    return second_moments.load(str(path), model, find_weights(model))
