"""Inner products of full, unprojected gradients: what the scores of encodings approximate.

For examples z and q: Σ_i ⟨T_i(G_i(z)), T_i(G_i(q))⟩ over the attributed weights i, where T_i is what a metric does to a weight's
gradient: division by √V, whitening of both sides, both, or nothing. A full gradient is as large as the model, so no example's is
ever held whole: the weights are taken in groups whose gradients of all queries fit into a given memory; for each group the
documents run through the model once more, and a document's gradient of one weight lives as long as its products take.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trackstar.amounts import human_bytes
from trackstar.batching import Batch, Example, collate, plan_batches
from trackstar.device_memory import BatchLimit
from trackstar.errors import TrackStarError
from trackstar.gradients import GradientEngine
from trackstar.models import LoadedModel, WeightInfo
from trackstar.tuning.metric import Metric

_TILE_BYTES = 64 << 20
"""Gradients of one weight that are formed at a time."""

OnProgress = Callable[[int, int], None]
"""Called with the number of examples that have run through the model, and with how many will."""


@dataclasses.dataclass(frozen=True)
class ExactScores:
    """Inner products under one metric, of all queries with all documents.

    Args:
        products: float64 [Q, N], summed over the weights.
        query_squares: float64 [Q], each query's own product with itself.
        squares: float64 [N], each document's.
        weight_cosines: float64 [Q, N], the sum over the weights of their cosines.
        query_weights: float64 [Q], weights in which the query has a gradient.
        weights: float64 [N], weights in which the document has one.
    """

    products: np.ndarray
    query_squares: np.ndarray
    squares: np.ndarray
    weight_cosines: np.ndarray
    query_weights: np.ndarray
    weights: np.ndarray

    def cosines(self, normalisation: str) -> np.ndarray:
        """float64 [Q, N]: of the whole gradients ("vector"), or with every weight's part to unit norm first ("block").

        Columns of documents without a finite gradient that is not zero are NaN.
        """
        if normalisation == "vector":
            found, query, document = self.products, self.query_squares, self.squares
        else:
            found, query, document = self.weight_cosines, self.query_weights, self.weights
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.squares > 0, found / np.sqrt(np.outer(query, document)), np.nan)


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one run of the documents through the model covers: some weights, for the queries from `first` up to `last`."""

    weights: tuple[WeightInfo, ...]
    first: int
    last: int


def plan_passes(
    weights: Sequence[WeightInfo], num_queries: int, num_metrics: int, memory_bytes: int
) -> tuple[Pass, ...]:
    """Groups of neighbouring weights whose gradients of all queries, under all metrics, take at most `memory_bytes`.

    A weight that is too large by itself is taken for some of the queries at a time.

    Raises:
        TrackStarError: one query's gradient of one weight is too large.
    """
    passes: list[Pass] = []
    group: list[WeightInfo] = []
    group_bytes = 0
    for weight in weights:
        one = 4 * weight.outputs * weight.inputs * num_metrics
        if one > memory_bytes:
            raise TrackStarError(
                f"the gradient of {weight.name} takes {human_bytes(one)} a query, and {human_bytes(memory_bytes)} are allowed: "
                "raise --memory"
            )
        if group and group_bytes + one * num_queries > memory_bytes:
            passes.append(Pass(tuple(group), 0, num_queries))
            group, group_bytes = [], 0
        if one * num_queries <= memory_bytes:
            group.append(weight)
            group_bytes += one * num_queries
            continue
        together = memory_bytes // one
        passes += [
            Pass((weight,), first, min(first + together, num_queries)) for first in range(0, num_queries, together)
        ]
    return (*passes, Pass(tuple(group), 0, num_queries)) if group else tuple(passes)


def exact_scores(
    loaded: LoadedModel,
    queries: Sequence[Example],
    documents: Sequence[Example],
    metrics: Mapping[str, Metric],
    *,
    memory_bytes: int = 1 << 30,
    batch_tokens: int = 4096,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, ExactScores]:
    """Inner products of the full gradients of all queries with those of all documents.

    Gradients and products are float32, sums over weights float64.

    Args:
        loaded: The model.
        queries: Q examples.
        documents: N examples. One that the device's memory cannot take even alone, or whose gradient is not finite, counts as one
            without a gradient.
        metrics: By name.
        memory_bytes: For the queries' gradients. Less means more passes over the documents.
        batch_tokens: Padded tokens in one batch at most.
        on_progress: Told how far it is.

    Raises:
        TrackStarError: a query's gradient is zero or not finite, or too large for `memory_bytes` or the device.
    """
    passes = plan_passes(loaded.weights, len(queries), len(metrics), memory_bytes)
    total = sum(each.last - each.first + len(documents) for each in passes)
    runner = _Runner(loaded, batch_tokens, lambda done: on_progress(done, total))
    sums = {name: _Sums.empty(len(queries), len(documents)) for name in metrics}
    for each in passes:
        asked = _Queries(each, metrics, loaded.device)
        if too_large := runner.run(each.weights, queries[each.first : each.last], asked):
            number, why = next(iter(too_large.items()))
            raise TrackStarError(f"query {queries[each.first + number].example_id!r}: {why}; leave the query out")
        for number in runner.run(each.weights, documents, _Documents(each, asked, sums)):
            for of_metric in sums.values():
                of_metric.squares[number] = torch.nan  # of one pass alone it would be a part of the gradient
        del asked  # before the next pass's take as much memory again
    found = {name: of_metric.scores() for name, of_metric in sums.items()}
    for name, scores in found.items():
        for query, square in zip(queries, scores.query_squares.tolist(), strict=True):
            if not 0.0 < square < float("inf"):
                raise TrackStarError(
                    f"query {query.example_id!r}: its full gradient has norm {square**0.5} ({name}): leave the query out"
                )
    return found


class _Taker:
    """What becomes of full gradients, a batch at a time; a batch may be begun again."""

    def begin(self, indices: Sequence[int]) -> None:
        """The examples of these numbers come."""

    def take(self, weight: WeightInfo, span: slice, gradient: torch.Tensor) -> None:
        """Sees G_i [b, m, n] of the batch's examples `span`."""

    def end(self) -> None:
        """The batch came through."""


class _Tiles:
    """A sink that forms full gradients of some weights, a tile of examples at a time."""

    def __init__(self, weights: Sequence[WeightInfo], taker: _Taker):
        self._names = frozenset(weight.name for weight in weights)
        self._taker = taker

    def begin(self, batch: Batch) -> None:
        """Nothing to prepare."""

    def forward(self, weight: WeightInfo, a: torch.Tensor) -> torch.Tensor | None:
        """Keeps a [B, T, n] of the weights that are wanted."""
        return a if weight.name in self._names else None

    def backward(self, weight: WeightInfo, saved: Any, s: torch.Tensor) -> None:
        """Forms G = sᵀ a, tile after tile."""
        if saved is None:
            return
        size = max(1, _TILE_BYTES // (4 * weight.outputs * weight.inputs))
        for start in range(0, len(s), size):
            span = slice(start, min(start + size, len(s)))
            gradient = torch.bmm(s[span].float().transpose(1, 2), saved[span].float())  # [b, m, n]
            self._taker.take(weight, span, gradient)


class _Runner:
    """Runs examples through the model for the gradients of some weights."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int, on_done: Callable[[int], None]):
        self._loaded = loaded
        self._batch_tokens = batch_tokens
        self._limit = BatchLimit(loaded.device)
        self._on_done = on_done
        self._done = 0

    def run(self, weights: Sequence[WeightInfo], examples: Sequence[Example], taker: _Taker) -> dict[int, str]:
        """Why, for each example that the device's memory cannot take even alone."""
        lengths = [len(example.input_ids) for example in examples]
        with GradientEngine(self._loaded, _Tiles(weights, taker)) as engine:

            def run(indices: list[int]) -> None:
                taker.begin(indices)
                engine.run(collate([examples[i] for i in indices]))
                taker.end()
                self._done += len(indices)
                self._on_done(self._done)

            too_large = self._limit.each(plan_batches(lengths, self._batch_tokens), lengths, run)
        self._done += len(too_large)
        return too_large


class _Queries(_Taker):
    """Keeps the queries' transformed gradients of one pass's weights: [queries, m·n] a metric and weight."""

    def __init__(self, planned: Pass, metrics: Mapping[str, Metric], device: torch.device):
        count = planned.last - planned.first
        self.transforms = {
            (name, w.name): metric(w, device) for name, metric in metrics.items() for w in planned.weights
        }
        self.kept = {
            (name, w.name): torch.zeros(count, w.outputs * w.inputs, device=device)
            for name in metrics
            for w in planned.weights
        }
        self._metrics = tuple(metrics)
        self._indices: torch.Tensor = torch.empty(0)

    def begin(self, indices: Sequence[int]) -> None:
        self._indices = torch.tensor(indices)

    def take(self, weight: WeightInfo, span: slice, gradient: torch.Tensor) -> None:
        for name in self._metrics:
            key = name, weight.name
            rows = self._indices[span].to(gradient.device)
            self.kept[key][rows] = self.transforms[key](gradient).flatten(1)


class _Documents(_Taker):
    """Adds the products of one pass's weights; a batch's sums count when it has come through."""

    def __init__(self, planned: Pass, queries: _Queries, sums: "dict[str, _Sums]"):
        self._planned = planned
        self._queries = queries
        self._sums = sums
        self._norms = {key: kept.norm(dim=1) for key, kept in queries.kept.items()}
        self._indices: Sequence[int] = []
        self._batch: dict[str, _Sums] = {}
        for name in sums:
            for weight in planned.weights:
                norms = self._norms[name, weight.name].double().cpu()
                sums[name].query_squares[planned.first : planned.last] += norms.square()
                sums[name].query_weights[planned.first : planned.last] += (norms > 0).double()

    def begin(self, indices: Sequence[int]) -> None:
        self._indices = indices
        count = self._planned.last - self._planned.first
        self._batch = {name: _Sums.empty(count, len(indices)) for name in self._sums}

    def take(self, weight: WeightInfo, span: slice, gradient: torch.Tensor) -> None:
        for name, batch in self._batch.items():
            key = name, weight.name
            of_documents = self._queries.transforms[key](gradient).flatten(1)  # [b, m·n]
            products = self._queries.kept[key] @ of_documents.T  # [queries, b]
            query_norms, norms = self._norms[key], of_documents.norm(dim=1)
            both = torch.outer(query_norms, norms)
            cosines = torch.where(both > 0, products / both, torch.zeros_like(products))
            batch.products[:, span] += products.double().cpu()
            batch.weight_cosines[:, span] += cosines.double().cpu()
            if self._planned.first == 0:  # a weight that is taken for some queries at a time counts once
                batch.squares[span] += norms.double().square().cpu()
                batch.weights[span] += (norms > 0).double().cpu()

    def end(self) -> None:
        columns = torch.tensor(self._indices)
        rows = slice(self._planned.first, self._planned.last)
        for name, batch in self._batch.items():
            total = self._sums[name]
            total.products[rows, columns] += batch.products
            total.weight_cosines[rows, columns] += batch.weight_cosines
            total.squares[columns] += batch.squares
            total.weights[columns] += batch.weights


@dataclasses.dataclass(frozen=True)
class _Sums:
    """`ExactScores` in the making, float64 on the CPU."""

    products: torch.Tensor
    query_squares: torch.Tensor
    squares: torch.Tensor
    weight_cosines: torch.Tensor
    query_weights: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def empty(cls, queries: int, documents: int) -> "_Sums":
        shapes = (queries, documents), (queries,), (documents,), (queries, documents), (queries,), (documents,)
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def scores(self) -> ExactScores:
        finite = torch.isfinite(self.squares) & torch.isfinite(self.products).all(dim=0)
        squares = torch.where(finite, self.squares, torch.zeros_like(self.squares))
        return ExactScores(
            self.products.numpy(),
            self.query_squares.numpy(),
            squares.numpy(),
            self.weight_cosines.numpy(),
            self.query_weights.numpy(),
            self.weights.numpy(),
        )
