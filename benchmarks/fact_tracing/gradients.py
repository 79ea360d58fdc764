"""Projected gradients of a corpus and of its queries, in memory, under every setting that the ablation varies."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.common import make_spec
from trackstar import second_moments
from trackstar.corpus import Record
from trackstar.encoder import Encoder
from trackstar.models import LoadedModel, load_model
from trackstar.preconditioner import GramSum, Preconditioner, mix, mixing_weight
from trackstar.results import Query
from trackstar.second_moments import SecondMoments
from trackstar.spec import Spec

_EXAMPLES_AT_ONCE = 2048

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Features:
    """What determines projected gradients.

    Args:
        moments: "none", or "exact": AdamW's own second moments.
        side: d₀ = d₁, numbers a side of a block.
        layout: "blocks" (pooled, the paper's) or "weights" (one block a weight).
        seed: Of the projections.
    """

    moments: str
    side: int
    layout: str = "blocks"
    seed: int = 0


class Model:
    """A trained checkpoint with its optimizer state.

    Args:
        checkpoint: Folder that `transformers.Trainer` wrote.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.loaded: LoadedModel = load_model(str(checkpoint))

    @cached_property
    def moments(self) -> SecondMoments:
        """AdamW's second moments, of the checkpoint's optimizer.pt."""
        return second_moments.load(str(self.checkpoint), self.loaded.model, self.loaded.weights)

    def encoder(self, features: Features) -> Encoder:
        """An encoder without preconditioner."""
        moments = self.moments if features.moments == "exact" else None
        spec = make_spec(
            self.loaded,
            layout=features.layout,
            block_rows=features.side,
            block_columns=features.side,
            projection_seed=features.seed,
            moments=moments,
            normalisation="vector",
            storage="float32",
        )
        return Encoder(self.loaded, spec, moments, None)


class Gradients:
    """E of all documents and all queries, and the preconditioners that follow from them.

    Args:
        encoder: Without preconditioner.
        texts: The documents.
        queries: The queries.
        tell: Told how far it is.
    """

    def __init__(
        self, encoder: Encoder, texts: Sequence[str], queries: Sequence[Query], tell: Tell = lambda line: None
    ):
        self.spec: Spec = encoder.spec
        self._mixed: tuple[float, Preconditioner] | None = None
        tokenization = encoder.tokenization
        asked = [tokenization.query(query.example_id, query.prompt, query.target) for query in queries]
        records = (Record(str(place), "corpus", place, text, None) for place, text in enumerate(texts))
        documents = [example for record in records for example in tokenization.documents(record)[0]]
        self.queries = encoder.project(asked).gradients
        """float32 [Q, blocks, d_b]."""
        self.documents = torch.empty(len(documents), self.spec.num_blocks, self.spec.block_dimension)
        """float32 [N, blocks, d_b]."""
        for start in range(0, len(documents), _EXAMPLES_AT_ONCE):
            part = documents[start : start + _EXAMPLES_AT_ONCE]
            self.documents[start : start + len(part)] = encoder.project(part).gradients
            tell(f"{start + len(part):,} of {len(documents):,} documents")

    @cached_property
    def train(self) -> Preconditioner:
        """R_train, over all documents."""
        return _preconditioner(self.documents)

    @cached_property
    def evaluation(self) -> Preconditioner:
        """R_eval, over all queries."""
        return _preconditioner(self.queries)

    @cached_property
    def crossing(self) -> float:
        """λ of the crossing rule."""
        return mixing_weight(self.train, self.evaluation)

    def mixed(self, mixing: float | None) -> Preconditioner:
        """λ R_eval + (1 − λ) R_train; λ of the crossing rule for None."""
        weight = self.crossing if mixing is None else mixing
        if self._mixed is None or self._mixed[0] != weight:
            self._mixed = None  # one at a time: a large one takes gigabytes
            self._mixed = weight, mix(self.train, self.evaluation, weight)
        return self._mixed[1]


def _preconditioner(gradients: torch.Tensor) -> Preconditioner:
    total = GramSum(*gradients.shape[1:])
    for part in gradients.split(1024):
        total.add(part)
    return Preconditioner.of(total.mean(), 0.1, total.count)
