"""Products of stored rows with all queries, as fast as the hardware has them, with a bound on how far they are off.

The product runs in bfloat16 (in float32 where that is stored), which holds what is stored exactly. Rows of fewer bits are
unpacked a slice of columns at a time, into a buffer that is small enough to stay in cache until it is multiplied. What the
product costs in accuracy is bounded, not guessed; z is the encoding, the row's factor included:

- the query is rounded: |(q − q̂)·z| ≤ ‖q − q̂‖ ‖z‖ (Cauchy–Schwarz);
- products are summed in float32: over n columns, in any order, at most γ_n ‖q̂‖ ‖z‖ with γ_n = n·u / (1 − n·u);
  columns are taken in slices, so that n stays small;
- on a CPU a bfloat16 product comes out rounded to bfloat16: 2⁻⁸ |result|, slice by slice; of a block's rows, the largest.

For few queries, unpacking a row costs more than multiplying it, so packed rows are multiplied as they lie (`DirectProduct`): then
nothing is rounded but the float32 sums.
"""

import dataclasses
import itertools
import math

import numpy as np
import torch

from trackstar import stored_kernel
from trackstar.row_weights import WeightedRows
from trackstar.stored_forms import StoredForm, StoredRows
from trackstar.threads import Shares

SLICE = 8192
"""Columns that are multiplied at a time, about."""
_TILE_BYTES = 4 * 2**20  # of rows that are unpacked at a time
_TILE_ROWS = 64  # at least
_SHARE_BYTES = 2**18  # of packed rows that are worth another thread
_FACTOR = 2e-7  # of the score: the factor's rounding to float32, and that of the product with it
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

    def is_finite(self) -> bool:
        """Whether all of it is; a row with NaN or infinity can spoil the bounds of all rows that are multiplied with it."""
        parts = [part for part in (self.centre, self.radius, self.constant) if part is not None]
        return all(bool(torch.isfinite(part).all()) for part in parts)

    def rows(self, places: np.ndarray) -> "Bounded":
        """The scores of some of the rows, copied."""
        chosen = torch.from_numpy(places).to(self.centre.device)
        return Bounded(self.centre[:, chosen], None if self.radius is None else self.radius[:, chosen], self.constant)


def tile_rows(dimension: int) -> int:
    """Rows of `dimension` numbers that `QueryProduct` should be given at a time where they have to be unpacked."""
    return max(_TILE_ROWS, _TILE_BYTES // (2 * min(_slice_columns(), dimension)))


class QueryProduct:
    """The queries, prepared for products with rows that are multiplied in one type.

    Args:
        vectors: [Q, d] float32, folded already if the preconditioner changes.
        dtype: The type.
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
        self._tile = torch.empty(0, dtype=dtype, device=device)
        self._shares = Shares()
        self._rounded = vectors.to(dtype).to(device)
        self._scale = None if scale is None else torch.from_numpy(scale).float().to(device)[:, None]
        edges = [*range(0, vectors.shape[1], _slice_columns()), vectors.shape[1]]
        self._slices = [slice(start, end) for start, end in itertools.pairwise(edges)]
        size = _norms(vectors)
        self._size = size.float().to(device)[:, None]
        self._error = self._error_of(vectors, size).to(device)
        self._count = len(vectors)
        if self._rounds and self._count == 1:
            # A product with one row takes another path in oneDNN, which is a fifth slower than that with two.
            self._rounded = self._rounded.repeat(2, 1)

    def __call__(self, rows: torch.Tensor | StoredRows, norm: float) -> Bounded:
        """Products with `rows` [rows, d] on the device, whose norms, factors included, are at most `norm`."""
        factors = rows.factors() if isinstance(rows, StoredRows) else None
        centre, rounding = self._product(rows, None if factors is None else factors.float())
        error = self._error
        if factors is not None:
            centre.mul_(factors.float())
            error = error + self._size[:, 0].double() * _FACTOR
        return Bounded(centre, None, (error * norm).float() + rounding)

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
        terms = min(_slice_columns(), vectors.shape[1]) + len(self._slices) + 2
        gamma = terms * _U32 / (1 - terms * _U32) * (1.0 if self.device.type == "cpu" else _TENSOR_CORES)
        # Their difference is a float32 number too.
        error = _norms(vectors - nearest) + gamma * _norms(nearest)
        return _with_slack(error, vectors.shape[1], size)

    def _numbers(self, rows: torch.Tensor | StoredRows, columns: slice) -> torch.Tensor:
        """Some columns of the rows, in the type that is multiplied; what is unpacked is valid until the next call."""
        if isinstance(rows, torch.Tensor):
            return rows[:, columns]
        if not rows.form.is_packed:
            return rows.numbers(columns)
        shape = (len(rows), columns.stop - columns.start)
        if self._tile.numel() < shape[0] * shape[1]:
            self._tile = self._tile.new_empty(shape[0] * shape[1])
        return rows.numbers(columns, self._tile[: shape[0] * shape[1]].view(shape), self._shares)

    def _product(
        self, rows: torch.Tensor | StoredRows, factors: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Products without factors [Q, rows] float32, valid until the next call, and how far rounded output is off, [Q].

        Args:
            rows: [rows, d].
            factors: [rows] or [1] float32, what products will be multiplied with; their rounding is told as if they were.
        """
        # Rounded up, to the type of what it is multiplied with.
        weights = None if factors is None or len(factors) == 1 else (factors * (1 + 2.0**-7)).to(self._output)
        rounding = torch.zeros(len(self._rounded), device=self.device)
        if self._buffers[0].shape[1] != len(rows):
            shape = (len(self._rounded), len(rows))
            self._buffers = tuple(
                torch.empty(shape, dtype=t, device=self.device) for t in (torch.float32, self._output)
            )
        centre, partial = self._buffers
        for number, columns in enumerate(self._slices):
            out = centre if number == 0 and self._output == torch.float32 else partial
            block = self._numbers(rows, columns).T  # [Q, n] @ [n, rows]
            if self.dtype == torch.bfloat16 and not self._rounds:
                torch.mm(self._rounded[:, columns], block, out_dtype=torch.float32, out=out)
            else:
                torch.mm(self._rounded[:, columns], block, out=out)
            if number:
                centre.add_(out)
            elif out is not centre:
                centre.copy_(out)
            if self._rounds:
                sizes = out.abs_() if weights is None else out.abs_().mul_(weights)
                rounding += sizes.amax(dim=1).float()
        if factors is not None and weights is None:
            rounding *= factors
        return centre[: self._count], rounding[: self._count] * (_BF16_OUTPUT * (1 + 1e-5))


class DirectProduct:
    """A few queries, prepared for products with packed rows as they lie in the CPU's memory.

    Args:
        vectors: [Q, d] float32.
        form: The rows' form.
    """

    def __init__(self, vectors: torch.Tensor, form: StoredForm):
        self._vectors = vectors.contiguous()
        self._shares = Shares()
        dimension = vectors.shape[1]
        terms = dimension // stored_kernel.LANES + 4
        gamma = terms * _U32 / (1 - terms * _U32)
        size = _norms(vectors)
        # Of bits, those that are set are summed: Σ ±q = 2 Σ_set q − Σ q, and Σ|q| bounds what is summed.
        absolute = vectors.double().abs().sum(dim=1) / math.sqrt(dimension)
        self._error = (
            _with_slack(gamma * (2 * absolute if form.name == "sign" else size), dimension, size) + size * _FACTOR
        )

    def __call__(self, rows: StoredRows, norm: float) -> Bounded:
        """Products with `rows`, whose norms, factors included, are at most `norm`."""
        sums = torch.empty(len(self._vectors), len(rows))

        def share(first: int, end: int) -> None:
            stored_kernel.products(rows.matrix[first:end], self._vectors, sums[:, first:end])

        self._shares.run(share, len(rows), max(1, _SHARE_BYTES * len(rows) // max(1, rows.nbytes)))
        factors = rows.factors()
        if factors is not None:
            sums.mul_(factors.float())
        return Bounded(sums, None, (self._error * norm).float())


def _slice_columns() -> int:
    """Columns that are multiplied at a time: a whole number of bytes where they are bits."""
    return -(-SLICE // 8) * 8


def _with_slack(error: torch.Tensor, dimension: int, size: torch.Tensor) -> torch.Tensor:
    """Numbers below 2⁻¹²⁶ may be taken for zero; and float32 compares what float64 computed. All [Q] float64."""
    floor = math.sqrt(dimension) * 2.0**-126
    return (error + floor * (1 + size)) * (1 + 1e-5) + size * 2e-7


def _norms(vectors: torch.Tensor) -> torch.Tensor:
    """[Q, n] float32 → [Q] float64, not below the norms and at most a thousandth above: float32 sums err by less."""
    norms = torch.linalg.vector_norm(vectors, dim=1).double()
    if ((norms < 1e-15) | (norms > 1e15)).any():  # squares may have left float32's range
        norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return norms * (1 + 1e-3)
