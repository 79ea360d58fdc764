"""One backward pass → what a sink makes of every attributed weight's activations and output gradients.

For a weight W_i (m×n) with inputs a_t and loss gradients s_t at its outputs, an example's gradient is G_i = Σ_t s_t a_tᵀ.
The pass hands each sink (a, s), never a weight gradient: all weights are frozen and the autograd graph starts at the
embedding's output, so what is computed is the forward pass and the backward pass to the inputs, the "frozen floor".
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from trackstar.batching import Batch
from trackstar.errors import TrackStarError
from trackstar.head import PlainHead
from trackstar.models import BlockLayout, LoadedModel, WeightInfo
from trackstar.projection import projection
from trackstar.second_moments import Exact, Factored, SecondMoments

_TILE_BYTES, _TILE_ROWS = 2 << 20, 256
"""A tile of a full gradient, formed, corrected and projected before the next: small enough for a cache that cores share, and of
no fewer rows than a product needs to run at full speed."""
_CUDA_TILE_BYTES = 1 << 30


class Sink(Protocol):
    """What becomes of activations and output gradients."""

    def begin(self, batch: Batch) -> None:
        """A new batch starts."""

    def forward(self, weight: WeightInfo, a: torch.Tensor) -> Any:
        """Sees a [B, T, n]; what it returns is kept until the backward pass."""

    def backward(self, weight: WeightInfo, saved: Any, s: torch.Tensor) -> None:
        """Sees s [B, T, m] with what `forward` returned."""


class GradientEngine:
    """Runs batches through a frozen model with hooks that feed a sink.

    Use it as a context manager: the hooks are gone afterwards.

    Args:
        loaded: The model.
        sink: Receives activations and output gradients of every attributed weight.
    """

    def __init__(self, loaded: LoadedModel, sink: Sink):
        self.loaded = loaded
        self.sink = sink
        self._head = PlainHead.of(loaded.model)
        self._handles: list[Any] = []
        self._shape = (0, 0)

    def __enter__(self) -> "GradientEngine":
        model = self.loaded.model
        self._handles = [model.get_input_embeddings().register_forward_hook(_start_graph)]
        for weight in self.loaded.weights:
            self._handles.append(model.get_submodule(weight.module).register_forward_hook(self._hook(weight)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def run(self, batch: Batch) -> torch.Tensor:
        """One forward and one backward pass.

        Args:
            batch: Padded examples.

        Returns:
            Loss of each example, −Σ log p over its supervised tokens: float32 [B] on the model's device.
        """
        batch = batch.to(self.loaded.device)
        self._shape = (batch.input_ids.shape[0], batch.input_ids.shape[1])
        self.sink.begin(batch)
        model = self.loaded.model
        with torch.enable_grad():
            if self._head is not None:
                hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # [B, T, h]
                flat = hidden.detach().flatten(0, 1)  # [B·T, h]
                supervised = batch.rows * hidden.shape[1] + batch.columns  # [S]
                losses, gradient = self._head.loss_and_gradient(flat.index_select(0, supervised), batch.targets)
                hidden.backward(torch.zeros_like(flat).index_copy_(0, supervised, gradient).view_as(hidden))
            else:
                logits = model(input_ids=batch.input_ids, use_cache=False).logits  # [B, T, v]
                at_targets = logits[batch.rows, batch.columns].float()
                token_losses = nn.functional.cross_entropy(at_targets, batch.targets, reduction="none")
                losses = token_losses.detach()
                token_losses.sum().backward()
        return torch.zeros(batch.size, device=losses.device).index_add_(0, batch.rows, losses)

    def _hook(self, weight: WeightInfo) -> Any:
        def on_forward(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            a = self._by_example(weight, arguments[0].detach())
            saved = self.sink.forward(weight, a)

            def on_backward(s: torch.Tensor) -> None:
                self.sink.backward(weight, saved, self._by_example(weight, s.detach()))

            output.register_hook(on_backward)

        return on_forward

    def _by_example(self, weight: WeightInfo, x: torch.Tensor) -> torch.Tensor:
        size, width = self._shape
        if x.shape[:-1] == (size, width):
            return x
        if x.shape[:-1] == (size * width,):
            return x.reshape(size, width, x.shape[-1])
        raise TrackStarError(
            f"{weight.module}: it saw {tuple(x.shape)} in a batch of {size} examples of {width} tokens: which example a row "
            "belongs to cannot be told (a mixture of experts?), so this weight cannot be attributed"
        )


def _start_graph(module: nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
    return output.detach().requires_grad_()


class ProjectingSink:
    """E_b = Σ_{i∈b} L_iᵀ (G_i ⊘ (√V_i + ε)) R_i for every example of a batch (arXiv 2410.17413, section 3).

    Without moments, and with factored ones (a row and a column scaling, folded into L and R), the activation is projected in
    the forward pass and the output gradient in the backward pass: L_iᵀ G_i R_i = Σ_t (L_iᵀ s_t)(R_iᵀ a_t)ᵀ, and no m×n
    gradient exists. Exact moments need G_i: it is formed, corrected, projected and dropped a tile at a time.

    Args:
        weights: Attributed weights.
        layout: Their blocks.
        block_rows: d₀.
        block_columns: d₁.
        seed: Seed of the projections.
        moments: Second moments of every weight, or None.
        device: Where the model runs.
        dtype: Type the model runs in.
        projections: L_i [m, d₀] and R_i [n, d₁] of every weight, in place of the Gaussian ones; factored moments are in them
            already (`whitening`), exact ones are not.

    Raises:
        TrackStarError: a weight without projections, or with ones of another shape.
    """

    def __init__(
        self,
        weights: Sequence[WeightInfo],
        layout: BlockLayout,
        block_rows: int,
        block_columns: int,
        seed: int,
        moments: SecondMoments | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        projections: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ):
        self.layout = layout
        self.block_rows, self.block_columns = block_rows, block_columns
        self.device = device
        self.encodings = torch.empty(0)
        """E of the last batch: float32 [B, number of blocks, d₀, d₁]."""
        # L_i and R_i where gradients are formed; else Lᵀ_i and Rᵀ_i with the factored moments folded in.
        self._left: dict[str, torch.Tensor] = {}
        self._right: dict[str, torch.Tensor] = {}
        self.inverse_roots: dict[str, torch.Tensor] = {}
        """1/(√V + ε) of the weights with exact moments, float32 [m, n]."""
        for weight in weights:
            moment = moments.by_weight[weight.name] if moments else None
            if projections is None:
                left = projection(seed, weight.name, "left", weight.outputs, block_rows)
                right = projection(seed, weight.name, "right", weight.inputs, block_columns)
                if isinstance(moment, Factored):
                    of_rows, of_columns = moment.scales()
                    left, right = left * of_rows[:, None], right * of_columns[:, None]
            else:
                left, right = _given(projections, weight, block_rows, block_columns)
            if isinstance(moment, Exact):
                assert moments is not None
                self.inverse_roots[weight.name] = (moment.values.sqrt() + moments.epsilon).reciprocal().to(device)
                self._left[weight.name], self._right[weight.name] = left.to(device), right.to(device)
            else:
                self._left[weight.name] = left.to(device, dtype).T.contiguous()
                self._right[weight.name] = right.to(device, dtype).T.contiguous()

    def operators(self, weight: WeightInfo) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """L [m, d₀] and R [n, d₁] of a weight, and 1/(√V + ε) [m, n] of exact moments; factored ones are in L and R."""
        left, right = self._left[weight.name], self._right[weight.name]
        if weight.name in self.inverse_roots:
            return left, right, self.inverse_roots[weight.name]
        return left.T, right.T, None

    def begin(self, batch: Batch) -> None:
        """Starts E at zero."""
        shape = (batch.size, len(self.layout.names), self.block_rows, self.block_columns)
        self.encodings = torch.empty(0)  # the last batch's go before the next are made
        self.encodings = torch.zeros(shape, device=self.device)

    def forward(self, weight: WeightInfo, a: torch.Tensor) -> torch.Tensor:
        """R_iᵀ a_t [B, T, d₁], or a itself where the full gradient is needed."""
        if weight.name in self.inverse_roots:
            return a
        return narrow_product(a, self._right[weight.name])

    def backward(self, weight: WeightInfo, saved: torch.Tensor, s: torch.Tensor) -> None:
        """Adds the weight's part to its block."""
        block = self.encodings[:, self.layout.block_of[weight.name]]  # [B, d0, d1], a view
        left = self._left[weight.name]
        if weight.name in self.inverse_roots:
            add_corrected(
                block, s.float(), saved.float(), self.inverse_roots[weight.name], left, self._right[weight.name]
            )
        else:
            projected = narrow_product(s, left)  # [B, T, d0]
            block += torch.bmm(projected.float().transpose(1, 2), saved.float())


class SquareSumSink:
    """Σ over examples of G_i ⊙ G_i, the uncentred second moment of the gradient, weight by weight.

    Args:
        weights: Attributed weights.
        device: Where the model runs.
    """

    def __init__(self, weights: Sequence[WeightInfo], device: torch.device | str = "cpu"):
        self.sums = {weight.name: torch.zeros(weight.outputs, weight.inputs, device=device) for weight in weights}
        """float32 [m, n] a weight."""
        self.count = 0

    def begin(self, batch: Batch) -> None:
        """Counts the examples."""
        self.count += batch.size

    def forward(self, weight: WeightInfo, a: torch.Tensor) -> torch.Tensor:
        """Keeps a."""
        return a

    def backward(self, weight: WeightInfo, saved: torch.Tensor, s: torch.Tensor) -> None:
        """Adds the squares of each example's gradient."""
        total = self.sums[weight.name]
        for s_one, a_one in zip(s.float(), saved.float(), strict=True):
            gradient = s_one.T @ a_one  # [m, n]
            if torch.isfinite(gradient.sum()):  # an example that overflows spoils nothing else
                total.addcmul_(gradient, gradient)


def narrow_product(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Products of each x_t with a few vectors.

    Args:
        x: [B, T, n].
        rows: [d, n].

    Returns:
        [B, T, d]. In float32 on a CPU by oneDNN: the default product took 1.3 times as long at d = 64, and 1.7 times at d = 16.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, rows, None, "none", [], "")
    return nn.functional.linear(x, rows)


def add_corrected(
    block: torch.Tensor,
    s: torch.Tensor,
    a: torch.Tensor,
    inverse_root: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
) -> None:
    """block += Lᵀ (G ⊙ inverse_root) R for each example, with G = sᵀ a formed a tile of rows at a time.

    Args:
        block: [B, d₀, d₁], changed in place.
        s: [B, T, m].
        a: [B, T, n].
        inverse_root: 1/(√V + ε), [m, n].
        left: L, [m, d₀].
        right: R, [n, d₁].
    """
    m, n = inverse_root.shape
    if s.is_cuda:
        examples = max(1, _CUDA_TILE_BYTES // (4 * m * n))
        for start in range(0, len(s), examples):
            span = slice(start, start + examples)
            gradient = torch.bmm(s[span].transpose(1, 2), a[span]).mul_(inverse_root)  # [b, m, n]
            block[span] += left.T @ (gradient @ right)
        return
    rows = min(m, max(_TILE_ROWS, _TILE_BYTES // (4 * n)))
    tile = torch.empty(rows, n)
    corrected = torch.empty(len(s), rows, right.shape[1])  # (G ⊙ inverse_root) R
    each = list(zip(s.transpose(1, 2).unbind(), a.unbind(), corrected.unbind(), strict=True))
    for first in range(0, m, rows):
        last = min(first + rows, m)
        scale, gradient = inverse_root[first:last], tile[: last - first]
        for s_one, a_one, corrected_one in each:
            torch.mm(s_one[first:last], a_one, out=gradient)
            gradient.mul_(scale)
            torch.mm(gradient, right, out=corrected_one[: last - first])
        block += left[first:last].T @ corrected[:, : last - first]  # [d0, r] @ [B, r, d1]


def _given(
    projections: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    weight: WeightInfo,
    block_rows: int,
    block_columns: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight's projections of those that were given, checked."""
    if weight.name not in projections:
        raise TrackStarError(f"projections: none for {weight.name}: another model's? Run `trackstar fit` again")
    left, right = projections[weight.name]
    wanted = (weight.outputs, block_rows), (weight.inputs, block_columns)
    if (left.shape, right.shape) != wanted:
        raise TrackStarError(
            f"projections: {weight.name} has {tuple(left.shape)} and {tuple(right.shape)}, wanted are {wanted[0]} and "
            f"{wanted[1]}: another index's? Run `trackstar fit` again"
        )
    return left, right
