"""Load a causal language model, find the weights to attribute, lay them out in blocks, and say what is covered.

Attributed are the attention and MLP matrices of the decoder layers (`nn.Linear` and transformers' `Conv1D`): not
embeddings, LM head, norms or biases (arXiv 2410.17413, section 3).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from trackstar import local_copies
from trackstar.errors import TrackStarError

Kind = Literal["attention", "mlp"]

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_FINGERPRINT_SAMPLES = 4096


@dataclasses.dataclass(frozen=True)
class WeightInfo:
    """One attributed weight matrix W_i, seen as m outputs × n inputs whatever way it is stored."""

    name: str
    """Name of the parameter, for example "transformer.h.0.attn.c_attn.weight"."""
    module: str
    """Name of the module that holds it."""
    outputs: int
    """m."""
    inputs: int
    """n."""
    transposed: bool
    """Whether the parameter is stored n×m (`Conv1D`)."""
    kind: Kind
    layer: int


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Which share of the model the encodings see."""

    attributed: int
    """Parameters in attributed weights."""
    total: int
    """Parameters outside embeddings and LM head."""
    left_out: tuple[str, ...]
    """Matrices outside embeddings and LM head that cannot be attributed, with the reason."""
    chosen: str = "all"
    """Which of those that can be are."""

    @property
    def share(self) -> float:
        """Attributed share of the non-embedding parameters."""
        return self.attributed / self.total if self.total else 0.0

    def describe(self) -> str:
        """One line, plus one for each matrix that is left out (the first ten)."""
        which = "" if self.chosen == "all" else f"{self.chosen} (--attributed), "
        lines = [
            f"attributed: {which}{self.attributed:,} of {self.total:,} non-embedding parameters ({self.share:.1%})"
        ]
        lines += [f"  left out: {line}" for line in self.left_out[:10]]
        if len(self.left_out) > 10:
            lines.append(f"  and {len(self.left_out) - 10} more")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Which block each weight's projected gradient is added to."""

    names: tuple[str, ...]
    """One readable name a block."""
    block_of: dict[str, int]
    """Weight name to block number."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A frozen model ready for attribution."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    weights: tuple[WeightInfo, ...]
    coverage: Coverage
    fingerprint: str
    tokenizer_fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def dtype_name(self) -> str:
        """ "float32" or "bfloat16"."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def vocabulary_size(self) -> int:
        """Rows of the token embedding."""
        return embedding_rows(self.model)

    @property
    def context_length(self) -> int | None:
        """Longest input that the model's configuration names, if it names one."""
        return context_length(self.model.config)


def context_length(config: PretrainedConfig) -> int | None:
    """Longest input that a model's configuration names, if it names one."""
    of_text = config.get_text_config()
    return getattr(of_text, "max_position_embeddings", None) or getattr(of_text, "n_positions", None)


def find_weights(model: nn.Module) -> tuple[WeightInfo, ...]:
    """All attributed weights in the model's own order; a weight shared by several modules once."""
    heads = {id(module) for module in _embedding_modules(model)}
    parameters = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    found: dict[str, WeightInfo] = {}
    for module_name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or id(module) in heads:
            continue
        layer = _LAYER.search(module_name + ".")
        name = parameters.get(id(module.weight))
        if layer is None or name is None or name in found:
            continue
        transposed = isinstance(module, Conv1D)
        rows, columns = module.weight.shape
        outputs, inputs = (columns, rows) if transposed else (rows, columns)
        inside_layer = module_name[layer.end() - 1 :]
        kind: Kind = "attention" if _ATTENTION.search(inside_layer) else "mlp"
        found[name] = WeightInfo(name, module_name, outputs, inputs, transposed, kind, int(layer.group(1)))
    return tuple(found.values())


def measure_coverage(model: nn.Module, weights: Sequence[WeightInfo]) -> Coverage:
    """Compares the attributed weights with all parameters outside embeddings and LM head."""
    embeddings = {id(parameter) for module in _embedding_modules(model) for parameter in module.parameters()}
    attributed = {weight.name for weight in weights}
    covered, total, left_out = 0, 0, []
    for name, parameter in model.named_parameters():
        if id(parameter) in embeddings:
            continue
        total += parameter.numel()
        if name in attributed:
            covered += parameter.numel()
        elif parameter.ndim >= 2:
            reason = "not a plain Linear or Conv1D" if _LAYER.search(name) else "outside the layers"
            left_out.append(f"{name} {tuple(parameter.shape)}: {reason}")
    return Coverage(covered, total, tuple(left_out))


def block_layout(weights: Sequence[WeightInfo], layout: str, layer_groups: int) -> BlockLayout:
    """Blocks of the encoding.

    "blocks": the layers in `layer_groups` contiguous groups (fewer where the model has fewer layers), attention and MLP
    apart (arXiv 2410.17413, section 3). "weights": every weight by itself.
    """
    if layout == "weights":
        return BlockLayout(
            tuple(weight.name for weight in weights), {weight.name: i for i, weight in enumerate(weights)}
        )
    layers = sorted({weight.layer for weight in weights})
    groups = min(layer_groups, len(layers))
    rank = {layer: i for i, layer in enumerate(layers)}
    keys = {weight.name: (rank[weight.layer] * groups // len(layers), weight.kind) for weight in weights}
    blocks = {key: i for i, key in enumerate(sorted(set(keys.values())))}
    names = []
    for group, kind in blocks:
        members = [layer for layer in layers if rank[layer] * groups // len(layers) == group]
        names.append(f"layers {members[0]}-{members[-1]} {kind}")
    return BlockLayout(tuple(names), {name: blocks[key] for name, key in keys.items()})


def load_model(
    path: str,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    allow_low_coverage: bool = False,
) -> LoadedModel:
    """Loads a checkpoint folder (or hub name) with its tokenizer, frozen, in evaluation mode.

    Args:
        path: What `AutoModelForCausalLM.from_pretrained` takes, or a checkpoint folder in an object store, of which this
            machine keeps a copy (`local_copies`).
        dtype: "float32" or "bfloat16".
        device: Where to put it.
        allow_low_coverage: Go on where less than half of the non-embedding parameters are attributed.

    Raises:
        TrackStarError: no such checkpoint, no weight to attribute, or too low a coverage.
    """
    local = local_copies.checkpoint(path)
    try:
        config = AutoConfig.from_pretrained(local)
        model = AutoModelForCausalLM.from_pretrained(local, config=config, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise TrackStarError(f"{path}: cannot load a causal language model from here: {_first_line(error)}") from error
    model = model.to(torch.device(device)).eval().requires_grad_(False)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(local)
    if tokenizer is not None and len(tokenizer) > embedding_rows(model):
        raise TrackStarError(
            f"{path}: its tokenizer has {len(tokenizer):,} tokens and its model embeds only "
            f"{embedding_rows(model):,}: they do not belong together"
        )
    return prepare_model(model, tokenizer, allow_low_coverage)


def prepare_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, allow_low_coverage: bool = False
) -> LoadedModel:
    """Makes a `LoadedModel` of a model that is already in memory; freezes it.

    Raises:
        TrackStarError: no weight to attribute, or too low a coverage.
    """
    model.eval().requires_grad_(False)
    weights = find_weights(model)
    coverage = measure_coverage(model, weights)
    if not weights:
        raise TrackStarError(f"{type(model).__name__}: no Linear or Conv1D matrix found inside numbered layers")
    if coverage.share < 0.5 and not allow_low_coverage:
        raise TrackStarError(
            f"{type(model).__name__}: only {coverage.describe()}\n"
            "Encodings would miss most of the model; --allow_low_coverage goes on all the same."
        )
    return LoadedModel(model, tokenizer, weights, coverage, model_fingerprint(model), tokenizer_fingerprint(tokenizer))


def model_fingerprint(model: nn.Module) -> str:
    """Hash over every parameter's name, shape, type and up to 4,096 evenly spaced values (any checkpoint format)."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // _FINGERPRINT_SAMPLES)
        sample = flat[::step].to(device="cpu", dtype=torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Hash of the tokenizer's rules and vocabulary; "none" without one."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)
        rules.pop("truncation", None)
    else:
        rules = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def embedding_rows(model: PreTrainedModel) -> int:
    """Rows of the token embedding."""
    return next(model.get_input_embeddings().parameters()).shape[0]


def load_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint folder; None where it has none.

    Raises:
        TrackStarError: it has one that cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        folder = Path(path)
        if folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
            return None  # a corpus of token ids needs none
        raise TrackStarError(f"{path}: cannot load its tokenizer: {_first_line(error)}") from error


def _embedding_modules(model: nn.Module) -> list[nn.Module]:
    modules: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, getter)() if hasattr(model, getter) else None
        if module is not None:
            modules.append(module)
    return modules


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
