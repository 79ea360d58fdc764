"""What a stored row's products with the queries are multiplied with, part by part.

score(z, q) = Σ_p w_p(z) · (φ_p(z) · q_p), where a part p is a range of columns:

- plain cosine: one part, w = 1;
- without unit norm: one part, w = grad_norm(z);
- under another preconditioner: q is folded to Mᵀφ′(q), one part, w = 1 / ‖M φ(z)‖; or without unit norm w = grad_norm(z);
- the same, normalised block by block: one part a block, w_b = 1 / (‖M_b φ_b(z)‖ · √(blocks that are not zero)).

A scan uses bounds of the weights, which are cheap; the weights themselves are needed of the few rows that are scored again.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import torch

from trackstar.errors import TrackStarError
from trackstar.queries import Change, reciprocal

_UNIT_ROUNDOFF = 2.0**-24  # float32
_EXACT_ROWS = 512  # rows that are transformed in float64 at a time
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class WeightBounds:
    """Of some rows, for one part.

    Args:
        low: [rows] float32, a lower bound of the weight, not negative.
        high: [rows] float32, an upper bound; infinite where nothing is known.
        norm: [rows] float32, an upper bound of ‖φ_p(z)‖.
    """

    low: torch.Tensor
    high: torch.Tensor
    norm: torch.Tensor


class RowWeights:
    """The weights of one file's rows.

    Args:
        change: Change of preconditioner, or None.
        grad_norm: Column of the file, where rows count with their norms; None for unit vectors.
        uri: The file, for errors.
    """

    def __init__(self, change: Change | None, grad_norm: pa.Array | None, uri: str):
        self._change = change
        self._uri = uri
        self._grad_norm: np.ndarray | None = None
        if grad_norm is not None:
            self._grad_norm = grad_norm.to_numpy(zero_copy_only=False).astype(np.float64)
            bad = np.flatnonzero(~(np.isfinite(self._grad_norm) & (self._grad_norm >= 0)))
            if len(bad):
                raise TrackStarError(
                    f"{uri}, row {bad[0]}: grad_norm is {self._grad_norm[bad[0]]}; build this file again"
                )

    def bounds(self, row: int, block: torch.Tensor) -> list[WeightBounds]:
        """Bounds for each part of the rows `block` [rows, d], the first of which is row `row` of the file."""
        if self._grad_norm is not None:
            weights = torch.from_numpy(self._grad_norm[row : row + len(block)]).float().to(block.device)
            return [WeightBounds(_down(weights), _up(weights), _up(block.float().norm(dim=1)))]
        assert self._change is not None
        vectors = block.float()
        below, above, norms = [], [], []
        for columns, matrix in zip(self._change.blocks(), self._change.matrices.to(block.device), strict=True):
            part = vectors[:, columns]
            norm = _up(part.norm(dim=1))
            transformed = (part @ matrix.T).norm(dim=1)
            # A sum of n products in float32, in any order, is off by n·u·Σ|a||b|; ‖|M||φ|‖ ≤ ‖M‖_F ‖φ‖.
            error = norm * (matrix.norm() * (len(matrix) + 8) * 2 * _UNIT_ROUNDOFF)
            below.append(torch.clamp(_down(transformed) - error, min=0))
            above.append(_up(transformed) + error)
            norms.append(norm)
        if self._change.normalisation == "vector":
            low, high = torch.stack(below).norm(dim=0), torch.stack(above).norm(dim=0)
            return [_inverse_bounds(_down(low), _up(high), _up(torch.stack(norms).norm(dim=0)))]
        present = torch.stack([norm > 0 for norm in norms]).sum(dim=0).clamp(min=1).sqrt()
        return [
            _inverse_bounds(_down(low * present), _up(high * present), norm)
            for low, high, norm in zip(below, above, norms, strict=True)
        ]

    def exact(self, rows: np.ndarray, vectors: list[torch.Tensor]) -> np.ndarray:
        """The weights of single rows, [rows, parts] float64.

        Norms under another preconditioner are summed in float64 and rounded to float32, so that the order in which the
        machine sums does not show.

        Args:
            rows: Their numbers in the file.
            vectors: Their stored encodings.
        """
        if self._grad_norm is not None:
            return self._grad_norm[rows][:, None]
        assert self._change is not None
        norms = np.empty((len(rows), len(self._change.matrices)))
        for number, (columns, matrix) in enumerate(zip(self._change.blocks(), self._change.matrices, strict=True)):
            transposed = matrix.double().numpy().T  # once for all rows: it is as large as many rows
            for start in range(0, len(rows), _EXACT_ROWS):
                part = torch.stack([vector[columns] for vector in vectors[start : start + _EXACT_ROWS]])
                product = part.double().numpy() @ transposed  # [rows, d_b]
                norms[start : start + _EXACT_ROWS, number] = np.sqrt((product * product).sum(axis=1))
        if self._change.normalisation == "vector":
            return reciprocal(np.sqrt((norms * norms).sum(axis=1)).astype(np.float32).astype(np.float64))[:, None]
        norms = norms.astype(np.float32).astype(np.float64)
        present = np.sqrt((norms > 0).sum(axis=1))
        return reciprocal(norms) * reciprocal(present)[:, None]


def _inverse_bounds(low: torch.Tensor, high: torch.Tensor, norm: torch.Tensor) -> WeightBounds:
    return WeightBounds(_down(1 / high.clamp(min=_TINY)), _up(1 / low), norm)


def _up(values: torch.Tensor) -> torch.Tensor:
    return values * (1 + 1e-5)


def _down(values: torch.Tensor) -> torch.Tensor:
    return values * (1 - 1e-5)
