"""A training checkpoint's optimizer state, told apart parameter by parameter and named.

PyTorch saves optimizer state under numbers: position after position through the parameter groups, in the order in which
the groups were built. `transformers.Trainer` builds two, with and without weight decay, so that the numbers run through
the model twice. This module finds the names again: from the file where it holds them, else by building the groups anew
and holding every shape in the file against the model's. What does not fit, or fits in two ways, is an error, no guess.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trackstar import storage
from trackstar.errors import TrackStarError

Shape: TypeAlias = tuple[int, ...]
Parameters: TypeAlias = list[tuple[str, Shape]]
"""Names and shapes in the model's own order."""

FILE_NAMES = ("optimizer.pt", "optimizer.bin")
"""What Trainer calls its optimizer state; the second one under FSDP with full state dicts."""

BY_NAME = "or give the moments by name in a .safetensors file (docs/formats.md)"
"""The remedy that always works: the end of most messages."""

_WRAPPERS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")


@dataclasses.dataclass(frozen=True)
class ParameterState:
    """What the optimizer keeps for one parameter."""

    state: Mapping[str, Any]
    """Its tensors and counters, for example step, exp_avg, exp_avg_sq; empty where it never got a gradient."""
    group: Mapping[str, Any]
    """The settings of its parameter group, for example betas, eps."""


def find(uri: str) -> str:
    """The state file itself: `uri`, or the one inside it where it is a checkpoint folder.

    Raises:
        TrackStarError: nothing there, or a folder without such a file.
    """
    local = storage.local_path(uri)
    if local.is_file() if local else Path(uri).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return uri
    for name in FILE_NAMES:
        if storage.exists(storage.join(uri, name)):
            return storage.join(uri, name)
    if local is None or not local.is_dir():
        raise TrackStarError(
            f"{uri}: no such optimizer state; give an optimizer.pt, a checkpoint folder or a .safetensors"
        )
    inside = sorted(path.name for path in local.iterdir())
    checkpoints = sorted((name for name in inside if re.fullmatch(r"checkpoint-\d+", name)), key=lambda n: int(n[11:]))
    if checkpoints:
        raise TrackStarError(f"{uri}: holds checkpoints, not one checkpoint; give {storage.join(uri, checkpoints[-1])}")
    sharded = [name for name in inside if re.match(r"global_step\d+$|optimizer_\d|rank\d+-of-", name)]
    if sharded:
        raise TrackStarError(
            f"{uri}: its optimizer state lies in parts ({sharded[0]}), as DeepSpeed, FSDP and XLA write it; merge the "
            f"parts into one file with the tool that wrote them, {BY_NAME}"
        )
    raise TrackStarError(
        f"{uri}: no {' or '.join(FILE_NAMES)} in this folder; was it saved with save_only_model? Give a folder that a "
        f"training run can resume from, {BY_NAME}"
    )


def open_state_dict(path: Path, where: str) -> dict[str, Any]:
    """The optimizer's state dict with its tensors mapped from the file: nothing is read but what is used.

    Args:
        path: Local file written by `torch.save`.
        where: Name of it for messages.

    Raises:
        TrackStarError: unreadable, or not an optimizer's state dict, or one without any state.
    """
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # PyTorch's format before 1.6
    except Exception as error:  # torch.load raises nearly everything on a bad file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrackStarError(
            f"{where}: cannot be read as optimizer state ({reason}); give the optimizer.pt of a finished checkpoint, "
            f"{BY_NAME}"
        ) from error
    for key in ("optimizer", "optimizer_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not {"state", "param_groups"} <= content.keys():
        raise TrackStarError(
            f"{where}: not the state dict of a PyTorch optimizer (no 'state' and 'param_groups'); give the "
            f"optimizer.pt of a checkpoint, {BY_NAME}"
        )
    if not content["state"]:
        raise TrackStarError(
            f"{where}: holds no state: saved before the first step, or by an optimizer that keeps none; give a later "
            f"checkpoint, {BY_NAME}"
        )
    return content


def by_name(
    content: dict[str, Any], model: nn.Module, wanted: Collection[str], where: str
) -> dict[str, ParameterState]:
    """State of the wanted parameters, by the model's own names.

    Names come from the file: FSDP's full state dicts use them as keys, optimizers built from named parameters keep
    `param_names`. Otherwise see `_from_positions`.

    Args:
        content: From `open_state_dict`.
        model: The model the checkpoint holds; whether its parameters require gradients does not matter.
        wanted: Parameter names.
        where: Name of the file for messages.

    Raises:
        TrackStarError: file and model do not belong together, or a wanted parameter is missing or cannot be told from
            another.
    """
    aliases = _aliases(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    named: dict[str, ParameterState] = {}
    groups: list[list[ParameterState]] = []
    for group in content["param_groups"]:
        states = [ParameterState(content["state"].get(key, {}), group) for key in group["params"]]
        names = group.get("param_names") or [key for key in group["params"] if isinstance(key, str)]
        named |= {plain_name(name): state for name, state in zip(names, states, strict=False)}
        groups.append(states)
    if not named:
        return _from_positions(groups, model, wanted, where)
    if len(named) != sum(map(len, groups)):
        raise TrackStarError(
            f"{where}: names {len(named)} of its {sum(map(len, groups))} parameters; give a file that names all, "
            f"{BY_NAME}"
        )
    found = {aliases[name]: state for name, state in named.items() if name in aliases}
    for name, state in found.items():
        shape = _shape(state.state)
        if shape not in (None, shapes[name]):
            raise TrackStarError(
                f"{where}: moments of {name} have shape {format_shape(shape)}, the model's parameter has "
                f"{format_shape(shapes[name])}; give the optimizer state of this very model"
            )
    for name in wanted:
        if name not in found:
            raise TrackStarError(
                f"{where}: holds nothing for {name}, only for {len(named)} other parameters such as {min(named)}; give "
                f"the optimizer state of this very model, trained in full, {BY_NAME}"
            )
    return {name: found[name] for name in wanted}


def plain_name(name: str) -> str:
    """A parameter's name without what FSDP, DDP, torch.compile and activation checkpointing put into it."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def format_shape(shape: Shape | None) -> str:
    """(64, 192) as "64×192"."""
    return "×".join(map(str, shape)) if shape else "unknown" if shape is None else "()"


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every plain name of every parameter, tied weights under each of theirs → the name in `named_parameters`."""
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        plain_name(name): canonical[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _from_positions(
    groups: Sequence[Sequence[ParameterState]], model: nn.Module, wanted: Collection[str], where: str
) -> dict[str, ParameterState]:
    """Names numbered states by building the optimizer's groups again, in every way that `_GROUPINGS` knows.

    A grouping fits where in each group the file's shapes appear among the model's, in the same order. With as many
    parameters in the file as in the model that is one by one. With fewer, some were frozen in training: a parameter is
    known then if there is but one way to place it. All fitting groupings have to agree on the wanted parameters.
    """
    found = [[_shape(state.state) for state in group] for group in groups]
    parameters = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    candidates = [_padded(grouping(model, parameters), len(groups)) for grouping in _GROUPINGS]
    candidates = [candidate for candidate in candidates if len(candidate) == len(groups)]
    fitting = [candidate for candidate in candidates if all(map(_fits, found, candidate))]
    if not fitting:
        raise TrackStarError(_mismatch(found, candidates, parameters, where))
    positions = [_positions(found, candidate) for candidate in fitting]
    result = {}
    for name in wanted:
        places = {position.get(name) for position in positions}
        place = places.pop()
        if places or place is None:
            raise TrackStarError(
                f"{where}: cannot tell which of its {sum(map(len, found))} nameless parameters is {name}, of the "
                f"model's {len(parameters)}: it was frozen in training, or others were, and shapes do not say which. "
                f"Train in full, or build the optimizer from model.named_parameters() so that it keeps names, {BY_NAME}"
            )
        result[name] = groups[place[0]][place[1]]
    return result


def _padded(candidate: list[Parameters], groups: int) -> list[Parameters]:
    """With as many groups as the file, if only empty ones are to add or drop: Trainer keeps a second, empty group."""
    while candidate and not candidate[-1]:
        candidate = candidate[:-1]
    return candidate + [[]] * (groups - len(candidate))


def _first_places(found: Sequence[Shape | None], shapes: Sequence[Shape]) -> list[int] | None:
    """The earliest place of each found shape among `shapes`, order kept; None where they do not all appear."""
    places, start = [], 0
    for shape in found:
        place = next((i for i in range(start, len(shapes)) if shape in (None, shapes[i])), None)
        if place is None:
            return None
        places.append(place)
        start = place + 1
    return places


def _fits(found: Sequence[Shape | None], group: Parameters) -> bool:
    return _first_places(found, [shape for _, shape in group]) is not None


def _positions(found: Sequence[Sequence[Shape | None]], candidate: Sequence[Parameters]) -> dict[str, tuple[int, int]]:
    """Name → (group, index in the group) for the parameters that can stand in one place only."""
    known: dict[str, tuple[int, int]] = {}
    for number, (group_shapes, group) in enumerate(zip(found, candidate, strict=True)):
        shapes = [shape for _, shape in group]
        first = _first_places(group_shapes, shapes)
        reversed_last = _first_places(group_shapes[::-1], shapes[::-1])
        assert first is not None and reversed_last is not None
        last = [len(shapes) - 1 - place for place in reversed_last[::-1]]
        known |= {group[i][0]: (number, k) for k, (i, j) in enumerate(zip(first, last, strict=True)) if i == j}
    return known


def _mismatch(
    found: Sequence[Sequence[Shape | None]],
    candidates: Sequence[Sequence[Parameters]],
    parameters: Parameters,
    where: str,
) -> str:
    """Says in what the file and the model differ, by the grouping that fits best."""
    sizes = [len(group) for group in found]
    remedy = f"give the optimizer state of this very model, {BY_NAME}"
    differences = []
    for candidate in candidates:
        if [len(group) for group in candidate] == sizes:
            flat = zip(itertools.chain(*candidate), itertools.chain(*found), strict=True)
            differences.append(next((i, *pair) for i, pair in enumerate(flat) if pair[1] not in (None, pair[0][1])))
    if differences:
        _, (name, shape), moments = max(differences, key=lambda difference: difference[0])
        return (
            f"{where}: does not belong to this model: {name} is {format_shape(shape)} in the model, its moments are "
            f"{format_shape(moments)}; {remedy}"
        )
    expected = sorted({"+".join(str(len(group)) for group in candidate) for candidate in candidates})
    return (
        f"{where}: does not belong to this model: it holds {sum(sizes)} parameters in groups of "
        f"{'+'.join(map(str, sizes))}, the model has {len(parameters)}"
        + (f" ({' or '.join(expected)})" if expected else "")
        + f"; {remedy}"
    )


def _shape(state: Mapping[str, Any]) -> Shape | None:
    """Shape of the parameter that a state belongs to, or None where the state does not say."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for rows, columns in (("exp_avg_sq_row", "exp_avg_sq_col"), ("row_var", "col_var")):
        if rows in tensors and columns in tensors:
            r, c = tuple(tensors[rows].shape), tuple(tensors[columns].shape)
            return (*r, c[-1]) if rows == "exp_avg_sq_row" else (*r[:-1], c[-1])
    for key in ("exp_avg_sq", "variance", "exp_avg", "momentum_buffer"):
        if key in tensors:
            return tuple(tensors[key].shape)
    return None


_Grouping: TypeAlias = Callable[[nn.Module, Parameters], list[Parameters]]


def _split(parameters: Parameters, first: Collection[str]) -> list[Parameters]:
    return [[p for p in parameters if p[0] in first], [p for p in parameters if p[0] not in first]]


def _trainer(model: nn.Module, parameters: Parameters) -> list[Parameters]:
    """`Trainer.create_optimizer`: what decays, then biases and anything named as a norm."""
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    return _split(parameters, set(_outside_norms(model, patterns)))


def _early_trainer(model: nn.Module, parameters: Parameters) -> list[Parameters]:
    """Earlier transformers: norms by class, of which most RMSNorms were none, so that they decayed (Mistral, Qwen2)."""
    return _split(parameters, {name for name in _outside_norms(model, []) if "bias" not in name})


def _outside_norms(model: nn.Module, patterns: list[str]) -> list[str]:
    """Names of the parameters that are in no LayerNorm and match none of the patterns, as Trainer finds them."""
    # Here, because moments that `fit` saved are read without transformers; whoever has a model has imported it already.
    from transformers.trainer_pt_utils import get_parameter_names

    return get_parameter_names(model, [nn.LayerNorm], patterns)


def _matrices_first(model: nn.Module, parameters: Parameters) -> list[Parameters]:
    """Matrices decay, vectors do not: the usual split of hand-written training loops."""
    return _split(parameters, {name for name, shape in parameters if len(shape) > 1})


def _one_group(model: nn.Module, parameters: Parameters) -> list[Parameters]:
    """`Optimizer(model.parameters())`."""
    return [parameters]


_GROUPINGS: tuple[_Grouping, ...] = (_trainer, _early_trainer, _matrices_first, _one_group)
