"""What tokens, weights and blocks contribute to a score (docs/method.md, "Influence of tokens and blocks").

A gradient is a sum over positions, G_i = Σ_t s_t a_tᵀ, and all that follows up to the norm is linear in it; so a score is a sum
of one number for each weight and position:

    φ(z)·φ(q) = Σ_b w_b(z) E_b(z)·U_b = Σ_i Σ_t w_b(z) s_tᵀ [(L_i U_b R_iᵀ) ⊘ (√V_i + ε)] a_t,   U_b = R_b^(-1/2) φ_b(q)

where w_b(z) is one over the norm that block b of R^(-1/2) E(z) is divided by. The same holds with z and q exchanged.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trackstar.batching import Batch, Example
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.forward_mode import Directions, check_size, loss_derivatives
from trackstar.gradients import ProjectingSink, narrow_product
from trackstar.models import LoadedModel, WeightInfo

_CONTRIBUTION_BYTES = 256 << 20
"""Contributions of every position and weight that exist at one time."""


@dataclasses.dataclass(frozen=True)
class Contributions:
    """How one score comes about. All arrays are float64, and each of them sums to `score`."""

    score: float
    """φ(z)·φ(q), computed from z and q."""
    loss: float
    """ℓ(z)."""
    by_position: np.ndarray
    """[T]: of z's positions, where the gradient enters the weights."""
    by_target: np.ndarray | None
    """[T]: of the loss of each of z's tokens; 0 where it is not supervised."""
    by_weight: np.ndarray
    """[weights]: of z's weights, in the model's order."""
    by_block: np.ndarray
    """[number of blocks]: φ_b(z)·φ_b(q)."""
    query_by_position: np.ndarray
    """[T]: of q's positions."""
    query_by_target: np.ndarray | None
    """[T]: of the loss of each of q's tokens; 0 before the target."""


@dataclasses.dataclass(frozen=True)
class Normalised:
    """Preconditioned gradients of N examples and what they are divided by."""

    vectors: torch.Tensor
    """φ: float64 [N, number of blocks, d_b]."""
    scales: torch.Tensor
    """w: float64 [N, number of blocks]; φ_b = w_b R_b^(-1/2) E_b."""


def contributions(
    encoder: Encoder,
    query: Example,
    documents: Sequence[Example],
    by_target: bool = True,
    check: Callable[[], None] = lambda: None,
) -> list[Contributions]:
    """Contributions to the score of each document with one query.

    Args:
        encoder: Under the preconditioner that scores are taken with.
        query: q.
        documents: N examples z.
        by_target: Whether to give contributions by predicted token, too: one more pass, forwards.
        check: Called between the passes; raises to stop.

    Returns:
        One for each document.

    Raises:
        TrackStarError: an example whose gradient is zero or not finite, or that the device's memory cannot take.
    """
    if not documents:
        return []
    projected = encoder.project([query])
    check_size(projected.too_large, [query])
    of_query = normalise(projected.gradients, encoder.inverse_root, encoder.spec.normalisation, [query])
    check()
    toward_query = pulled_back(of_query.vectors, encoder)  # [1, blocks, d0, d1]
    parts = _document_pass(encoder, documents, toward_query)
    of_documents = Normalised(parts.vectors, parts.scales)
    blocks = (of_documents.vectors * of_query.vectors).sum(dim=2).cpu().numpy()  # [N, blocks]
    check()
    toward_documents = pulled_back(of_documents.vectors, encoder)  # [N, blocks, d0, d1]
    query_positions = _query_pass(encoder, query, toward_documents * of_query.scales.float()[:, :, None, None], check)
    targets: list[np.ndarray] | None = None
    query_targets: list[np.ndarray] | None = None
    if by_target:
        check()
        targets = loss_derivatives(encoder, documents, Directions(toward_query, of_documents.scales.float()))
        check()
        repeated = of_query.scales.float().expand(len(documents), -1)
        query_targets = loss_derivatives(encoder, [query] * len(documents), Directions(toward_documents, repeated))
    return [
        Contributions(
            score=float(blocks[n].sum()),
            loss=parts.losses[n],
            by_position=parts.by_position[n],
            by_target=None if targets is None else targets[n],
            by_weight=parts.by_weight[n],
            by_block=blocks[n],
            query_by_position=query_positions[n],
            query_by_target=None if query_targets is None else query_targets[n],
        )
        for n in range(len(documents))
    ]


def normalise(
    gradients: torch.Tensor, inverse_root: torch.Tensor | None, normalisation: str, examples: Sequence[Example]
) -> Normalised:
    """φ and the numbers it was multiplied with, in float64, from E [N, number of blocks, d_b] (`precondition_and_normalise`).

    Raises:
        TrackStarError: a gradient that is zero or not finite.
    """
    vectors = gradients.double()
    if inverse_root is not None:
        vectors = torch.stack(
            [vectors[:, block] @ inverse_root[block].double() for block in range(vectors.shape[1])], dim=1
        )
    norms = vectors.norm(dim=2)  # [N, blocks]
    whole = norms.norm(dim=1)
    for example, norm in zip(examples, whole.tolist(), strict=True):
        if not 0.0 < norm < float("inf"):
            raise TrackStarError(
                f"{example.example_id or 'the query'}: its gradient has norm {norm}, so it has no direction"
            )
    if normalisation == "block":
        count = (norms > 0).sum(dim=1, keepdim=True).double()
        scales = torch.where(norms > 0, 1.0 / (norms * count.sqrt()), torch.zeros_like(norms))
    else:
        scales = (1.0 / whole)[:, None].expand_as(norms)
    return Normalised(vectors * scales[:, :, None], scales)


def pulled_back(vectors: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """U = R^(-1/2) φ, what E is multiplied with: float64 [N, number of blocks, d_b] → float32 [N, number of blocks, d₀, d₁]."""
    root, spec = encoder.inverse_root, encoder.spec
    if root is not None:
        vectors = torch.stack([vectors[:, b] @ root[b].double() for b in range(vectors.shape[1])], dim=1)
    return vectors.float().reshape(len(vectors), spec.num_blocks, spec.block_rows, spec.block_columns)


class ContributionSink:
    """E of every example, and s_tᵀ [(L_i U_b R_iᵀ) ⊘ (√V_i + ε)] a_t for every position t, weight i and direction U.

    Args:
        projecting: Computes E; its projections and moments are used.
        loaded: The model.
        directions: U, float32 [K, number of blocks, d₀, d₁] on the model's device.
    """

    def __init__(self, projecting: ProjectingSink, loaded: LoadedModel, directions: torch.Tensor):
        self.projecting = projecting
        self.directions = directions
        self.contributions = torch.empty(0)
        """Of the last batch: float32 [B, K, T, weights]."""
        self._number = {weight.name: i for i, weight in enumerate(loaded.weights)}

    def begin(self, batch: Batch) -> None:
        """Starts at zero."""
        self.projecting.begin(batch)
        shape = (batch.size, len(self.directions), batch.input_ids.shape[1], len(self._number))
        self.contributions = torch.empty(0)  # the last batch's go before the next are made
        self.contributions = torch.zeros(shape, device=self.directions.device)

    def forward(self, weight: WeightInfo, a: torch.Tensor) -> Any:
        """What `projecting` keeps: a, or its projection."""
        return self.projecting.forward(weight, a)

    def backward(self, weight: WeightInfo, saved: torch.Tensor, s: torch.Tensor) -> None:
        """Adds the weight's part to E, and its contributions."""
        self.projecting.backward(weight, saved, s)
        left, right, inverse_root = self.projecting.operators(weight)  # [m, d0], [n, d1], [m, n]
        directions = self.directions[:, self.projecting.layout.block_of[weight.name]]  # [K, d0, d1]
        into = self.contributions[..., self._number[weight.name]]  # [B, K, T], a view
        if inverse_root is None:
            projected = narrow_product(s, left.T).float()  # [B, T, d0]
            moved = torch.einsum("btd,kde->bkte", projected, directions)
            into += (moved * saved.float()[:, None]).sum(dim=3)
            return
        for k, direction in enumerate(directions):
            matrix = (left @ direction @ right.T).mul_(inverse_root)  # [m, n]
            into[:, k] += ((s.float() @ matrix) * saved.float()).sum(dim=2)


@dataclasses.dataclass(frozen=True)
class _Documents:
    """What one pass through N documents gives."""

    vectors: torch.Tensor
    """float64 [N, number of blocks, d_b]."""
    scales: torch.Tensor
    """float64 [N, number of blocks]."""
    losses: list[float]
    by_position: list[np.ndarray]
    by_weight: list[np.ndarray]


def _document_pass(encoder: Encoder, documents: Sequence[Example], toward_query: torch.Tensor) -> _Documents:
    """Encodings, losses and contributions of documents, in planned batches."""
    spec, count = encoder.spec, len(documents)
    vectors = torch.empty(
        count, spec.num_blocks, spec.block_dimension, dtype=torch.float64, device=encoder.loaded.device
    )
    scales = vectors.new_empty(count, spec.num_blocks)
    found = _Documents(vectors, scales, [0.0] * count, [np.empty(0)] * count, [np.empty(0)] * count)
    block_of = [encoder.layout.block_of[weight.name] for weight in encoder.loaded.weights]
    sink = ContributionSink(encoder.sink, encoder.loaded, toward_query)

    def take(indices: list[int], losses: torch.Tensor) -> None:
        gradients = encoder.sink.encodings.reshape(len(indices), spec.num_blocks, -1)
        chosen = [documents[i] for i in indices]
        one = normalise(gradients, encoder.inverse_root, spec.normalisation, chosen)
        vectors[indices], scales[indices] = one.vectors, one.scales
        grids = sink.contributions[:, 0].double() * one.scales[:, None, block_of]  # [B, T, weights]
        by_position, by_weight = grids.sum(dim=2).cpu().numpy(), grids.sum(dim=1).cpu().numpy()
        for place, i in enumerate(indices):
            found.losses[i] = float(losses[place])
            found.by_position[i] = by_position[place, : len(documents[i].input_ids)]
            found.by_weight[i] = by_weight[place]

    check_size(encoder.run(documents, sink, take), documents)
    return found


def _query_pass(
    encoder: Encoder, query: Example, directions: torch.Tensor, check: Callable[[], None]
) -> list[np.ndarray]:
    """Contributions of the query's positions to its score with each of N documents, float64 [T] each."""
    size = len(query.input_ids) * len(encoder.loaded.weights)
    step = max(1, _CONTRIBUTION_BYTES // (4 * size))
    found: list[np.ndarray] = []
    for first in range(0, len(directions), step):
        check()
        sink = ContributionSink(encoder.sink, encoder.loaded, directions[first : first + step].contiguous())

        def take(indices: list[int], of_batch: torch.Tensor, sink: ContributionSink = sink) -> None:
            found.extend(sink.contributions[0].double().sum(dim=2).cpu().numpy())

        check_size(encoder.run([query], sink, take), [query])
    return found
