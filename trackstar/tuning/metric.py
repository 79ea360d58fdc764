"""What is done to full gradients before inner products are taken of them: nothing, division by √V, whitening of both sides."""

from collections.abc import Callable

import torch

from trackstar.models import WeightInfo
from trackstar.second_moments import Exact, Moment, SecondMoments

Transform = Callable[[torch.Tensor], torch.Tensor]
"""T_i: [b, m, n] → [b, m, n], a new tensor wherever it does anything."""
Metric = Callable[[WeightInfo, torch.device], Transform]
"""What is done to each weight's gradients before inner products are taken of them, on a device."""
Roots = Callable[[WeightInfo], tuple[torch.Tensor, torch.Tensor]]
"""What whitening multiplies a weight's gradient with from the left [m, m] and from the right [n, n]."""


def corrected(moments: SecondMoments | None) -> Metric:
    """G / (√V + ε); G itself without second moments."""

    def metric(weight: WeightInfo, device: torch.device) -> Transform:
        if moments is None:
            return lambda gradient: gradient
        scale = inverse_root(moments.by_weight[weight.name], moments.epsilon).to(device)  # [m, n]
        return lambda gradient: gradient * scale

    return metric


def whitened(moments: SecondMoments | None, roots: Roots) -> Metric:
    """Both sides whitened, after the correction by exact second moments; factored ones are in the roots."""

    def metric(weight: WeightInfo, device: torch.device) -> Transform:
        moment = None if moments is None else moments.by_weight[weight.name]
        correct = corrected(moments if isinstance(moment, Exact) else None)(weight, device)
        left, right = (root.to(device, torch.float32) for root in roots(weight))
        return lambda gradient: left @ correct(gradient) @ right

    return metric


def inverse_root(moment: Moment, epsilon: float) -> torch.Tensor:
    """What a gradient is multiplied with: 1 / (√V + ε), float32 [m, n]; for factored V, 1 / √V, and 0 where V is 0."""
    if isinstance(moment, Exact):
        return (moment.values.sqrt() + epsilon).reciprocal()
    of_rows, of_columns = moment.scales()
    return torch.outer(of_rows, of_columns)
