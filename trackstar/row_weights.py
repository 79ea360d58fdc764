"""What a stored row's products with the queries are multiplied with, part by part.

score(z, q) = Σ_p w_p(z) · (c_p(z) · q_p), where a part p is a range of columns, c(z) are the stored numbers and f(z) their
factor (`stored_forms`; 1 of bfloat16 and float32):

- plain cosine: one part, w = f;
- without unit norm: one part, w = f · grad_norm(z);
- under another preconditioner: q is folded to Mᵀφ′(q), one part, w = 1 / ‖M c(z)‖; or without unit norm w = f · grad_norm(z);
- the same, normalised block by block: one part a block, w_b = 1 / (‖M_b c_b(z)‖ · √(blocks that are not zero)).

So where a preconditioner changes, only the direction of what is stored counts, and the factor is not needed.

A scan uses bounds of the weights, which are cheap; the weights themselves are needed of the few rows that are scored again.
Where every part has its own weight, the rows are multiplied with them before the queries come: one product, however many parts.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch

from trackstar.errors import TrackStarError
from trackstar.queries import Change, reciprocal

_UNIT_ROUNDOFF = 2.0**-24  # float32
_EXACT_ROWS = 512  # rows that are transformed in float64 at a time
_TINY = 1e-30
_FAR = 1e15  # as good as infinite, and float32 holds its square


@dataclasses.dataclass(frozen=True)
class WeightedRows:
    """What to multiply some rows' queries with: score = w · (x·q), where w and x are known within bounds.

    Args:
        rows: [rows, d] in the type that is multiplied, near x: the stored numbers, or these with each part multiplied with its
            weight.
        norm: [rows] float32, an upper bound of ‖rows‖.
        missing: [rows] float32, an upper bound of ‖x − rows‖.
        low: [rows] float32, a lower bound of w, not negative.
        high: [rows] float32, an upper bound of w; infinite where nothing is known.
    """

    rows: torch.Tensor
    norm: torch.Tensor
    missing: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


class RowWeights:
    """The weights of one file's rows, for scores without unit norm or under another preconditioner.

    Args:
        change: Change of preconditioner, or None.
        grad_norm: Column of the file, where rows count with their norms; None for unit vectors.
        uri: The file, for errors.
    """

    def __init__(self, change: Change | None, grad_norm: pa.Array | None, uri: str):
        self._change = change
        self._uri = uri
        self._known: dict[int, np.ndarray] = {}  # exact weights that were asked for: rows win for several queries
        self._grad_norm: np.ndarray | None = None
        if grad_norm is not None:
            self._grad_norm = grad_norm.to_numpy(zero_copy_only=False).astype(np.float64)
            bad = np.flatnonzero(~(np.isfinite(self._grad_norm) & (self._grad_norm >= 0)))
            if len(bad):
                raise TrackStarError(
                    f"{uri}, row {bad[0]}: grad_norm is {self._grad_norm[bad[0]]}; build this file again"
                )

    @property
    def needs_factors(self) -> bool:
        """Whether the rows' factors count. If so, `exact` leaves them out: they come first."""
        return self._grad_norm is not None

    @property
    def num_exact(self) -> int:
        """Rows whose weights under another preconditioner were computed in float64 so far."""
        return len(self._known)

    def bounds(self, row: int, block: torch.Tensor, factors: torch.Tensor | None = None) -> WeightedRows:
        """Some rows with bounds of their weights.

        Args:
            row: Number of the first one in the file.
            block: [rows, d], their stored numbers.
            factors: [rows] or [1] float64, their factors; None for 1.
        """
        if self._grad_norm is not None:
            weights = torch.from_numpy(self._grad_norm[row : row + len(block)]).to(block.device)
            weights = (weights if factors is None else weights * factors).float()
            norm = _up(block.float().norm(dim=1))
            return WeightedRows(block, norm, torch.zeros_like(norm), _down(weights), _up(weights))
        assert self._change is not None
        by_block = self._change.normalisation == "block"
        weighted = torch.empty_like(block) if by_block else block
        norms, missing, low, high = (torch.zeros(len(block), device=block.device) for _ in range(4))
        present = torch.zeros_like(norms)
        # Part after part, so that what is computed on the way stays small.
        for columns, matrix in zip(self._change.blocks(), self._change.matrices.to(block.device), strict=True):
            part = block[:, columns].float()
            norm = _up(part.norm(dim=1))
            size = (part @ matrix.T).norm(dim=1)
            # A sum of n products in float32, in any order, is off by n·u·Σ|a||b|; ‖|M||φ|‖ ≤ ‖M‖_F ‖φ‖.
            error = norm * (matrix.norm() * (len(matrix) + 8) * 2 * _UNIT_ROUNDOFF)
            least, most = torch.clamp(_down(size) - error, min=0), _up(size) + error
            if by_block:
                off = self._weigh(part, norm, size, least, most, weighted[:, columns])
                norms += (_up(norm * _reciprocal(size)) + off).square()
                missing += off.square()
                present += norm > 0
            else:
                norms += norm.square()
                low += least.square()
                high += most.square()
        if by_block:
            low = high = present.clamp(min=1).sqrt()
        else:
            low, high = low.sqrt(), high.sqrt()
        least, most = _down(1 / _up(high).clamp(min=_TINY)), _up(1 / _down(low))
        return WeightedRows(weighted, _up(norms.sqrt()), _up(missing.sqrt()), least, most)

    @staticmethod
    def _weigh(
        part: torch.Tensor,
        norm: torch.Tensor,
        size: torch.Tensor,
        least: torch.Tensor,
        most: torch.Tensor,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Writes φ_p / ‖M_p φ_p‖ to `out`, rounded; returns by how much it is off at most, [rows].

        Args:
            part: [rows, d_p] float32, φ_p.
            norm: [rows], an upper bound of ‖φ_p‖.
            size: [rows], about ‖M_p φ_p‖; between `least` and `most`.
            out: [rows, d_p] in the stored type.
        """
        factor = _reciprocal(size)
        exact = part * factor[:, None]  # not in place: where float32 is stored, `part` is the file's own memory
        out.copy_(exact)
        exact -= out
        weight = torch.maximum((1 / least).clamp(max=_FAR) - factor, factor - 1 / most.clamp(min=_TINY)).clamp(min=0)
        rounding = exact.norm(dim=1) + norm * factor * (4 * _UNIT_ROUNDOFF)
        return torch.where(norm > 0, _up(norm * weight + rounding), 0)

    def exact(self, rows: np.ndarray, numbers: Callable[[Sequence[int]], torch.Tensor]) -> np.ndarray:
        """The weights of single rows without factors, [rows, parts] float64.

        Norms under another preconditioner are summed in float64 and rounded to float32, so that the order in which the
        machine sums does not show.

        Args:
            rows: Which rows of the file.
            numbers: Gives [n, d], the stored numbers of some of them, by their places in `rows`.
        """
        if self._grad_norm is not None:
            return self._grad_norm[rows][:, None]
        assert self._change is not None
        new = [i for i, row in enumerate(rows.tolist()) if row not in self._known]
        for start in range(0, len(new), _EXACT_ROWS):
            some = new[start : start + _EXACT_ROWS]
            weights = self._exact(numbers(some))
            self._known.update(zip(rows[some].tolist(), weights, strict=True))
        return np.stack([self._known[row] for row in rows.tolist()])

    def _exact(self, vectors: torch.Tensor) -> np.ndarray:
        """[rows, d] → [rows, parts] float64."""
        assert self._change is not None
        norms = np.empty((len(vectors), len(self._change.matrices)))
        for number, columns in enumerate(self._change.blocks()):
            product = vectors[:, columns].double().numpy() @ self._change.double(number).T  # [rows, d_b]
            norms[:, number] = np.sqrt(np.einsum("nd,nd->n", product, product))
        if self._change.normalisation == "vector":
            return reciprocal(np.sqrt((norms * norms).sum(axis=1)).astype(np.float32).astype(np.float64))[:, None]
        norms = norms.astype(np.float32).astype(np.float64)
        present = np.sqrt((norms > 0).sum(axis=1))
        return reciprocal(norms) * reciprocal(present)[:, None]


def _reciprocal(values: torch.Tensor) -> torch.Tensor:
    """1/x, and 0 for 0."""
    return torch.where(values > 0, 1 / values, 0)


def _up(values: torch.Tensor) -> torch.Tensor:
    return values * (1 + 1e-5)


def _down(values: torch.Tensor) -> torch.Tensor:
    return values * (1 - 1e-5)
