"""Products of stored rows with all queries, as fast as the hardware has them, with a bound on how far they are off.

The product runs in the stored type. What that costs in accuracy is bounded, not guessed:

- the query is rounded to the stored type: |(q − q̂)·z| ≤ ‖q − q̂‖ ‖z‖ (Cauchy–Schwarz);
- products are summed in float32: over n columns, in any order, at most γ_n ‖q̂‖ ‖z‖ with γ_n = n·u / (1 − n·u);
  columns are taken in slices, so that n stays small;
- on a CPU a bfloat16 product comes out rounded to bfloat16: 2⁻⁸ |result|, slice by slice; of a block's rows, the largest.
"""

import dataclasses
import itertools
import math

import numpy as np
import torch

from trackstar.row_weights import WeightedRows

_SLICE = 8192
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
        dtype: Storage type of the rows.
        device: Where to multiply.
        scale: [Q] float64, not negative, what the weighted scores of each query are multiplied with; None for 1.
    """

    def __init__(
        self,
        vectors: torch.Tensor,
        dtype: torch.dtype,
        device: torch.device,
        scale: np.ndarray | None = None,
    ):
        self.dtype = dtype
        self.device = device
        self._rounds = dtype == torch.bfloat16 and device.type == "cpu"
        self._output = torch.bfloat16 if self._rounds else torch.float32
        self._buffers: tuple[torch.Tensor, ...] = (torch.empty(0, 0),)
        self._rounded = vectors.to(dtype).to(device)
        self._scale = None if scale is None else torch.from_numpy(scale).float().to(device)[:, None]
        edges = [*range(0, vectors.shape[1], _SLICE), vectors.shape[1]]
        self._slices = [slice(start, end) for start, end in itertools.pairwise(edges)]
        size = _norms(vectors)
        self._size = size.float().to(device)[:, None]
        self._error = self._error_of(vectors, size).to(device)
        self._count = len(vectors)
        if self._rounds and self._count == 1:
            # A product with one row takes another path in oneDNN, which is a fifth slower than that with two.
            self._rounded = self._rounded.repeat(2, 1)

    def __call__(self, rows: torch.Tensor, norm: float) -> Bounded:
        """Products with `rows` [rows, d] on the device, whose norms are at most `norm`."""
        centre, rounding = self._product(rows)
        return Bounded(centre, None, (self._error * norm).float() + rounding)

    def weighted(self, weighted: WeightedRows) -> Bounded:
        """Products with rows that have weights."""
        centre, rounding = self._product(weighted.rows)
        margin = self._error.float()[:, None] * weighted.norm + self._size * weighted.missing
        margin = margin * (1 + 1e-6) + rounding[:, None]
        above, below = centre + margin, centre - margin
        # A weight of unknown size times a product that may be zero: no bound, rather than a NaN.
        heavy, light = weighted.high.clamp(max=_HUGE), weighted.low
        high, low = above * torch.where(above >= 0, heavy, light), below * torch.where(below >= 0, light, heavy)
        if self._scale is not None:
            low, high = low * self._scale, high * self._scale
        centre = (high + low) / 2
        radius = (high - low) / 2 * (1 + 1e-5) + centre.abs() * 1e-5
        return Bounded(centre, radius, torch.zeros(self._count, device=self.device))

    def _error_of(self, vectors: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """How far a product with a row of norm 1 is off at most, without the rounding of its output: [Q] float64."""
        nearest = self._rounded.to("cpu", torch.float32)
        terms = min(_SLICE, vectors.shape[1]) + len(self._slices) + 2
        gamma = terms * _U32 / (1 - terms * _U32) * (1.0 if self.device.type == "cpu" else _TENSOR_CORES)
        # Their difference is a float32 number too.
        error = _norms(vectors - nearest) + gamma * _norms(nearest)
        # Numbers below 2⁻¹²⁶ may be taken for zero; and float32 compares what float64 computed.
        floor = math.sqrt(vectors.shape[1]) * 2.0**-126
        return (error + floor * (1 + size)) * (1 + 1e-5) + size * 2e-7

    def _product(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [Q, rows] float32, valid until the next call, and by how much rounded output is off at most, [Q]."""
        rounding = torch.zeros(len(self._rounded), device=self.device)
        if self._buffers[0].shape[1] != len(rows):
            shape = (len(self._rounded), len(rows))
            self._buffers = tuple(
                torch.empty(shape, dtype=t, device=self.device) for t in (torch.float32, self._output)
            )
        centre, partial = self._buffers
        for number, columns in enumerate(self._slices):
            out = centre if number == 0 and self._output == torch.float32 else partial
            block = rows[:, columns].T  # [Q, n] @ [n, rows]
            if self.dtype == torch.bfloat16 and not self._rounds:
                torch.mm(self._rounded[:, columns], block, out_dtype=torch.float32, out=out)
            else:
                torch.mm(self._rounded[:, columns], block, out=out)
            if number:
                centre.add_(out)
            elif out is not centre:
                centre.copy_(out)
            if self._rounds:
                rounding += out.abs_().amax(dim=1).float()
        return centre[: self._count], rounding[: self._count] * (_BF16_OUTPUT * (1 + 1e-5))


def _norms(vectors: torch.Tensor) -> torch.Tensor:
    """[Q, n] float32 → [Q] float64, not below the norms and at most a thousandth above: float32 sums err by less."""
    norms = torch.linalg.vector_norm(vectors, dim=1).double()
    if ((norms < 1e-15) | (norms > 1e15)).any():  # squares may have left float32's range
        norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return norms * (1 + 1e-3)
