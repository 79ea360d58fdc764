"""Trains the demo's model: its own byte-level BPE tokenizer and a small Llama, with AdamW through `transformers.Trainer`."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from trackstar.demo.corpus import read_texts

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SETTINGS_FILE = "demo.json"

transformers.logging.disable_progress_bar()  # of files written; how far the training is, is shown here

OnProgress = Callable[[int, int, float], None]
"""Called with the step, the number of steps and the mean loss a token since the last call."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The model's shape and its training; the defaults take about two minutes on two cores."""

    vocabulary_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    steps: int = 1350
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    adam_beta2: float = 0.99
    initializer_range: float = 0.04
    seed: int = 0


def train(folder: Path, settings: TrainSettings | None = None, on_progress: OnProgress | None = None) -> Path:
    """Trains on the shards in `folder/corpus`; a finished checkpoint of the same corpus and settings is kept as it is.

    Args:
        folder: What `write_corpus` wrote to.
        settings: Shape and training.
        on_progress: Shows how far it is; by default a bar on a terminal and a line now and then elsewhere.

    Returns:
        `folder/model`: a checkpoint of `transformers.Trainer`, with `model.safetensors`, `optimizer.pt`, the tokenizer
        and, in `demo.json`, the settings and what was measured.
    """
    settings = settings or TrainSettings()
    folder = Path(folder)
    texts = read_texts(folder)
    identity = hashlib.sha256(json.dumps([dataclasses.asdict(settings), texts]).encode()).hexdigest()[:16]
    checkpoint = folder / "model"
    if _identity(checkpoint) == identity:
        return checkpoint

    work = folder / "model.partial"
    shutil.rmtree(work, ignore_errors=True)
    set_seed(settings.seed)
    tokenizer = train_tokenizer(texts, settings.vocabulary_size)
    model = LlamaForCausalLM(model_config(settings, tokenizer))
    started = time.perf_counter(), time.process_time()
    with _shown(on_progress) as show:
        loss = _fit(model, tokenizer, texts, settings, work, show)
    measured = {
        "documents": len(texts),
        "parameters": model.num_parameters(),
        "final_loss": loss,
        "seconds": round(time.perf_counter() - started[0], 1),
        "cpu_seconds": round(time.process_time() - started[1], 1),
    }
    finished = work / f"checkpoint-{settings.steps}"
    description = {"identity": identity, "settings": dataclasses.asdict(settings), "measured": measured}
    (finished / SETTINGS_FILE).write_text(json.dumps(description, indent=2) + "\n")
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(finished, checkpoint)
    shutil.rmtree(work, ignore_errors=True)
    return checkpoint


def _identity(checkpoint: Path) -> str | None:
    """Hash of the settings and the texts that a finished checkpoint was made of; None where there is none."""
    try:
        return str(json.loads((checkpoint / SETTINGS_FILE).read_text())["identity"])
    except (OSError, ValueError, KeyError):
        return None


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be encoded, and decoding gives it back byte by byte."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=PADDING, clean_up_tokenization_spaces=False
    )


def model_config(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """A Llama with tied embeddings for short sentences."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.hidden_size // settings.heads,
        max_position_embeddings=128,
        initializer_range=settings.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


class _Sentences(torch.utils.data.Dataset):
    """Token ids of the texts, each ended by the end-of-text token."""

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase):
        ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        self.examples = [{"input_ids": [*tokens, tokenizer.eos_token_id]} for tokens in ids]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.examples[index]


def _collate(examples: list[dict[str, list[int]]], padding_id: int) -> dict[str, torch.Tensor]:
    """Pads to the longest of the batch; padding is neither attended to nor predicted."""
    length = max(len(example["input_ids"]) for example in examples)
    input_ids = torch.full((len(examples), length), padding_id)  # [B, T]
    for row, example in enumerate(examples):
        input_ids[row, : len(example["input_ids"])] = torch.tensor(example["input_ids"])
    attended = input_ids != padding_id
    return {
        "input_ids": input_ids,
        "attention_mask": attended.long(),
        "labels": input_ids.masked_fill(~attended, -100),
    }


class _Watch(TrainerCallback):
    """Passes the Trainer's progress on."""

    def __init__(self, show: OnProgress):
        self.show = show

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.show(state.global_step, state.max_steps, float(logs["loss"]))


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: TrainSettings,
    work: Path,
    show: OnProgress,
) -> float:
    """Trains; the checkpoint lies in `work/checkpoint-<steps>`. Returns the last logged loss."""
    every = max(settings.steps // 30, 1)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        train_sampling_strategy="group_by_length",
        save_strategy="steps",
        save_steps=settings.steps,
        logging_steps=every,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=settings.seed,
    )
    padding_id = int(tokenizer.pad_token_id)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_Sentences(texts, tokenizer),
        data_collator=lambda examples: _collate(examples, padding_id),
        processing_class=tokenizer,
        callbacks=[_Watch(show)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1])


@contextmanager
def _shown(on_progress: OnProgress | None) -> Iterator[OnProgress]:
    """The caller's own display; else a bar on a terminal; else ten lines on stderr."""
    if on_progress is not None:
        yield on_progress
        return
    if sys.stderr.isatty():
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, loss {task.fields[loss]:.3f},"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            task = progress.add_task("training", loss=float("nan"))
            yield lambda step, steps, loss: progress.update(task, completed=step, total=steps, loss=loss)
        return
    last = 0.0

    def line(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if step / steps - last >= 0.1 or step == steps:
            last = step / steps
            print(f"training: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True)

    yield line
