"""One step of the saved optimizer on one example: where the parameters go, as a direction that a learning rate scales.

For every rule here θ' = θ − rate · u, where u depends on the gradient, the optimizer's state and θ, and not on the rate. So
one gradient serves any number of rates, and ∇p · (−u) is the exact slope of a probability at rate 0.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from trackstar import local_copies, optimizer_state
from trackstar.errors import TrackStarError
from trackstar.optimizer_state import ParameterState

StepKind = Literal["auto", "adamw", "adafactor", "sgd", "normalised"]
"""auto: the rule of the optimizer whose state is given."""
STEP_KINDS: tuple[str, ...] = get_args(StepKind)

SUPPORTED = "known are Adam and AdamW of PyTorch and Adafactor of transformers"
_ADAFACTOR = ("exp_avg_sq_row", "exp_avg_sq_col")


class Rule(Protocol):
    """How one parameter moves."""

    def direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        """u of θ' = θ − rate · u, of the parameter's shape; `gradient` may be overwritten, `parameter` is not."""


@dataclasses.dataclass(frozen=True)
class StepRules:
    """The rules of all parameters that take part in a step."""

    kind: str
    """ "adamw", "adafactor", "sgd" or "normalised"."""
    by_name: Mapping[str, Rule]
    """Parameter name → its rule; what training never moved is not in it."""
    steps: int | None = None
    """Steps that the optimizer had taken; None without a state."""
    saved_rate: float | None = None
    """The learning rate that the state was saved with, the largest of its groups; None where it holds none."""
    first_rate: float | None = None
    """The rate that the schedule is relative to, usually its peak; None where the state does not say."""

    @property
    def has_drift(self) -> bool:
        """Whether parameters move without a gradient: by momentum and weight decay."""
        return self.kind in ("adamw", "adafactor")


@dataclasses.dataclass(frozen=True)
class Sgd:
    """u = g."""

    def direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        return gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Normalised:
    """u = g / (√V + ε): the correction that encodings get, with no momentum and no weight decay.

    Args:
        denominator: √V + ε, V bias-corrected.
    """

    denominator: Tensor

    def direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        return gradient.div_(self.denominator)


@dataclasses.dataclass(frozen=True, eq=False)
class Adam:
    """The next step of Adam or AdamW, as `torch.optim` takes it (Kingma & Ba 2015; Loshchilov & Hutter 2019).

    m' = β₁ m + (1−β₁) g, v' = β₂ v + (1−β₂) g², u = (m' / (1−β₁ᵗ)) / (√(v' / (1−β₂ᵗ)) + ε) + λθ, t one above the state's.

    Args:
        exp_avg: m.
        exp_avg_sq: v.
        step: t.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ.
        decoupled: Whether λθ stands in u (AdamW) or is added to g (Adam).
        share: This parameter's learning rate as a share of the largest.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    share: float

    def direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        first, second = self.betas
        if self.weight_decay and not self.decoupled:
            gradient = gradient.add_(parameter, alpha=self.weight_decay)
        denominator = self.exp_avg_sq.mul(second).addcmul_(gradient, gradient, value=1 - second)
        denominator.sqrt_().div_(math.sqrt(1 - second**self.step)).add_(self.eps)
        u = gradient.mul_(1 - first).add_(self.exp_avg, alpha=first).div_(denominator).div_(1 - first**self.step)
        if self.weight_decay and self.decoupled:
            u.add_(parameter, alpha=self.weight_decay)
        return u if self.share == 1.0 else u.mul_(self.share)


@dataclasses.dataclass(frozen=True, eq=False)
class Adafactor:
    """The next step of transformers' Adafactor without first moment (Shazeer & Stern 2018).

    v' = β v + (1−β)(g² + ε₁), β = 1 − t^decay_rate, kept as row and column means for matrices; u = g / √v', clipped to a root
    mean square of `clip_threshold`, times max(ε₂, RMS(θ)) where parameters are scaled, plus λθ.

    Args:
        moments: exp_avg_sq_row and exp_avg_sq_col, or exp_avg_sq alone.
        step: t.
        group: The parameter group's settings.
        share: This parameter's learning rate as a share of the largest.
    """

    moments: tuple[Tensor, ...]
    step: int
    group: Mapping[str, Any]
    share: float

    def direction(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        group = self.group
        beta = 1.0 - math.pow(self.step, group["decay_rate"])
        squares = gradient.square().add_(group["eps"][0])
        if len(self.moments) == 2:
            rows = self.moments[0].mul(beta).add_(squares.mean(dim=-1), alpha=1 - beta)
            columns = self.moments[1].mul(beta).add_(squares.mean(dim=-2), alpha=1 - beta)
            u = gradient.mul_(inverse_root(rows, columns))
        else:
            u = gradient.mul_(self.moments[0].mul(beta).add_(squares, alpha=1 - beta).rsqrt_())
        u.div_((_root_mean_square(u) / group["clip_threshold"]).clamp_(min=1.0))
        scale = 1.0
        if group["scale_parameter"]:
            scale = max(group["eps"][1], float(_root_mean_square(parameter)))
        u.mul_(scale)
        if group["weight_decay"]:
            # The decay is multiplied with the scaled rate, too.
            u.add_(parameter, alpha=group["weight_decay"] * scale)
        return u if self.share == 1.0 else u.mul_(self.share)


def inverse_root(rows: Tensor, columns: Tensor) -> Tensor:
    """1/√V for V ≈ r cᵀ / mean(r), of shape [..., m, n], from r [..., m] and c [..., n]."""
    return (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1) * columns.unsqueeze(-2).rsqrt()


def read_rules(kind: str, uri: str | None, model: nn.Module, device: torch.device | str) -> StepRules:
    """The rules of a step for every parameter that the optimizer has state for.

    Args:
        kind: A `StepKind`.
        uri: A Trainer checkpoint, its optimizer.pt, or any `torch.save` of such an optimizer's state dict; not needed for
            "sgd", which moves all parameters.
        model: The model that the state belongs to, in float32.
        device: Where the state is to be.

    Raises:
        TrackStarError: no state where one is needed, an unreadable one, one of another model, or an optimizer whose step is
            not known here.
    """
    if kind == "sgd":
        return StepRules("sgd", {name: Sgd() for name, _ in model.named_parameters()})
    if uri is None:
        raise TrackStarError(
            "a step needs the optimizer's state and none is given: name a checkpoint with optimizer.pt (--optimizer_state), "
            "or take plain gradient steps (--step sgd)"
        )
    uri = optimizer_state.find(uri)
    if uri.endswith(".safetensors"):
        raise TrackStarError(
            f"{uri}: holds second moments of the attributed weights; a step moves all parameters and needs their whole state: "
            "give the optimizer.pt of a checkpoint, or --step sgd"
        )
    names = [name for name, _ in model.named_parameters()]
    content = optimizer_state.open_state_dict(local_copies.file(uri), uri)
    states = optimizer_state.by_name(content, model, names, uri)
    states = {name: state for name, state in states.items() if state.state}
    kind = _resolved(kind, states, uri)
    rates = _Rates.of(content["param_groups"])
    rules = {name: _rule(kind, state, rates, name, uri, device) for name, state in states.items()}
    steps = max(_step(state) for state in states.values())
    return StepRules(kind, rules, steps, rates.saved, rates.first)


@dataclasses.dataclass(frozen=True)
class _Rates:
    """Learning rates of the parameter groups."""

    saved: float | None
    first: float | None

    @classmethod
    def of(cls, groups: list[dict[str, Any]]) -> "_Rates":
        found = [[_number(group.get(key)) for group in groups if group["params"]] for key in ("lr", "initial_lr")]
        known = [[rate for rate in rates if rate is not None] for rates in found]
        return cls(*(max(rates) if rates else None for rates in known))

    def share(self, group: Mapping[str, Any]) -> float:
        """A group's rate over the largest: of the saved ones, or of the first ones where all saved ones are zero."""
        for key, largest in (("lr", self.saved), ("initial_lr", self.first)):
            rate = _number(group.get(key))
            if largest and rate is not None:
                return rate / largest
        return 1.0


def _resolved(kind: str, states: Mapping[str, ParameterState], where: str) -> str:
    """The rule's name, where "auto" is what the state is of."""
    keys = {str(key) for state in states.values() for key in state.state}
    found = "adafactor" if set(_ADAFACTOR) & keys else "adamw" if {"exp_avg", "exp_avg_sq"} <= keys else ""
    if not found:
        raise TrackStarError(
            f"{where}: its optimizer keeps {', '.join(sorted(keys)) or 'nothing'}, and its step is not known here; {SUPPORTED}. "
            "Give such a state, or take plain gradient steps (--step sgd)"
        )
    if kind not in ("auto", "normalised", found):
        raise TrackStarError(f"{where}: this is a state of {found}; give --step {found}, or leave --step out")
    return found if kind == "auto" else kind


def _rule(
    kind: str, parameter: ParameterState, rates: _Rates, name: str, where: str, device: torch.device | str
) -> Rule:
    state, group = parameter.state, parameter.group
    _check(group, where)

    def load(key: str) -> Tensor:
        if not isinstance(state.get(key), Tensor):
            raise TrackStarError(f"{where}: no {key} for {name}, only {', '.join(map(str, state))}; {SUPPORTED}")
        # A copy: the file may be unmapped, changed or removed afterwards.
        return state[key].to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)

    step = _step(parameter)
    if step < 1:
        raise TrackStarError(f"{where}: {name} has taken no step yet; give a later checkpoint")
    moments = _ADAFACTOR if _ADAFACTOR[0] in state else ("exp_avg_sq",)
    if kind == "adafactor":
        return Adafactor(tuple(map(load, moments)), step + 1, group, rates.share(group))
    if kind == "normalised":
        if len(moments) == 2:
            root = inverse_root(*map(load, moments)).reciprocal_()
        else:
            second = float(group["betas"][1]) if "betas" in group else 0.0  # Adafactor's decay leaves no bias
            root = load("exp_avg_sq").div_(1 - second**step).sqrt_()
        epsilon = group["eps"]
        return Normalised(root.add_(float(epsilon) if isinstance(epsilon, float | int) else 0.0))
    return Adam(
        load("exp_avg"),
        load("exp_avg_sq"),
        step + 1,
        (float(group["betas"][0]), float(group["betas"][1])),
        float(group["eps"]),
        float(group.get("weight_decay", 0.0)),
        group.get("decoupled_weight_decay") is not False,  # older files do not say; Trainer's is AdamW
        rates.share(group),
    )


def _check(group: Mapping[str, Any], where: str) -> None:
    """Refuses variants whose step would be another one."""
    for variant in ("amsgrad", "maximize"):
        if group.get(variant):
            raise TrackStarError(f"{where}: the optimizer ran with {variant}, which is not supported; {SUPPORTED}")
    if group.get("beta1") is not None:
        raise TrackStarError(
            f"{where}: Adafactor ran with a first moment (beta1), which keeps updates scaled by past learning rates and is "
            f"not supported; {SUPPORTED}, the last without beta1"
        )


def _step(parameter: ParameterState) -> int:
    return int(parameter.state.get("step", parameter.group.get("step", 0)))  # Apex and DeepSpeed count once a group


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _root_mean_square(x: Tensor) -> Tensor:
    return x.norm(2) / math.sqrt(x.numel())
