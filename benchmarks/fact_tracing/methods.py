"""The rows of the ablation: how projected gradients become scores of all documents, densely."""

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.fact_tracing.gradients import Features, Gradients
from trackstar.preconditioner import Preconditioner
from trackstar.results import Query, Ranking, Result

_ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the ablation.

    Args:
        features: The projected gradients.
        preconditioner: "none", "train", "eval" or "mixed".
        unit_norm: Whether gradients are divided by their norms.
        normalisation: "vector", or "block": every block to unit norm first (with the layout "weights": every weight).
        damping: c: eigenvalues are damped by c times their mean.
        mixing: λ of the mixed R; None for the crossing rule.
    """

    features: Features
    preconditioner: str = "none"
    unit_norm: bool = True
    normalisation: str = "vector"
    damping: float = 0.1
    mixing: float | None = None

    @property
    def name(self) -> str:
        """A short name, fit for a file."""
        f = self.features
        parts = [
            "V" if f.moments != "none" else "noV",
            f"R_{self.preconditioner}" if self.preconditioner != "none" else "noR",
            {(True, "vector"): "unit", (True, "block"): "unit_by_block"}.get(
                (self.unit_norm, self.normalisation), "no_unit"
            ),
            f"{f.layout}{f.side}",
        ]
        if self.damping != 0.1:
            parts.append(f"damping{self.damping:g}")
        if self.mixing is not None:
            parts.append(f"lambda{self.mixing:g}")
        return "-".join([*parts, f"seed{f.seed}"])


def dense_scores(methods: Sequence[Method], gradients: Gradients) -> dict[Method, np.ndarray]:
    """Scores of all documents for all queries, [Q, N] float32 a method (docs/method.md; arXiv 2410.17413, section 3).

    The same arithmetic as encoding under each method's preconditioner, in one pass over the blocks and without keeping
    encodings. Methods that differ in nothing but the normalisation share the pass.
    """
    scores: dict[Method, np.ndarray] = {}
    for _, group in itertools.groupby(sorted(methods, key=_place_of_r), key=_place_of_r):
        together = list(group)
        by_norm = _scores_by_norm(together, gradients)
        scores.update((method, by_norm[method.unit_norm, method.normalisation]) for method in together)
    return {method: scores[method] for method in methods}


def _place_of_r(method: Method) -> tuple[str, float, float]:
    """Methods with the same R stand together."""
    return method.preconditioner, method.damping, -1.0 if method.mixing is None else method.mixing


def _scores_by_norm(methods: Sequence[Method], gradients: Gradients) -> dict[tuple[bool, str], np.ndarray]:
    """(unit_norm, normalisation) → scores, for methods with one R."""
    preconditioner = _chosen(methods[0], gradients)
    forms = {(method.unit_norm, method.normalisation) for method in methods}
    whole, by_block = any(n == "vector" for _, n in forms), any(n == "block" for _, n in forms)
    documents, queries = gradients.documents, gradients.queries
    plain, blockwise = _Products.empty(queries, documents), _Products.empty(queries, documents)
    for block in range(documents.shape[1]):
        root = None if preconditioner is None else preconditioner.power(block, -0.5).float()
        q = queries[:, block] if root is None else queries[:, block] @ root
        unit_q = _unit(q)
        for start in range(0, len(documents), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            z = documents[rows, block] if root is None else documents[rows, block] @ root
            if whole:
                plain.add(rows, (q, q.square().sum(1)), (z, z.square().sum(1)))
            if by_block:
                blockwise.add(rows, unit_q, _unit(z))
    found = {(unit, n): (blockwise if n == "block" else plain).scores(unit) for unit, n in forms}
    for method in methods:
        if not np.isfinite(found[method.unit_norm, method.normalisation]).all():
            raise ValueError(f"{method.name}: scores that are not finite")
    return found


@dataclasses.dataclass(frozen=True)
class _Products:
    """Sums over blocks: inner products [Q, N], squares of the queries [Q] (once a group of rows) and of the documents [N]."""

    products: torch.Tensor
    query_squares: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def empty(cls, queries: torch.Tensor, documents: torch.Tensor) -> "_Products":
        return cls(torch.zeros(len(queries), len(documents)), torch.zeros(len(queries)), torch.zeros(len(documents)))

    def add(self, rows: slice, query: tuple[torch.Tensor, torch.Tensor], z: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.products[:, rows] += query[0] @ z[0].T
        self.squares[rows] += z[1]
        if rows.start == 0:
            self.query_squares.add_(query[1])

    def scores(self, unit_norm: bool) -> np.ndarray:
        norms = self.query_squares.rsqrt()[:, None] * self.squares.rsqrt() if unit_norm else 1.0
        return (self.products * norms).numpy()


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The k best documents of every query: score descending, id ascending.

    Args:
        places: [Q, k] int32, the documents' places in the corpus; −1 behind a query's last.
        scores: [Q, k] float32.
    """

    places: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, ids: Sequence[str], k: int, positive_only: bool = False) -> "Ranked":
        """From all documents' scores, [Q, N]; `positive_only` leaves out scores of zero, which say nothing."""
        rank_of_id = np.empty(len(ids), np.int64)
        rank_of_id[np.argsort(np.array(ids), kind="stable")] = np.arange(len(ids))
        k = min(k, len(ids))
        places = np.empty((len(scores), k), np.int32)
        for best, row in zip(places, scores, strict=True):
            kth = np.partition(row, len(row) - k)[len(row) - k]
            some = np.flatnonzero(row >= kth)
            best[:] = some[np.lexsort((rank_of_id[some], -row[some]))][:k]
        chosen = np.take_along_axis(np.asarray(scores, np.float32), places, axis=1)
        return cls(np.where(chosen > 0, places, -1) if positive_only else places, chosen)

    def results(self, queries: Sequence[Query], ids: Sequence[str], texts: Sequence[str], name: str) -> list[Result]:
        """As results files hold them."""
        made = []
        for query, places, scores in zip(queries, self.places, self.scores, strict=True):
            listed = places >= 0
            best = places[listed].tolist()
            ranking = Ranking([texts[i] for i in best], [ids[i] for i in best], scores[listed].tolist())
            made.append(Result(query, name, ranking))
        return made

    def some(self, queries: Sequence[int]) -> "Ranked":
        """Of some queries alone."""
        return Ranked(self.places[list(queries)], self.scores[list(queries)])

    def save(self, path: Path) -> None:
        """Writes a file, whole or not at all."""
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, places=self.places, scores=self.scores)
        os.replace(file.name, path)

    @classmethod
    def load(cls, path: Path) -> "Ranked":
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["places"], arrays["scores"])


def _chosen(method: Method, gradients: Gradients) -> Preconditioner | None:
    if method.preconditioner == "none":
        return None
    if method.preconditioner == "mixed":
        chosen = gradients.mixed(method.mixing)
    else:
        chosen = gradients.train if method.preconditioner == "train" else gradients.evaluation
    return dataclasses.replace(chosen, damping=method.damping)


def _unit(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unit norm (zero rows stay), and how many squared units each counts for."""
    norms = part.norm(dim=1, keepdim=True)
    present = norms > 0
    return torch.where(present, part / norms, torch.zeros_like(part)), present[:, 0].float()
