"""The preconditioner R, block-diagonal: accumulate, mix, inverse root, save, load (arXiv 2410.17413, section 3).

R_b = mean of vec(E_b) vec(E_b)ᵀ over a sample of examples. Encodings are multiplied with (R_b + δ_b I)^(-1/2), where
δ_b = damping · mean eigenvalue of the block.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch

from trackstar import storage, tensors
from trackstar.errors import TrackStarError

_ROWS_AT_ONCE = 1024


class GramSum:
    """A running Σ vec(E_b) vec(E_b)ᵀ a block, in float64.

    Args:
        num_blocks: Number of blocks.
        block_dimension: d₀·d₁.
    """

    def __init__(self, num_blocks: int, block_dimension: int):
        self.sums = [torch.zeros(block_dimension, block_dimension, dtype=torch.float64) for _ in range(num_blocks)]
        """float64 [d₀d₁, d₀d₁] a block."""
        self.count = 0
        self._waiting: list[torch.Tensor] = []

    def add(self, encodings: torch.Tensor) -> None:
        """Adds examples, [N, number of blocks, d₀d₁] float32."""
        self._waiting.append(encodings)
        self.count += len(encodings)
        if sum(map(len, self._waiting)) >= _ROWS_AT_ONCE:
            self._flush()

    def merge(self, other: "GramSum") -> None:
        """Adds another sum."""
        other._flush()
        self._flush()
        for mine, theirs in zip(self.sums, other.sums, strict=True):
            mine += theirs
        self.count += other.count

    def mean(self) -> list[torch.Tensor]:
        """R, a block each: float64 [d₀d₁, d₀d₁].

        Raises:
            TrackStarError: nothing was added.
        """
        self._flush()
        if not self.count:
            raise TrackStarError("the preconditioner's sample is empty: no example of it could be encoded")
        return [total / self.count for total in self.sums]

    def save(self, uri: str) -> None:
        """Writes the sums as one safetensors file."""
        self._flush()
        contents = {f"{block:05d}": total for block, total in enumerate(self.sums)}
        tensors.save(uri, contents, {"count": str(self.count)})

    @classmethod
    def load(cls, uri: str) -> "GramSum":
        """Reads what `save` wrote."""
        contents, metadata = tensors.load(uri)
        result = cls(0, 0)
        result.sums = [contents[name] for name in sorted(contents)]
        result.count = int(metadata["count"])
        return result

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat(self._waiting)  # [N, blocks, d_b]
        self._waiting = []
        for block, total in enumerate(self.sums):
            part = rows[:, block]
            total += (part.T @ part).to(device="cpu", dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Preconditioner:
    """R with its eigendecomposition R_b = U diag(σ) Uᵀ, and the roots that follow from it."""

    eigenvalues: tuple[torch.Tensor, ...]
    """float64 [d_b] a block, ascending, not negative."""
    eigenvectors: tuple[torch.Tensor, ...]
    """float64 [d_b, d_b] a block, in columns."""
    damping: float
    """c: each block's eigenvalues are damped by c · their mean."""
    count: int
    """Examples behind R."""

    @classmethod
    def of(cls, matrices: Sequence[torch.Tensor], damping: float, count: int) -> "Preconditioner":
        """Decomposes R (float64, one matrix a block), on the GPU where there is one.

        Raises:
            TrackStarError: a block is not finite, or zero.
        """
        values, vectors = [], []
        for block, matrix in enumerate(matrices):
            if not torch.isfinite(matrix).all():
                raise TrackStarError(f"preconditioner: block {block} holds values that are not finite")
            if not matrix.diagonal().sum() > 0:
                raise TrackStarError(f"preconditioner: block {block} is zero: no example has a gradient there")
            device = "cuda" if torch.cuda.is_available() else "cpu"
            sigma, u = torch.linalg.eigh(matrix.to(device))
            values.append(sigma.clamp_min(0.0).cpu())
            vectors.append(u.cpu())
        return cls(tuple(values), tuple(vectors), damping, count)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.eigenvalues)

    def matrices(self) -> list[torch.Tensor]:
        """R without damping, float64 a block."""
        return [(u * sigma) @ u.T for sigma, u in zip(self.eigenvalues, self.eigenvectors, strict=True)]

    def power(self, block: int, exponent: float) -> torch.Tensor:
        """(R_b + δ_b I)^exponent, float64 [d_b, d_b]."""
        sigma, u = self.eigenvalues[block], self.eigenvectors[block]
        damped = sigma + self.damping * sigma.mean()
        return (u * damped.pow(exponent)) @ u.T

    @cached_property
    def inverse_root(self) -> torch.Tensor:
        """(R_b + δ_b I)^(-1/2): float32 [number of blocks, d_b, d_b]."""
        return torch.stack([self.power(block, -0.5).float() for block in range(self.num_blocks)])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of eigenvalues, damping and count: what the spec names."""
        digest = hashlib.sha256(f"{self.damping} {self.count}".encode())
        for sigma, u in zip(self.eigenvalues, self.eigenvectors, strict=True):
            digest.update(sigma.numpy().tobytes())
            digest.update(np.ascontiguousarray(u[:, -1].numpy()).tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str) -> None:
        """Writes one safetensors file a block into `folder`: σ, U and the inverse root."""
        metadata = {"damping": repr(self.damping), "count": str(self.count), "num_blocks": str(self.num_blocks)}
        for block in range(self.num_blocks):
            contents = {
                "eigenvalues": self.eigenvalues[block],
                "eigenvectors": self.eigenvectors[block].contiguous(),
                "inverse_root": self.power(block, -0.5).float(),
            }
            tensors.save(storage.join(folder, _file_name(block)), contents, metadata)

    @classmethod
    def load(cls, folder: str) -> "Preconditioner":
        """Reads what `save` wrote.

        Raises:
            TrackStarError: a file is missing or does not belong with the others.
        """
        first, metadata = tensors.load(storage.join(folder, _file_name(0)))
        blocks = [first]
        for block in range(1, int(metadata["num_blocks"])):
            contents, other = tensors.load(storage.join(folder, _file_name(block)))
            if other != metadata:
                raise TrackStarError(
                    f"{folder}: block {block} is of another preconditioner than block 0; run fit again"
                )
            blocks.append(contents)
        return cls(
            tuple(contents["eigenvalues"] for contents in blocks),
            tuple(contents["eigenvectors"] for contents in blocks),
            float(metadata["damping"]),
            int(metadata["count"]),
        )


def load_inverse_root(folder: str) -> torch.Tensor:
    """Only (R_b + δ_b I)^(-1/2), what encoding needs: float32 [number of blocks, d_b, d_b]."""
    first, metadata = tensors.load(storage.join(folder, _file_name(0)), only=("inverse_root",))
    roots = [first["inverse_root"]]
    for block in range(1, int(metadata["num_blocks"])):
        contents, _ = tensors.load(storage.join(folder, _file_name(block)), only=("inverse_root",))
        roots.append(contents["inverse_root"])
    return torch.stack(roots)


def load_blocks(folder: str) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Block after block, one in memory at a time: σ float64 [d_b], U float64 [d_b, d_b] in columns, and δ = c · mean(σ)."""
    block, count = 0, 1
    while block < count:
        contents, metadata = tensors.load(storage.join(folder, _file_name(block)), only=("eigenvalues", "eigenvectors"))
        count = int(metadata["num_blocks"])
        sigma = contents["eigenvalues"]
        yield sigma, contents["eigenvectors"], float(metadata["damping"]) * float(sigma.mean())
        block += 1


def num_documents(folder: str) -> int:
    """Documents that the saved preconditioner is of."""
    _, metadata = tensors.load(storage.join(folder, _file_name(0)), only=("eigenvalues",))
    return int(metadata["count"])


def crossing_component(dimension: int) -> int:
    """round(1000 · d / 65,536): where the eigenvalue curves are to cross."""
    return round(1000 * dimension / 65536)


def mixing_weight(train: Preconditioner, evaluation: Preconditioner) -> float:
    """λ = σ_train[k] / (σ_eval[k] + σ_train[k]) at the crossing component k, over the eigenvalues of all blocks.

    With few queries R_eval may have no component k; then its last component above rounding is taken.
    """
    sigma_train = torch.cat(train.eigenvalues).sort(descending=True).values
    sigma_eval = torch.cat(evaluation.eigenvalues).sort(descending=True).values
    rank = int((sigma_eval > 1e-9 * sigma_eval[0]).sum())
    component = min(crossing_component(len(sigma_train)), rank - 1)
    numerator = float(sigma_train[component])
    return numerator / (numerator + float(sigma_eval[component]))


def mix(train: Preconditioner, evaluation: Preconditioner, weight: float) -> Preconditioner:
    """R = λ R_eval + (1 − λ) R_train, with R_train's damping.

    Raises:
        TrackStarError: λ is outside [0, 1].
    """
    if not 0.0 <= weight <= 1.0:
        raise TrackStarError(f"mixing weight λ = {weight}: it must lie between 0 (R_train alone) and 1 (R_eval alone)")
    matrices = [
        weight * of_eval + (1.0 - weight) * of_train
        for of_eval, of_train in zip(evaluation.matrices(), train.matrices(), strict=True)
    ]
    return Preconditioner.of(matrices, train.damping, train.count + evaluation.count)


def change_of_preconditioner(stored: Preconditioner, wanted: Preconditioner) -> torch.Tensor:
    """M_b = R′_b^(-1/2) R_b^(1/2): takes the direction of an encoding under R to its direction under R′.

    A unit vector keeps its direction, and a cosine needs no more; so this change is exact and needs no corpus pass.

    Returns:
        float32 [number of blocks, d_b, d_b].
    """
    return torch.stack(
        [(wanted.power(block, -0.5) @ stored.power(block, 0.5)).float() for block in range(stored.num_blocks)]
    )


def _file_name(block: int) -> str:
    return f"block_{block:05d}.safetensors"
