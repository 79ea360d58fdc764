"""What the loss of each single token contributes: all tokens' at once, in one pass forwards.

E is linear in the gradient, so a token's loss contributes its derivative along one fixed change of the weights,
Δ_i = w_b [(L_i U_b R_iᵀ) ⊘ (√V_i + ε)]. A pass with dual numbers gives that derivative of every token's loss together; backwards
it would take a pass a token. Only the outputs of attributed weights get a part of their own, Δ_i a_t; no changed weight is kept.
"""

import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from trackstar.batching import Batch, Example, collate, plan_batches
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.gradients import narrow_product
from trackstar.head import PlainHead
from trackstar.models import WeightInfo

_LOGGER = logging.getLogger(__name__)
_SQUARES = 1 << 22
"""Pairs of tokens in a batch: plain attention holds so many numbers a head, several times over."""
_LEVEL = threading.Lock()
"""Dual numbers of one pass at a time exist in a process."""


@dataclasses.dataclass(frozen=True)
class Directions:
    """Along which change of the weights each of N examples' losses are differentiated."""

    matrices: torch.Tensor
    """U: float32 [N or 1, number of blocks, d₀, d₁] on the model's device."""
    scales: torch.Tensor
    """w: float32 [N, number of blocks]."""

    def of(self, indices: Sequence[int]) -> "Directions":
        """Those of some examples."""
        chosen = list(indices)
        return Directions(self.matrices if len(self.matrices) == 1 else self.matrices[chosen], self.scales[chosen])


def loss_derivatives(encoder: Encoder, examples: Sequence[Example], directions: Directions) -> list[np.ndarray] | None:
    """The derivative of each token's loss along its example's direction.

    Args:
        encoder: Has the model, its projections and moments.
        examples: N examples.
        directions: N directions.

    Returns:
        For each example float64 [T], 0 where a token is not supervised; None where the model has an operation that forward-mode
        differentiation does not know.

    Raises:
        TrackStarError: an example that the device's memory cannot take.
    """
    found: list[np.ndarray] = [np.zeros(len(example.input_ids)) for example in examples]
    lengths = [len(example.input_ids) for example in examples]
    longest = max(lengths, default=1)
    batches = plan_batches(lengths, max(longest, min(encoder.spec.batch_tokens, _SQUARES // longest)))

    def run(indices: list[int]) -> None:
        batch = collate([examples[i] for i in indices]).to(encoder.loaded.device)
        values = _token_derivatives(encoder, head, batch, directions.of(indices)).double().cpu().numpy()
        rows, columns = batch.rows.cpu().numpy(), batch.columns.cpu().numpy()
        for place, i in enumerate(indices):
            of_example = rows == place
            found[i][columns[of_example] + 1] = values[of_example]

    try:
        with encoder.lock:
            head = PlainHead.of(encoder.loaded.model)
            too_large = encoder.limit.each(batches, lengths, run)
    except NotImplementedError as error:
        _LOGGER.warning(
            "%s: contributions by predicted token are left out, since the model has an operation that cannot be differentiated "
            "forwards (%s)",
            type(encoder.loaded.model).__name__,
            str(error).strip().splitlines()[0][:200],
        )
        return None
    check_size(too_large, examples)
    return found


def _token_derivatives(encoder: Encoder, head: PlainHead | None, batch: Batch, directions: Directions) -> torch.Tensor:
    """Derivatives of the supervised tokens' losses, float32 [S]."""
    model = encoder.loaded.model
    # Of the attentions, only the plain one has a forward-mode derivative.
    with (
        _LEVEL,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        forward_ad.dual_level(),
        _Tangents(encoder, batch, directions),
    ):
        if head is not None:
            hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # [B, T, h]
            values, tangents = forward_ad.unpack_dual(hidden[batch.rows, batch.columns])  # [S, h]
            _, gradient = head.loss_and_gradient(values, batch.targets)
            return (gradient.float() * _or_zeros(tangents, values).float()).sum(dim=1)
        logits = model(input_ids=batch.input_ids, use_cache=False).logits[batch.rows, batch.columns].float()  # [S, v]
        losses, tangents = forward_ad.unpack_dual(nn.functional.cross_entropy(logits, batch.targets, reduction="none"))
        return _or_zeros(tangents, losses)


class _Tangents:
    """Adds Δ_i a_t to the tangent of every attributed weight's output, while it is entered."""

    def __init__(self, encoder: Encoder, batch: Batch, directions: Directions):
        self._encoder = encoder
        self._directions = directions
        self._shape = batch.input_ids.shape
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        loaded = self._encoder.loaded
        for weight in loaded.weights:
            module = loaded.model.get_submodule(weight.module)
            self._handles.append(module.register_forward_hook(self._hook(weight)))

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, weight: WeightInfo) -> Any:
        def on_forward(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            a = forward_ad.unpack_dual(arguments[0]).primal
            change = self._change(weight, a.reshape(*self._shape, -1)).to(output.dtype)  # [B, T, m]
            value, tangent = forward_ad.unpack_dual(output)
            change = change.reshape(value.shape)
            return forward_ad.make_dual(value, change if tangent is None else tangent + change)

        return on_forward

    def _change(self, weight: WeightInfo, a: torch.Tensor) -> torch.Tensor:
        """Δ_i a_t for each example and position: [B, T, n] → [B, T, m]."""
        sink = self._encoder.sink
        left, right, inverse_root = sink.operators(weight)  # [m, d0], [n, d1], [m, n]
        block = sink.layout.block_of[weight.name]
        matrices, scales = self._directions.matrices[:, block], self._directions.scales[:, block, None, None]
        if inverse_root is None:
            projected = narrow_product(a, right.T).float() @ matrices.transpose(1, 2)  # [B, T, d1] @ [B or 1, d1, d0]
            return (scales * projected).to(left.dtype) @ left.T
        values = a.float()
        if len(matrices) == 1:
            return scales * (values @ (left @ matrices[0] @ right.T).mul_(inverse_root).T)
        # One full matrix at a time: there may be as many as documents.
        products = [
            one @ (left @ matrix @ right.T).mul_(inverse_root).T for one, matrix in zip(values, matrices, strict=True)
        ]
        return scales * torch.stack(products)


def _or_zeros(tangents: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(values) if tangents is None else tangents


def check_size(too_large: Mapping[int, str], examples: Sequence[Example]) -> None:
    """Raises TrackStarError where an example was too large for the device's memory: place in `examples` → reason."""
    for i, reason in too_large.items():
        raise TrackStarError(f"{examples[i].example_id or 'the query'}: {reason}")
