"""How far two methods' scores of the same documents agree, query by query: rank and linear correlation, and their best k."""

import dataclasses

import numpy as np

from trackstar.errors import TrackStarError


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of some scores with the exact ones.

    A query whose exact scores are all the same has no correlation (NaN); one whose other scores are has the correlation 0.

    Args:
        spearman: float64 [Q], correlation of the ranks over all documents, −1 to 1; tied scores share a mean rank.
        pearson: float64 [Q], correlation of the scores.
        overlap: float64 [Q], share of the k best documents that are among the exact k best, 0 to 1.
    """

    spearman: np.ndarray
    pearson: np.ndarray
    overlap: np.ndarray


class Judge:
    """Holds scores against the exact ones.

    Args:
        exact: [Q, N].
        k: Of the overlap.

    Raises:
        TrackStarError: fewer than three documents or not more than k, no query, or an exact score that is not finite.
    """

    def __init__(self, exact: np.ndarray, k: int = 10):
        exact = np.asarray(exact, np.float64)
        if exact.ndim != 2 or not len(exact) or exact.shape[1] < max(3, k + 1):
            raise TrackStarError(
                f"agreement over {exact.shape}: at least one query and {max(3, k + 1)} documents are needed (the {k} best are "
                "compared): take a larger sample"
            )
        if not np.isfinite(exact).all():
            raise TrackStarError("exact scores that are NaN or infinite")
        self.k = k
        self._spread = np.ptp(exact, axis=1) > 0  # [Q]
        self._centred = _unit(exact)
        self._ranks = _unit(ranks(exact))
        self._best = best(exact, k)

    def agreement(self, scores: np.ndarray) -> Agreement:
        """Of other scores of the same documents, [Q, N].

        Raises:
            TrackStarError: another shape, or a score that is not finite.
        """
        scores = np.asarray(scores, np.float64)
        if scores.shape != self._ranks.shape or not np.isfinite(scores).all():
            raise TrackStarError(
                f"scores {scores.shape} beside exact ones {self._ranks.shape}: expected the same shape, and finite numbers"
            )
        found = best(scores, self.k)  # [Q, k]
        overlap = np.array([len(np.intersect1d(a, b)) for a, b in zip(found, self._best, strict=True)]) / self.k
        spearman = np.einsum("qn,qn->q", _unit(ranks(scores)), self._ranks)
        pearson = np.einsum("qn,qn->q", _unit(scores), self._centred)
        return Agreement(np.where(self._spread, spearman, np.nan), np.where(self._spread, pearson, np.nan), overlap)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 0 within each row [Q, N], float64; equal scores share the mean of their ranks."""
    order = np.argsort(scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=1)
    places = np.arange(scores.shape[1], dtype=np.float64)
    found = np.empty(scores.shape, np.float64)
    for row, row_order, row_scores in zip(found, order, ordered, strict=True):
        starts = np.flatnonzero(np.r_[True, row_scores[1:] != row_scores[:-1]])
        ends = np.r_[starts[1:], len(row)]
        row[row_order] = np.repeat((places[starts] + places[ends - 1]) / 2, ends - starts)
    return found


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of each row's k highest scores [Q, k]; of equal ones the earlier document."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows less their means, to unit norm; zero where a row is constant."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    varies = (np.ptp(rows, axis=1, keepdims=True) > 0) & (norms > 0)
    return np.divide(centred, norms, out=np.zeros_like(centred), where=varies)
