"""Projections that the data chose: orthogonal ones behind the inverse roots of the covariances of both sides of a weight.

    E_i = L'_iᵀ G_i R'_i,   L'_i = (C_s + δ_s I)^(-1/2) L_i,   R'_i = (C_a + δ_a I)^(-1/2) R_i

with L_i and R_i of `orthogonal_projection`, C_s and C_a of `covariances`, and δ = damping · mean eigenvalue of each. They are
applied as quickly as Gaussian ones. Factored second moments, G ⊘ √V = D_s G D_a with diagonal D, are folded in: covariances are
then those of D_s s and D_a a, and L' = D_s (D_s C_s D_s + δ I)^(-1/2) L. Exact ones are not: there G̃ = G ⊘ (√V + ε) is projected.

A Kronecker-factored covariance of vec(G̃) is C_s ⊗ C_a divided by the trace that both have: so C_a is divided by it, and a
weight has the same share in a block that several are pooled in, whatever the size of its gradients.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch

from trackstar import second_moments, tensors
from trackstar.covariances import CovarianceSums, Part
from trackstar.errors import TrackStarError
from trackstar.projection import Side, orthogonal_projection
from trackstar.second_moments import Exact, SecondMoments
from trackstar.spec import Spec

_CONTENTS = "projections"


@dataclasses.dataclass(frozen=True, eq=False)
class Projections:
    """L' and R' of the attributed weights."""

    by_weight: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Weight name → L' [m, d₀] and R' [n, d₁], float32 on the CPU."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over every name and value."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.named().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().reshape(-1).view("u1").data)
        return digest.hexdigest()[:16]

    def named(self) -> dict[str, torch.Tensor]:
        """`<weight>.left` and `<weight>.right` → tensor."""
        both = self.by_weight.items()
        left = {f"{name}.left": pair[0] for name, pair in both}
        return left | {f"{name}.right": pair[1] for name, pair in both}

    @classmethod
    def of_named(cls, named: Mapping[str, torch.Tensor]) -> "Projections":
        """From `named`'s tensors."""
        names = [key.removesuffix(".left") for key in named if key.endswith(".left")]
        return cls({name: (named[f"{name}.left"], named[f"{name}.right"]) for name in names})


def save(projections: Projections, uri: str) -> None:
    """Writes one safetensors file; equal projections give equal bytes."""
    tensors.save(uri, projections.named(), {"contents": _CONTENTS})


def read(uri: str) -> Projections:
    """Reads what `save` wrote.

    Raises:
        TrackStarError: not such a file.
    """
    return Projections.of_named(tensors.load_contents(uri, _CONTENTS, "whitened projections")[0])


def read_for(uri: str, spec: Spec) -> Projections:
    """Reads the projections that a spec names.

    Raises:
        TrackStarError: they are not there, or others are.
    """
    projections = read(uri)
    if projections.fingerprint != spec.projection_fingerprint:
        raise TrackStarError(f"{uri}: these projections are not the index's; run fit again")
    return projections


def whitened(
    parts: Iterable[Part],
    sums: CovarianceSums,
    spec: Spec,
    moments: SecondMoments | None,
    left_exponent: float = -0.5,
    right_exponent: float = -0.5,
) -> Projections:
    """Projections of covariances that are in memory.

    Args:
        parts: All of the weights' covariances.
        sums: Their sums.
        spec: Seed and shape of the projections, and the damping.
        moments: Second moments of every weight, or None.
        left_exponent: Of C_s; -1/2 makes the output side white, -1/4 half so, 0 leaves the side as it is.
        right_exponent: Of C_a.
    """
    exponents = {"left": left_exponent, "right": right_exponent}
    named: dict[str, torch.Tensor] = {}
    for part in parts:
        named |= folded(part, sums.mean(part.key), spec, moments, exponents[part.side])
    return Projections.of_named(named)


def part_file(part: Part) -> str:
    """Name of the file that the projections of one covariance go to."""
    return f"{part.key}.safetensors"


def fold_file(part: Part, sums_uri: str, spec: Spec, moments_uri: str | None, uri: str) -> None:
    """Makes of one covariance's sum the projections that it serves, from file to file.

    Args:
        part: The covariance.
        sums_uri: File with its sum.
        spec: As for `whitened`.
        moments_uri: Second moments, where they are factored.
        uri: File to write, for `collect`.
    """
    sums = CovarianceSums.load(sums_uri, (part.key,))
    moments = second_moments.read(moments_uri) if moments_uri is not None else None
    tensors.save(uri, folded(part, sums.mean(part.key), spec, moments), {})


def collect(uris: Iterable[str]) -> Projections:
    """All projections of what `fold_file` wrote."""
    named: dict[str, torch.Tensor] = {}
    for uri in uris:
        named |= tensors.load(uri)[0]
    return Projections.of_named(named)


def folded(
    part: Part, covariance: torch.Tensor, spec: Spec, moments: SecondMoments | None, exponent: float = -0.5
) -> dict[str, torch.Tensor]:
    """L' or R' of each weight that a covariance serves.

    Args:
        part: Which covariance.
        covariance: C, float64 [k, k].
        spec: Seed and shape of the projections, and the damping.
        moments: Second moments; exact ones are in the covariance already.
        exponent: Of C.

    Returns:
        `<weight>.<side>` → float32 [k, d₀ or d₁] on the CPU; zero for a weight that got no gradient.
    """
    columns = spec.block_rows if part.side == "left" else spec.block_columns
    if part.exact and part.side == "right" and covariance.trace() > 0:
        covariance = covariance / covariance.trace()
    plain: DampedPower | None = None
    results = {}
    for name in part.serves:
        directions = orthogonal_projection(spec.projection_seed, name, part.side, part.size, columns)
        scale = None if part.exact else factored_scale(moments, name, part.side)
        if exponent == 0:
            result = directions if scale is None else scale[:, None] * directions
        elif scale is None:
            plain = plain or DampedPower(covariance, spec.whitening_damping)
            result = plain.apply(exponent, directions)
        else:
            scaled = DampedPower(scale[:, None] * covariance * scale, spec.whitening_damping)
            result = scale[:, None] * scaled.apply(exponent, directions)
        results[f"{name}.{part.side}"] = result.float()
    return results


class DampedPower:
    """(C + δI)^p by a float64 eigendecomposition, on the GPU where there is one; δ = damping · mean eigenvalue.

    Args:
        covariance: C, float64 [k, k], symmetric.
        damping: In units of the mean eigenvalue.
    """

    def __init__(self, covariance: torch.Tensor, damping: float):
        self._sigma, self._u = torch.empty(0), torch.empty(0)
        self._is_zero = not bool(covariance.trace() > 0)
        if not self._is_zero:
            sigma, self._u = torch.linalg.eigh(covariance.to("cuda" if torch.cuda.is_available() else "cpu"))
            sigma = sigma.clamp_min(0.0)
            self._sigma = sigma + damping * sigma.mean()

    def apply(self, exponent: float, x: torch.Tensor) -> torch.Tensor:
        """(C + δI)^p x, float64 [k, d] on the CPU; zero where C is, and in directions that C + δI does not reach."""
        if self._is_zero:
            return torch.zeros_like(x)
        powers = torch.where(self._sigma > 0, self._sigma.pow(exponent), 0.0)
        return (self._u @ (powers[:, None] * (self._u.T @ x.to(self._u.device)))).cpu()


def factored_scale(moments: SecondMoments | None, weight: str, side: Side) -> torch.Tensor | None:
    """What factored second moments scale a side of a weight by, float64 [k]; None without them."""
    moment = moments.by_weight[weight] if moments is not None else None
    if moment is None or isinstance(moment, Exact):
        return None
    rows, columns = moment.scales()
    return (rows if side == "left" else columns).double()
