"""Products of stored rows with all queries, as fast as the hardware has them, with a bound on how far they are off.

The product runs in the stored type. What that costs in accuracy is bounded, not guessed:

- the query is rounded to the stored type: |(q − q̂)·z| ≤ ‖q − q̂‖ ‖z‖ (Cauchy–Schwarz);
- products are summed in float32: over n columns, in any order, at most γ_n ‖q̂‖ ‖z‖ with γ_n = n·u / (1 − n·u);
  columns are taken in slices, so that n stays small;
- on a CPU a bfloat16 product comes out rounded to bfloat16: 2⁻⁸ |result|, slice by slice.
"""

import dataclasses
import math

import numpy as np
import torch

from trackstar.row_weights import WeightBounds

_SLICE = 4096
_U32 = 2.0**-24
_BF16_OUTPUT = 2.0**-8 * (1 + 2.0**-7)  # of the rounded result
_TENSOR_CORES = 4.0  # their float32 sums keep fewer guard bits than IEEE's
_HUGE = 1e30


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Approximate scores of Q queries and some rows: the true score is within centre ± (radius + constant).

    Args:
        centre: [Q, rows] float32.
        radius: [Q, rows] float32, or None for 0.
        constant: [Q] float32.
    """

    centre: torch.Tensor
    radius: torch.Tensor | None
    constant: torch.Tensor


class QueryProduct:
    """The queries, prepared for products with rows of one storage type.

    Args:
        vectors: [Q, d] float32, folded already if the preconditioner changes.
        parts: Column ranges with weights of their own; a single one unless blocks are normalised.
        dtype: Storage type of the rows.
        device: Where to multiply.
        scale: [Q] float64, not negative, what the weighted scores of each query are multiplied with; None for 1.
    """

    def __init__(
        self,
        vectors: torch.Tensor,
        parts: list[slice],
        dtype: torch.dtype,
        device: torch.device,
        scale: np.ndarray | None = None,
    ):
        self.dtype = dtype
        self.device = device
        self._rounds = dtype == torch.bfloat16 and device.type == "cpu"
        self._rounded = vectors.to(dtype).to(device)
        self._scale = None if scale is None else torch.from_numpy(scale).float().to(device)[:, None]
        self._parts = [_Part(vectors, self._rounded, columns, device) for columns in parts]

    def __call__(self, rows: torch.Tensor, norm: float) -> Bounded:
        """Products with `rows` [rows, d] on the device, whose norms are at most `norm`."""
        [part] = self._parts
        centre, radius = self._product(rows, part)
        return Bounded(centre, radius, (part.error * norm).float())

    def weighted(self, rows: torch.Tensor, weights: list[WeightBounds]) -> Bounded:
        """Products with `rows`, part by part multiplied with weights that lie between bounds."""
        low = torch.zeros(len(self._rounded), len(rows), device=self.device)
        high = torch.zeros_like(low)
        for part, weight in zip(self._parts, weights, strict=True):
            centre, radius = self._product(rows, part)
            margin = part.error.float()[:, None] * weight.norm * (1 + 1e-6)
            margin = margin if radius is None else margin + radius
            above, below = centre + margin, centre - margin
            # A weight of unknown size times a product that may be zero: no bound, rather than a NaN.
            heavy, light = weight.high.clamp(max=_HUGE), weight.low
            high += above * torch.where(above >= 0, heavy, light)
            low += below * torch.where(below >= 0, light, heavy)
        if self._scale is not None:
            low, high = low * self._scale, high * self._scale
        centre = (high + low) / 2
        radius = (high - low) / 2 * (1 + 1e-5) + centre.abs() * 1e-5
        return Bounded(centre, radius, torch.zeros(len(self._rounded), device=self.device))

    def _product(self, rows: torch.Tensor, part: "_Part") -> tuple[torch.Tensor, torch.Tensor | None]:
        centre: torch.Tensor | None = None
        radius: torch.Tensor | None = None
        for columns in part.slices:
            queries, block = self._rounded[:, columns], rows[:, columns].T  # [Q, n] @ [n, rows]
            if self.dtype == torch.bfloat16 and self.device.type != "cpu":
                product = torch.mm(queries, block, out_dtype=torch.float32)
            else:
                product = torch.mm(queries, block)
            centre = product.float() if centre is None else centre.add_(product)
            if self._rounds:
                size = product.abs_()
                radius = size.float() if radius is None else radius.add_(size)
        assert centre is not None
        return centre, None if radius is None else radius.mul_(_BF16_OUTPUT * (1 + 1e-5))


class _Part:
    """One part's column slices, and its error for a row of norm 1: [Q] float64."""

    def __init__(self, vectors: torch.Tensor, rounded: torch.Tensor, columns: slice, device: torch.device):
        self.slices = [
            slice(start, min(start + _SLICE, columns.stop)) for start in range(columns.start, columns.stop, _SLICE)
        ]
        exact = vectors[:, columns].double()
        nearest = rounded[:, columns].to("cpu", torch.float64)
        terms = min(_SLICE, columns.stop - columns.start) + len(self.slices) + 2
        gamma = terms * _U32 / (1 - terms * _U32) * (1.0 if device.type == "cpu" else _TENSOR_CORES)
        error = (exact - nearest).norm(dim=1) + gamma * nearest.norm(dim=1)
        # Numbers below 2⁻¹²⁶ may be taken for zero; and float32 compares what float64 computed.
        floor = math.sqrt(columns.stop - columns.start) * 2.0**-126
        self.error = ((error + floor * (1 + exact.norm(dim=1))) * (1 + 1e-5) + exact.norm(dim=1) * 2e-7).to(device)
