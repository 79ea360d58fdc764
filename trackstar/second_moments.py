"""Second moments V of the training gradients: what an optimizer's state says of them, weight by weight and by name.

TrackStar divides a gradient by √V (arXiv 2410.17413, section 3). Adam keeps V elementwise, Adafactor only its row and
column means. Whatever way a parameter is stored, moments here are m outputs × n inputs.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trackstar import local_copies, optimizer_state, tensors
from trackstar.errors import TrackStarError
from trackstar.optimizer_state import BY_NAME, ParameterState, format_shape

if TYPE_CHECKING:
    from trackstar.models import WeightInfo

DEFAULT_EPSILON = 1e-8
"""Adam's; used where no optimizer names one."""

_CONTENTS = "second moments"
_ROWS, _COLUMNS = ".rows", ".columns"


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
    """V of one weight, element by element."""

    values: Tensor
    """float32 [m, n]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.values.shape[0], self.values.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Factored:
    """V of one weight as V ≈ r cᵀ / mean(r): r and c are V's means over its rows and over its columns."""

    rows: Tensor
    """r: float32 [m], each row's mean over the n inputs."""
    columns: Tensor
    """c: float32 [n], each column's mean over the m outputs."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.rows.shape[0], self.columns.shape[0]

    def scales(self) -> tuple[Tensor, Tensor]:
        """The factors of each row [m] and each column [n] that divide by √V: 1/√V = (√mean(r)/√r)(1/√c)ᵀ.

        Zero where a moment is zero: such a row or column never had a gradient.
        """
        return self.rows.mean().sqrt() * _safe_inverse_root(self.rows), _safe_inverse_root(self.columns)


Moment: TypeAlias = Exact | Factored


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoments:
    """V of the attributed weights."""

    source: str
    """Where they come from: "adamw", "adafactor", "safetensors" or "estimated"."""
    epsilon: float
    """ε of G / (√V + ε), for exact moments: the optimizer's own."""
    by_weight: dict[str, Moment]
    """Weight name → V, on the CPU."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over every name and value."""
        digest = hashlib.sha256()
        for name, tensor in sorted(_tensors(self.by_weight).items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().reshape(-1).view("u1").data)
        return digest.hexdigest()[:16]

    def factored(self) -> "SecondMoments":
        """The same with every exact V reduced to its row and column means: dividing then commutes with projecting."""
        return dataclasses.replace(self, by_weight={name: _factored(moment) for name, moment in self.by_weight.items()})

    @property
    def exact_weights(self) -> frozenset[str]:
        """Names of the weights whose V is kept element by element."""
        return frozenset(name for name, moment in self.by_weight.items() if isinstance(moment, Exact))

    def select(self, weights: "Sequence[WeightInfo]") -> "SecondMoments":
        """Only these weights, each of the shape it has to be.

        Raises:
            TrackStarError: a weight without moments or with moments of another shape.
        """
        for weight in weights:
            moment = self.by_weight.get(weight.name)
            if moment is None:
                raise TrackStarError(
                    f"second moments ({self.source}): none for {weight.name}, only for {len(self.by_weight)} other "
                    "weights: another model's? Give this model's optimizer state, or run `trackstar fit` again"
                )
            if moment.shape != (weight.outputs, weight.inputs):
                raise TrackStarError(
                    f"second moments ({self.source}): {weight.name} is {weight.outputs}×{weight.inputs}, its moments "
                    f"are {format_shape(moment.shape)}: another model's? Give this model's optimizer state, or run "
                    "`trackstar fit` again"
                )
        return dataclasses.replace(self, by_weight={weight.name: self.by_weight[weight.name] for weight in weights})


def load(path: str, model: nn.Module, weights: "Sequence[WeightInfo]") -> SecondMoments:
    """Second moments of the attributed weights from what a training run left behind.

    Read are `optimizer.pt` of `transformers.Trainer`, a checkpoint folder with one, and any `torch.save` of the state
    dict of Adam or AdamW (bias-corrected here, V = exp_avg_sq / (1 − β₂^step)) and of transformers' or PyTorch's
    Adafactor; and .safetensors by name: `<weight>` exact, or its means `<weight>.rows` and `<weight>.columns`, laid out
    as the parameter itself is stored (`Conv1D` therefore inputs × outputs) unless `save` wrote the file; epsilon as
    metadata entry "epsilon". The file is mapped; only the attributed weights' moments are read, and copied to float32.

    Args:
        path: Local path or object-store URI.
        model: The model the state belongs to.
        weights: The attributed ones.

    Raises:
        TrackStarError: an unreadable file, one of another model, an optimizer without second moments, or an attributed
            weight without usable moments; the message names file and weight.
    """
    uri = optimizer_state.find(str(path))
    local = local_copies.file(uri)
    if uri.endswith(".safetensors"):
        moments = _read_by_name(str(local), uri, weights)
    else:
        content = optimizer_state.open_state_dict(local, uri)
        states = optimizer_state.by_name(content, model, [weight.name for weight in weights], uri)
        found = {weight.name: _from_state(states[weight.name], weight, uri) for weight in weights}
        exact = [states[name].group for name, moment in found.items() if isinstance(moment, Exact)]
        epsilons = {float(group["eps"]) for group in exact}
        if len(epsilons) > 1:
            raise TrackStarError(
                f"{uri}: its parameter groups have different eps ({', '.join(map(str, sorted(epsilons)))}) and an "
                f"index has one; make them equal, {BY_NAME}"
            )
        moments = SecondMoments(
            "adamw" if exact else "adafactor", epsilons.pop() if epsilons else DEFAULT_EPSILON, found
        )
    moments = moments.select(weights)
    for name, moment in moments.by_weight.items():
        _check(name, moment, uri)
    return moments


def estimated(sums: Mapping[str, Tensor], count: int) -> SecondMoments:
    """Second moments from gradients of a sample: V = Σ G ⊙ G / count.

    Args:
        sums: Weight name → Σ over examples of the squared gradient, [m, n].
        count: Examples in the sums.

    Raises:
        TrackStarError: an empty sample, or a weight whose gradient was zero or not finite throughout.
    """
    where = f"second moments estimated from {count} examples"
    if count < 1:
        raise TrackStarError(f"{where}: the sample is empty; give a corpus with documents, or an optimizer state")
    values = {name: Exact((total.double() / count).to("cpu", torch.float32)) for name, total in sums.items()}
    for name, moment in values.items():
        _check(name, moment, where)
    return SecondMoments("estimated", DEFAULT_EPSILON, {**values})


def save(moments: SecondMoments, uri: str) -> None:
    """Writes a safetensors file: `<weight>` [m, n], or `<weight>.rows` [m] and `<weight>.columns` [n].

    Equal moments give equal bytes.
    """
    metadata = {"contents": _CONTENTS, "source": moments.source, "epsilon": repr(moments.epsilon)}
    tensors.save(uri, _tensors(moments.by_weight), metadata)


def read(uri: str) -> SecondMoments:
    """Reads what `save` wrote, all of it; a local file is mapped.

    Raises:
        TrackStarError: not such a file.
    """
    contents, metadata = tensors.load_contents(uri, _CONTENTS, "second moments")
    names = sorted({key.removesuffix(_ROWS).removesuffix(_COLUMNS) for key in contents})
    by_weight: dict[str, Moment] = {
        name: Exact(contents[name]) if name in contents else Factored(contents[name + _ROWS], contents[name + _COLUMNS])
        for name in names
    }
    return SecondMoments(metadata["source"], float(metadata["epsilon"]), by_weight)


def _from_state(parameter: ParameterState, weight: "WeightInfo", where: str) -> Moment:
    """One weight's V from its optimizer state, copied out of the mapped file, turned to m×n."""
    state, group = parameter.state, parameter.group
    if not state:
        raise TrackStarError(
            f"{where}: holds no moments for {weight.name}: it got no gradient in training. Give a checkpoint in which "
            f"it was trained, {BY_NAME}"
        )
    if "exp_avg_sq" in state and "betas" in group:
        step = float(state.get("step", group.get("step", 0)))  # Apex and DeepSpeed count once a group
        if step < 1:
            raise TrackStarError(f"{where}: {weight.name} has taken no step yet; give a later checkpoint")
        correction = 1 - float(group["betas"][1]) ** step
        stored = state["exp_avg_sq"]
        oriented = stored.T if weight.transposed else stored
        return Exact(_copy(oriented).div_(correction))
    # Both Adafactors' decay is 1 − step^-0.8: zero at the first step, so that no bias is left to correct.
    for row_key, column_key in (("exp_avg_sq_row", "exp_avg_sq_col"), ("row_var", "col_var")):
        if row_key in state and column_key in state:
            rows, columns = _copy(state[row_key].reshape(-1)), _copy(state[column_key].reshape(-1))
            return Factored(columns, rows) if weight.transposed else Factored(rows, columns)
    raise TrackStarError(
        f"{where}: its optimizer keeps {', '.join(sorted(map(str, state)))} for {weight.name}: no second moment of a "
        "kind known here (Adam, AdamW, Adafactor; no 8-bit and no sign optimizers). Leave --optimizer_state out and "
        f"fit estimates them, {BY_NAME}"
    )


def _read_by_name(local: str, where: str, weights: "Sequence[WeightInfo]") -> SecondMoments:
    """The weights' moments from a safetensors file."""
    by_weight: dict[str, Moment] = {}
    try:
        with safe_open(local, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            keys = set(file.keys())
            for weight in weights:
                name = weight.name
                found = sorted(keys & {name, name + _ROWS, name + _COLUMNS})
                if found not in ([name], [name + _COLUMNS, name + _ROWS]):
                    raise TrackStarError(
                        f"{where}: holds {' and '.join(found) or 'nothing'} for {name}; write either {name} or both "
                        f"{name}{_ROWS} and {name}{_COLUMNS} into it"
                    )
                values = [_copy(file.get_tensor(key)) for key in found]
                for key, tensor in zip(found, values, strict=True):
                    if tensor.ndim != (2 if key == name else 1):
                        raise TrackStarError(
                            f"{where}: {key} has shape {format_shape(tuple(tensor.shape))}; write a matrix {name} or "
                            f"vectors {name}{_ROWS} and {name}{_COLUMNS}"
                        )
                by_weight[name] = Exact(values[0]) if len(found) == 1 else Factored(values[1], values[0])
        ours = json.loads(metadata.get("trackstar", "{}"))
        if ours.get("contents") == _CONTENTS:
            return SecondMoments(ours["source"], float(ours["epsilon"]), by_weight)
        epsilon = float(metadata.get("epsilon", DEFAULT_EPSILON))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrackStarError(f"{where}: cannot be read as second moments ({error}); write it again") from error
    if not 0 <= epsilon < math.inf:
        raise TrackStarError(f"{where}: epsilon is {epsilon} in its metadata; write a number from 0 on")
    return SecondMoments("safetensors", epsilon, {w.name: _turned(by_weight[w.name], w) for w in weights})


def _turned(moment: Moment, weight: "WeightInfo") -> Moment:
    """Moments laid out like the stored parameter, as m×n."""
    if not weight.transposed:
        return moment
    if isinstance(moment, Exact):
        return Exact(_copy(moment.values.T))
    return Factored(moment.columns, moment.rows)


def _safe_inverse_root(values: Tensor) -> Tensor:
    """1/√v; zero where v is zero."""
    return torch.where(values > 0, values.clamp_min(torch.finfo(torch.float32).tiny).rsqrt(), torch.zeros_like(values))


def _copy(tensor: Tensor) -> Tensor:
    """float32, contiguous, in memory of its own: the file may be unmapped, changed or removed afterwards."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _factored(moment: Moment) -> Factored:
    if isinstance(moment, Factored):
        return moment
    # Summed in float64: the same to the last bit of float32 whatever the number of threads.
    rows = moment.values.mean(dim=1, dtype=torch.float64).float()
    columns = moment.values.mean(dim=0, dtype=torch.float64).float()
    return Factored(rows, columns)


def _tensors(by_weight: Mapping[str, Moment]) -> dict[str, Tensor]:
    """Name in the file → tensor."""
    named: dict[str, Tensor] = {}
    for name, moment in by_weight.items():
        if isinstance(moment, Exact):
            named[name] = moment.values
        else:
            named[name + _ROWS], named[name + _COLUMNS] = moment.rows, moment.columns
    return named


def _check(name: str, moment: Moment, where: str) -> None:
    """Moments that a gradient can be divided by: finite, not negative, not all zero; factors that belong together.

    Raises:
        TrackStarError: they are not.
    """
    for key, tensor in _tensors({name: moment}).items():
        low, high = (float(value) for value in torch.aminmax(tensor))
        if not (low >= 0 and high < float("inf")):
            raise TrackStarError(
                f"{where}: {key} has values from {low} to {high}; second moments are finite and not negative: did the "
                "training diverge? Give a sound checkpoint"
            )
        if high == 0:
            raise TrackStarError(
                f"{where}: {key} is zero throughout: this weight got no gradient. Give moments from training, or from "
                "a sample, that reaches it"
            )
    if isinstance(moment, Factored):
        mean_rows, mean_columns = float(moment.rows.double().mean()), float(moment.columns.double().mean())
        if abs(mean_rows - mean_columns) > 0.1 * max(mean_rows, mean_columns):
            raise TrackStarError(
                f"{where}: {name}{_ROWS} has mean {mean_rows:.3g}, {name}{_COLUMNS} {mean_columns:.3g}; both have to "
                "be V's mean: write the means over V's rows and columns, not the sums"
            )
