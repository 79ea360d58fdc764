"""Covariances of what goes into and comes back out of every attributed weight: what whitened projections are made of.

Where no gradient is formed (no second moments, or factored ones), they are of the tokens' vectors: C_a = mean a_t a_tᵀ [n, n]
and C_s = mean s_t s_tᵀ [m, m], K-FAC's factors (Martens and Grosse, arXiv 1503.05671). Where the corrected gradient G̃ of each
example is formed (exact second moments), they are of its sides: mean G̃ᵀ G̃ [n, n] and mean G̃ G̃ᵀ [m, m], Shampoo's (Gupta et
al., arXiv 1802.09568). All of them together may be too large for one pass over the sample: a pass makes as many as fit.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trackstar import tensors
from trackstar.batching import Batch
from trackstar.errors import TrackStarError
from trackstar.projection import Side

if TYPE_CHECKING:
    from trackstar.models import LoadedModel, WeightInfo


@dataclasses.dataclass(frozen=True)
class Part:
    """One covariance.

    Args:
        weight: Name of the weight.
        side: "left" is that of its outputs, "right" that of its inputs.
        size: m or n.
        serves: The weights whose projections are made of it: those that read the same inputs, this one first.
        exact: Whether it is of corrected gradients instead of tokens.
    """

    weight: str
    side: Side
    size: int
    serves: tuple[str, ...]
    exact: bool = False

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.weight}.{self.side}"

    @property
    def num_bytes(self) -> int:
        """Bytes of its sum, float32."""
        return 4 * self.size**2


class CovarianceSums:
    """Running sums behind covariances.

    Args:
        sums: `Part.key` → Σ, float32 [k, k].
        counts: `Part.key` → tokens, or examples, in the sum.
    """

    def __init__(self, sums: dict[str, torch.Tensor], counts: dict[str, int]):
        self.sums = sums
        self.counts = counts

    def mean(self, key: str) -> torch.Tensor:
        """One covariance, float64 [k, k] on the CPU.

        Raises:
            TrackStarError: nothing was added, or the sum is not finite.
        """
        if not self.counts[key]:
            raise TrackStarError(f"the covariance {key}: its sample is empty: no example of it could be encoded")
        mean = self.sums[key].to("cpu", torch.float64) / self.counts[key]
        if not torch.isfinite(mean).all():
            raise TrackStarError(f"the covariance {key}: holds values that are not finite; is the model sound?")
        return mean

    def merge(self, other: "CovarianceSums") -> "CovarianceSums":
        """Both sums together."""
        return CovarianceSums(
            {key: total + other.sums[key] for key, total in self.sums.items()},
            {key: count + other.counts[key] for key, count in self.counts.items()},
        )

    def save(self, uri: str) -> None:
        """Writes one safetensors file."""
        tensors.save(uri, self.sums, {"counts": json.dumps(self.counts, sort_keys=True)})

    @classmethod
    def load(cls, uri: str, only: tuple[str, ...] | None = None) -> "CovarianceSums":
        """Reads what `save` wrote, all of it or the sums named."""
        sums, metadata = tensors.load(uri, only)
        return cls(sums, json.loads(metadata["counts"]))


class CovarianceSink:
    """Adds up covariances (a `gradients.Sink`).

    Tokens that count are those up to the last one that predicts a supervised token: the loss gradient of the others is zero.

    Args:
        parts: Which covariances.
        inverse_roots: 1/(√V + ε) [m, n] of the weights with exact second moments.
        device: Where the model runs.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        inverse_roots: Mapping[str, torch.Tensor],
        device: torch.device | str = "cpu",
    ):
        self.total = CovarianceSums(
            {part.key: torch.zeros(part.size, part.size, device=device) for part in parts},
            {part.key: 0 for part in parts},
        )
        self._formed = {part.weight for part in parts if part.exact}
        self._inverse_roots = inverse_roots
        self._counted = torch.empty(0)

    def begin(self, batch: Batch) -> None:
        """Finds the tokens that count, [B, T]."""
        device = batch.input_ids.device
        last = torch.full((batch.size,), -1, device=device).scatter_reduce(0, batch.rows, batch.columns, "amax")
        self._counted = torch.arange(batch.input_ids.shape[1], device=device) <= last[:, None]

    def forward(self, weight: "WeightInfo", a: torch.Tensor) -> torch.Tensor | None:
        """Adds the tokens' a aᵀ, or keeps a where gradients are formed."""
        if weight.name in self._formed:
            return a
        self._add_tokens(f"{weight.name}.right", a)
        return None

    def backward(self, weight: "WeightInfo", saved: torch.Tensor | None, s: torch.Tensor) -> None:
        """Adds the tokens' s sᵀ, or each example's G̃ G̃ᵀ and G̃ᵀ G̃."""
        if saved is None:
            self._add_tokens(f"{weight.name}.left", s)
            return
        scale = self._inverse_roots[weight.name]
        for s_one, a_one in zip(s.float(), saved.float(), strict=True):
            corrected = (s_one.T @ a_one).mul_(scale)  # [m, n]
            if torch.isfinite(corrected.sum()):  # an example that overflows spoils nothing else
                self._add(f"{weight.name}.left", corrected.T)
                self._add(f"{weight.name}.right", corrected)

    def _add_tokens(self, key: str, x: torch.Tensor) -> None:
        if key not in self.total.sums:
            return
        finite = torch.isfinite(x.sum(dim=(1, 2), dtype=torch.float32))  # [B]
        rows = x[self._counted & finite[:, None]].float()  # [S, k]
        self._add(key, rows, len(rows))

    def _add(self, key: str, rows: torch.Tensor, count: int = 1) -> None:
        """Adds rowsᵀ rows, rows [r, k], to a sum that is wanted."""
        total = self.total.sums.get(key)
        if total is not None:
            total.addmm_(rows.T, rows)
            self.total.counts[key] += count


def shared_inputs(loaded: "LoadedModel") -> dict[str, str]:
    """For each weight the first one that reads the very same tensor (query, key and value; gate and up): perhaps itself.

    Found out by running two tokens through the model. One without weights (torch's "meta" device) does not run: there each weight
    is taken by itself, which gives more covariances than there will be.
    """
    found = {weight.name: weight.name for weight in loaded.weights}
    if loaded.device.type == "meta":
        return found
    seen: dict[tuple[int, int], str] = {}
    kept: list[torch.Tensor] = []  # so that no tensor takes the identity of one that is gone

    def hook(weight: "WeightInfo") -> Any:
        def on_forward(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            a = arguments[0]
            kept.append(a)
            found[weight.name] = seen.setdefault((id(a), a._version), weight.name)

        return on_forward

    handles = [
        loaded.model.get_submodule(weight.module).register_forward_pre_hook(hook(weight)) for weight in loaded.weights
    ]
    try:
        with torch.no_grad():
            loaded.model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=loaded.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def plan_parts(weights: "Sequence[WeightInfo]", shared: Mapping[str, str], exact: Collection[str]) -> list[Part]:
    """The covariances that the weights' projections take, in the weights' order.

    Args:
        weights: The attributed ones.
        shared: `shared_inputs` of them.
        exact: Names of those with exact second moments, whose corrections differ, so that they share nothing.
    """
    readers: dict[str, list[str]] = {}
    for weight in weights:
        if weight.name not in exact:
            readers.setdefault(shared[weight.name], []).append(weight.name)
    served = {names[0]: tuple(names) for names in readers.values()}
    parts = []
    for weight in weights:
        formed = weight.name in exact
        if formed or weight.name in served:
            serves = (weight.name,) if formed else served[weight.name]
            parts.append(Part(weight.name, "right", weight.inputs, serves, formed))
        parts.append(Part(weight.name, "left", weight.outputs, (weight.name,), formed))
    return parts


def plan_passes(parts: Sequence[Part], num_bytes: int) -> list[list[Part]]:
    """Groups of parts whose sums take at most so many bytes, in order; both of a weight stay together.

    A weight whose sums take more is a group by itself. What comes out of the passes does not depend on how they are grouped.
    """
    passes: list[list[Part]] = []
    size = 0
    by_weight: dict[str, list[Part]] = {}
    for part in parts:
        by_weight.setdefault(part.weight, []).append(part)
    for of_weight in by_weight.values():
        more = sum(part.num_bytes for part in of_weight)
        if passes and size + more <= num_bytes:
            passes[-1] += of_weight
            size += more
        else:
            passes.append(list(of_weight))
            size = more
    return passes


def pass_name(parts: Sequence[Part]) -> str:
    """A name for the sums of one pass, by what is summed."""
    return hashlib.sha256(" ".join(part.key for part in parts).encode()).hexdigest()[:32]
