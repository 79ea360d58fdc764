"""The queries of one run, and the change of preconditioner they ask for, as files that every worker maps."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.spec import NORMALISATIONS

_KEPT_BYTES = 256 << 20  # of float64 matrices


@dataclasses.dataclass(frozen=True)
class QuerySet:
    """Q encoded queries, in the order of the queries' file.

    Args:
        vectors: [Q, d] float32, the encodings φ(q).
        grad_norm: [Q] float32, each one's norm before it was given unit length; 1 where nobody asks.
        folded: Whether `vectors` are Mᵀφ(q) already, what a change of preconditioner makes of them for the scan. Folding once
            fixes the bits: done again, with other threads or for some of the queries, it may round to others.

    Raises:
        TrackStarError: a shape that does not fit, or a NaN or infinity; the message tells the query's number.
    """

    vectors: torch.Tensor
    grad_norm: torch.Tensor
    folded: bool = False

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.grad_norm.shape != self.vectors.shape[:1] or not len(self.vectors):
            raise TrackStarError(
                f"queries: vectors of shape {tuple(self.vectors.shape)} with norms of shape {tuple(self.grad_norm.shape)}; "
                "expected [Q, d] and [Q], and at least one query"
            )
        finite = torch.isfinite(self.vectors).all(dim=1) & torch.isfinite(self.grad_norm)
        if not finite.all():
            raise TrackStarError(f"queries: NaN or infinity in the gradient of query {int((~finite).nonzero()[0])}")

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def of(cls, vectors: torch.Tensor) -> "QuerySet":
        """Queries whose norms do not matter."""
        return cls(vectors.float(), torch.ones(len(vectors)))

    def fold(self, change: "Change") -> "QuerySet":
        """The same queries, ready for scans under `change`."""
        return self if self.folded else QuerySet(change.fold(self.vectors.float()), self.grad_norm, True)

    def choose(self, numbers: Sequence[int]) -> "QuerySet":
        """Some of the queries, with the same bits."""
        chosen = torch.as_tensor(list(numbers), dtype=torch.int64)
        return QuerySet(self.vectors[chosen], self.grad_norm[chosen], self.folded)

    def save(self, uri: str) -> None:
        """Writes a safetensors file."""
        tensors = {
            "vectors": self.vectors.contiguous(),
            "grad_norm": self.grad_norm.contiguous(),
            "folded": torch.tensor(int(self.folded)),
        }
        storage.write_bytes(uri, safetensors.torch.save(tensors))

    @classmethod
    def load(cls, uri: str) -> "QuerySet":
        """Reads what `save` wrote; a local file is mapped, so that a machine's workers share its memory."""
        tensors = _load(uri, ("vectors", "grad_norm", "folded"))
        return cls(tensors["vectors"], tensors["grad_norm"], bool(tensors["folded"]))


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of preconditioner: φ′ ∝ M φ with M_b = R′_b^(-1/2) R_b^(1/2), block by block, then normalised anew.

    Args:
        matrices: [blocks, d_b, d_b] float32, the M_b.
        normalisation: "vector": unit norm over the whole vector; "block": each block first, as the spec says.
    """

    matrices: torch.Tensor
    normalisation: str = "vector"

    def __post_init__(self) -> None:
        if self.matrices.ndim != 3 or self.matrices.shape[1] != self.matrices.shape[2]:
            raise TrackStarError(
                f"change of preconditioner: shape {tuple(self.matrices.shape)}; expected [blocks, d_b, d_b]"
            )
        if self.normalisation not in NORMALISATIONS:
            raise TrackStarError(
                f"change of preconditioner: normalisation {self.normalisation!r}; not {NORMALISATIONS}"
            )
        if not torch.isfinite(self.matrices).all():
            raise TrackStarError("change of preconditioner: NaN or infinity in its matrices")

    @property
    def dimension(self) -> int:
        """d."""
        return self.matrices.shape[0] * self.matrices.shape[1]

    def double(self, block: int) -> np.ndarray:
        """M_b, [d_b, d_b] float64; all of them are kept where they are small."""
        return self._doubles[block] if self._doubles is not None else self.matrices[block].double().numpy()

    @functools.cached_property
    def _doubles(self) -> np.ndarray | None:
        return self.matrices.double().numpy() if 8 * self.matrices.numel() <= _KEPT_BYTES else None

    def blocks(self) -> list[slice]:
        """The columns of each block."""
        edges = range(0, self.dimension + 1, self.matrices.shape[1])
        return [slice(start, end) for start, end in itertools.pairwise(edges)]

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        """[N, d] encodings under R → [N, d] float32 encodings under R′: for the queries, before they are folded.

        Source: docs/method.md, "Change of preconditioner".
        """
        product = self.product(vectors)  # [N, blocks, d_b] float64
        norms = np.sqrt(np.einsum("nbd,nbd->nb", product, product))
        if self.normalisation == "block":
            product = product * reciprocal(norms)[:, :, None]
            norms = (norms > 0).astype(np.float64)
        product = product * reciprocal(np.sqrt((norms**2).sum(axis=1)))[:, None, None]
        return torch.from_numpy(product.reshape(len(product), -1).astype(np.float32))

    def product(self, vectors: torch.Tensor) -> np.ndarray:
        """[N, d] → M φ, [N, blocks, d_b] float64."""
        parts = [
            vectors[:, block].double().numpy() @ matrix.double().numpy().T
            for block, matrix in zip(self.blocks(), self.matrices, strict=True)
        ]
        return np.stack(parts, axis=1)

    def fold(self, vectors: torch.Tensor) -> torch.Tensor:
        """[Q, d] encodings under R′ → [Q, d] float32 Mᵀφ′(q): with the stored rows it gives M φ(z) · φ′(q)."""
        parts = [vectors[:, block].double() @ m.double() for block, m in zip(self.blocks(), self.matrices, strict=True)]
        return torch.cat(parts, dim=1).float()

    def save(self, uri: str) -> None:
        """Writes a safetensors file."""
        block = torch.tensor(NORMALISATIONS.index(self.normalisation))
        storage.write_bytes(
            uri, safetensors.torch.save({"matrices": self.matrices.contiguous(), "normalisation": block})
        )

    @classmethod
    def load(cls, uri: str) -> "Change":
        """Reads what `save` wrote; a local file is mapped."""
        tensors = _load(uri, ("matrices", "normalisation"))
        return cls(tensors["matrices"], NORMALISATIONS[int(tensors["normalisation"])])


def reciprocal(values: np.ndarray) -> np.ndarray:
    """1/x, and 0 for 0: a vector without direction stays zero and scores nothing."""
    return np.divide(1.0, values, out=np.zeros_like(values, dtype=np.float64), where=values > 0)


def _load(uri: str, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    path = storage.local_path(uri)
    try:
        tensors = safetensors.torch.load_file(path) if path else safetensors.torch.load(storage.read_bytes(uri))
    except (safetensors.SafetensorError, OSError) as error:
        raise TrackStarError(f"{uri}: not a readable safetensors file ({error})") from error
    if set(tensors) != set(names):
        raise TrackStarError(f"{uri}: holds {sorted(tensors)}; expected {sorted(names)}")
    return tensors
