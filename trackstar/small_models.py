"""Small Llamas trained from nothing on a list of texts: a byte-level BPE tokenizer of their own, and AdamW with a cosine
schedule through `transformers.Trainer`, as real models are trained.

At 1.3 M parameters and batches of 64 sentences the Trainer itself takes 1 to 8 % of the time, and 0.2 s a training: too
little for a loop of our own.
"""

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

from trackstar.errors import TrackStarError
from trackstar.models import tokenizer_fingerprint

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"

transformers.logging.disable_progress_bar()  # of files written; how far the training is, is shown here

OnProgress = Callable[[int, int, float], None]
"""Called with the step, the number of steps and the mean loss a token since the last call."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The model's shape and its training; the defaults are the demo's: 1.3 M parameters, two minutes on two cores.

    `warmup_steps` is cut to half of `steps` where those are few. `context_length` is what the checkpoint's
    configuration names as its longest input; training takes longer texts whole, rotary positions know no limit. With
    `precision` "bfloat16" products are in it and weights stay in float32: twice as quick on processors that multiply it.
    """

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
    context_length: int = 128
    precision: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """The settings for an identity or a description.

        Context length and precision are named only where they are others than the defaults, which they were for all models
        made before they were settings: these keep their identity.
        """
        settings = dataclasses.asdict(self)
        for later in ("context_length", "precision"):
            if settings[later] == getattr(TrainSettings, later):
                del settings[later]
        return settings


def train_checkpoint(
    texts: Sequence[str],
    checkpoint: Path,
    settings: TrainSettings,
    tokenizer: PreTrainedTokenizerFast | None = None,
    on_progress: OnProgress | None = None,
    description_file: str = "training.json",
) -> Path:
    """Trains through `transformers.Trainer`; a finished checkpoint of the same texts and settings is kept as it is.

    Args:
        texts: What to train on, in an order that matters for the result.
        checkpoint: Folder to leave the checkpoint in; another one that lies there is replaced when this one is done.
        settings: Shape, training and seed.
        tokenizer: Ready tokenizer; by default one is trained on the texts.
        on_progress: Shows how far it is; by default a bar on a terminal and a line now and then elsewhere.
        description_file: Name of the file, in the checkpoint, of the identity, the settings and what was measured.

    Returns:
        `checkpoint`, with `model.safetensors`, `optimizer.pt`, the tokenizer and the description.
    """
    checkpoint = Path(checkpoint)
    identity = checkpoint_identity(texts, settings, tokenizer)
    if _finished_identity(checkpoint / description_file) == identity:
        return checkpoint

    work = checkpoint.with_name(checkpoint.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    set_seed(settings.seed)
    if tokenizer is None:
        tokenizer = train_tokenizer(texts, settings.vocabulary_size)
    model = LlamaForCausalLM(model_config(settings, tokenizer))
    started = time.perf_counter(), time.process_time()
    with _shown(on_progress) as show:
        loss = fit(model, tokenize(texts, tokenizer), settings, work, tokenizer, show)
    measured = {
        "documents": len(texts),
        "parameters": model.num_parameters(),
        "final_loss": loss,
        "seconds": round(time.perf_counter() - started[0], 1),
        "cpu_seconds": round(time.process_time() - started[1], 1),
    }
    finished = work / f"checkpoint-{settings.steps}"
    description = {"identity": identity, "settings": settings.to_dict(), "measured": measured}
    (finished / description_file).write_text(json.dumps(description, indent=2) + "\n")
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(finished, checkpoint)
    shutil.rmtree(work, ignore_errors=True)
    return checkpoint


def checkpoint_identity(
    texts: Sequence[str], settings: TrainSettings, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Hash of all that a checkpoint is made of: 16 hexadecimal digits."""
    parts: list[Any] = [settings.to_dict(), list(texts)]
    if tokenizer is not None:
        parts.append(tokenizer_fingerprint(tokenizer))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _finished_identity(description: Path) -> str | None:
    """The identity that a finished checkpoint tells; None where there is none."""
    try:
        return str(json.loads(description.read_text())["identity"])
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


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the texts, each ended by the end-of-text token."""
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[*tokens, tokenizer.eos_token_id] for tokens in ids]


def model_config(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """A Llama with tied embeddings for short texts."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.hidden_size // settings.heads,
        max_position_embeddings=settings.context_length,
        initializer_range=settings.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


class _Documents(torch.utils.data.Dataset):
    """Token ids as the Trainer wants them."""

    def __init__(self, documents: Sequence[Sequence[int]]):
        self.examples = [{"input_ids": tokens} for tokens in documents]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Sequence[int]]:
        return self.examples[index]


def _collate(examples: list[dict[str, Sequence[int]]], padding_id: int) -> dict[str, torch.Tensor]:
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


def fit(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    settings: TrainSettings,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_progress: OnProgress = lambda step, steps, loss: None,
) -> float:
    """Trains a model in place.

    Args:
        model: Fresh; its configuration names the padding token.
        documents: Token ids of each, the end-of-text token among them.
        settings: Of the training; those of the shape are not looked at.
        folder: For the Trainer.
        tokenizer: Saved with a checkpoint in `folder/checkpoint-<steps>`; without one nothing is saved.
        on_progress: Called thirty times or at every step, whichever is less.

    Returns:
        The last loss that `on_progress` was told.

    Raises:
        TrackStarError: a precision that there is not.
    """
    if settings.precision not in ("float32", "bfloat16"):
        raise TrackStarError(f"precision {settings.precision!r}: must be float32 or bfloat16")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        train_sampling_strategy="group_by_length",
        save_strategy="steps" if tokenizer is not None else "no",
        save_steps=settings.steps,
        logging_steps=max(settings.steps // 30, 1),
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=settings.precision == "bfloat16",
        dataloader_pin_memory=False,
        seed=settings.seed,
    )
    padding_id = int(model.config.pad_token_id)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_Documents(documents),
        data_collator=lambda examples: _collate(examples, padding_id),
        processing_class=tokenizer,
        callbacks=[_Watch(on_progress)],
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
