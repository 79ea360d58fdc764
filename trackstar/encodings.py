"""A batch of encoded examples, as it travels from the encoder into the index."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from trackstar.errors import TrackStarError


@dataclasses.dataclass(frozen=True)
class Encodings:
    """N encoded examples of one work item, in the order in which they are stored.

    Args:
        example_ids: N identifiers.
        positions: [N] int64, where each example begins in its shard.
        texts: N texts, or None where the index leaves them out.
        num_tokens: [N] int32, tokens of each example.
        loss: [N] float32, each example's summed loss in nats.
        grad_norm: [N] float32, norm of each vector before it was given unit length.
        vectors: [N, d] float32, the encodings φ; or float64, copies of what an index holds.

    Raises:
        TrackStarError: a part has another length than `example_ids`, or a vector or norm is not finite.
    """

    example_ids: list[str]
    positions: np.ndarray
    texts: list[str] | None
    num_tokens: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray
    vectors: torch.Tensor

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2:
            raise TrackStarError(f"encodings: vectors have shape {tuple(self.vectors.shape)}; expected [N, d]")
        parts: dict[str, Sequence[str] | np.ndarray | torch.Tensor | None] = {
            "positions": self.positions,
            "texts": self.texts,
            "num_tokens": self.num_tokens,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "vectors": self.vectors,
        }
        for name, part in parts.items():
            if part is not None and len(part) != len(self):
                raise TrackStarError(f"encodings: {len(self)} example ids, but {len(part)} {name}")
        # One sum a row: a single NaN or infinity anywhere in a row makes its sum of magnitudes not finite.
        finite = torch.isfinite(self.vectors.abs().sum(dim=1)).cpu().numpy() & np.isfinite(self.grad_norm)
        if not finite.all():
            bad = [self.example_ids[i] for i in np.flatnonzero(~finite)]
            raise TrackStarError(
                f"encodings: NaN or infinity in the gradient of {len(bad)} example(s), first {bad[0]!r}; "
                "reject such examples before they reach the index"
            )

    def __len__(self) -> int:
        return len(self.example_ids)

    @classmethod
    def concatenate(cls, batches: Sequence["Encodings"]) -> "Encodings":
        """The batches one after another; texts only where every batch has them."""
        texts = [batch.texts for batch in batches if batch.texts is not None]
        return cls(
            example_ids=[example_id for batch in batches for example_id in batch.example_ids],
            positions=np.concatenate([batch.positions for batch in batches]),
            texts=[text for part in texts for text in part] if len(texts) == len(batches) else None,
            num_tokens=np.concatenate([batch.num_tokens for batch in batches]),
            loss=np.concatenate([batch.loss for batch in batches]),
            grad_norm=np.concatenate([batch.grad_norm for batch in batches]),
            vectors=torch.cat([batch.vectors for batch in batches]),
        )

    def where(self, chosen: np.ndarray) -> "Encodings":
        """The examples that a mask [N] bool chooses."""
        places = np.flatnonzero(chosen)
        return Encodings(
            example_ids=[self.example_ids[i] for i in places],
            positions=self.positions[places],
            texts=None if self.texts is None else [self.texts[i] for i in places],
            num_tokens=self.num_tokens[places],
            loss=self.loss[places],
            grad_norm=self.grad_norm[places],
            vectors=self.vectors[torch.from_numpy(places)],
        )

    def rows(self, start: int, end: int) -> "Encodings":
        """The examples from `start` up to, not including, `end`."""
        return Encodings(
            example_ids=self.example_ids[start:end],
            positions=self.positions[start:end],
            texts=None if self.texts is None else self.texts[start:end],
            num_tokens=self.num_tokens[start:end],
            loss=self.loss[start:end],
            grad_norm=self.grad_norm[start:end],
            vectors=self.vectors[start:end],
        )
