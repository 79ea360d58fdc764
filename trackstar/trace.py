"""What a trace and its explanation are: plain values, as JSON for programs and as tables for notebooks."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from trackstar import notebook_html
from trackstar.errors import TrackStarError
from trackstar.results import Query, Ranking, Result

Kind = Literal["attention", "mlp"]

_FURTHER = {"shards": "shard", "positions": "position", "losses": "loss", "num_tokens": "num_tokens"}


class TraceCancelledError(TrackStarError):
    """`cancel` said so."""


@dataclasses.dataclass(frozen=True)
class TraceProgress:
    """How far a trace is.

    Args:
        stage: "encoding" the query, "scanning" the index, or "reading" the texts of what was found.
        done_bytes: Bytes of the index that were scanned.
        total_bytes: Bytes that the scan will go through.
        num_examples: Examples that were scored.
    """

    stage: Literal["encoding", "scanning", "reading"]
    done_bytes: int
    total_bytes: int
    num_examples: int


@dataclasses.dataclass(frozen=True)
class RankedExample:
    """One proponent or opponent.

    Args:
        rank: From 1, the best.
        example_id: Its id.
        score: φ(z)·φ(q).
        text: What was encoded; empty where the index holds no text.
        shard: URI of its corpus file.
        position: Where its record lies in the shard: byte offset of the line, or number of the row.
        loss: Its loss in nats when it was encoded, over all its tokens.
        num_tokens: Its tokens.
        file: URI of the file of the index that holds it.
        row: Its row there.
    """

    rank: int
    example_id: str
    score: float
    text: str
    shard: str
    position: int
    loss: float
    num_tokens: int
    file: str
    row: int


@dataclasses.dataclass(frozen=True)
class Trace:
    """A query and the examples that score highest and lowest in the whole index.

    Args:
        query: What was asked.
        proponents: Highest scores first.
        opponents: Lowest scores first; empty where they were not asked for.
        loss: −log p(target | prompt) in nats.
        num_target_tokens: Tokens of the target.
        version: Snapshot of the index.
        num_examples: Examples that were scored; those that were taken down by their ids count.
        seconds: How long it took.
        scored_with: What scores depend on besides the query: hash of the spec, and the preconditioner.
    """

    query: Query
    proponents: tuple[RankedExample, ...]
    opponents: tuple[RankedExample, ...]
    loss: float
    num_target_tokens: int
    version: int
    num_examples: int
    seconds: float
    scored_with: str

    def to_result(self, query_set: str = "") -> Result:
        """The same as a line of a results file; `results.write_results` writes such."""
        return Result(self.query, query_set, _ranking(self.proponents), _ranking(self.opponents))

    def to_dict(self, query_set: str = "") -> dict[str, Any]:
        """The line's fields (docs/formats.md, "Queries and results"), and what a results file does not hold, as plain values.

        A results file that these are written to is read as any other; the further fields are carried through.
        """
        fields = self.to_result(query_set).to_dict()
        for end, examples in (("proponent", self.proponents), ("opponent", self.opponents)):
            for plural, name in _FURTHER.items():
                fields[f"{end}_{plural}"] = [getattr(example, name) for example in examples]
        for name in ("loss", "num_target_tokens", "version", "num_examples", "seconds"):
            fields[name] = getattr(self, name)
        return fields

    def _repr_html_(self) -> str:
        return notebook_html.of_trace(self)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some characters of a text, and what the tokens that they belong to contribute together.

    Args:
        start: First character.
        end: Character after the last.
        contribution: To the score.
    """

    start: int
    end: int
    contribution: float


@dataclasses.dataclass(frozen=True)
class TokenContributions:
    """What the tokens of a document, or of a query, contribute to one score; in both lists they sum to it.

    Args:
        text: What was encoded; empty where only token ids are known.
        input_ids: T tokens.
        pieces: T strings, each token by itself, for labels. The second half of a character has no string of its own.
        spans: T pairs (start, end): the token's characters in `text`. Tokens that are parts of one character share its span; one
            that is not in the text (an end-of-text token, the context of a later passage) has an empty one.
        first_target: The first token whose loss is differentiated: 1 in a document, the target's first in a query.
        by_position: T numbers: of the position where the gradient enters the weights. The loss gradient at a position sums over
            the losses of all later tokens, so this says *where* in the text the model uses what it shares with the other side.
        by_target: T numbers: of each token's own loss, 0 before `first_target`; *what* is learned from being predicted. None
            where the model has an operation without a forward-mode derivative, or they were not asked for.
    """

    text: str
    input_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    first_target: int
    by_position: tuple[float, ...]
    by_target: tuple[float, ...] | None

    def segments(self, by: Literal["position", "target"] = "position") -> list[Segment]:
        """The text in pieces that do not overlap, in order, for shading: tokens of one character are one segment.

        Characters that belong to no token are in no segment, and tokens outside the text are left out.
        """
        values = self.by_position if by == "position" else self.by_target or ()
        segments: list[Segment] = []
        for (start, end), value in zip(self.spans, values, strict=False):
            last = segments[-1] if segments else Segment(0, 0, 0.0)
            if start >= end:
                continue
            if segments and start < last.end:
                segments[-1] = Segment(last.start, max(last.end, end), last.contribution + value)
            else:
                segments.append(Segment(start, end, value))
        return segments

    def to_dict(self) -> dict[str, Any]:
        """Plain values; spans as lists."""
        return {
            "text": self.text,
            "input_ids": list(self.input_ids),
            "pieces": list(self.pieces),
            "spans": [list(span) for span in self.spans],
            "first_target": self.first_target,
            "by_position": list(self.by_position),
            "by_target": None if self.by_target is None else list(self.by_target),
        }


@dataclasses.dataclass(frozen=True)
class WeightContribution:
    """What the gradient of one of the document's weights contributes.

    Args:
        name: Name of the parameter.
        layer: Number of its layer.
        kind: "attention" or "mlp".
        contribution: To the score.
    """

    name: str
    layer: int
    kind: Kind
    contribution: float


@dataclasses.dataclass(frozen=True)
class BlockContribution:
    """What one block of the encodings contributes: φ_b(z)·φ_b(q).

    Args:
        name: Name of the block: of its weight, or "layers 0-1 mlp".
        contribution: To the score.
    """

    name: str
    contribution: float


@dataclasses.dataclass(frozen=True)
class LayerContribution:
    """What the document's weights of one layer and kind contribute together."""

    layer: int
    kind: Kind
    contribution: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Where one proponent's (or opponent's) score comes from.

    Args:
        example: The example, with the score that the index gave.
        score: Sum of the contributions: the score computed again from the texts. The index's is of encodings that were rounded,
            with sign bits by much.
        loss: The example's loss, computed again.
        document: Contributions of the example's tokens.
        query: Contributions of the query's tokens to the same score.
        weights: Of every attributed weight of the document; they sum to `score`.
        blocks: Of every block; they sum to `score`.
        as_encoded: Whether loss and number of tokens are those that the index holds: whether what is explained is what was
            encoded. Of a passage that was cut out of a longer document, and whose corpus file is out of reach, the text may
            become other tokens than it was made of.
    """

    example: RankedExample
    score: float
    loss: float
    document: TokenContributions
    query: TokenContributions
    weights: tuple[WeightContribution, ...]
    blocks: tuple[BlockContribution, ...]
    as_encoded: bool

    @property
    def layers(self) -> tuple[LayerContribution, ...]:
        """Contributions of layers, attention and MLP apart, in order."""
        sums: dict[tuple[int, Kind], float] = {}
        for weight in self.weights:
            key = (weight.layer, weight.kind)
            sums[key] = sums.get(key, 0.0) + weight.contribution
        return tuple(LayerContribution(layer, kind, value) for (layer, kind), value in sorted(sums.items()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        parts = {
            name: [dataclasses.asdict(part) for part in getattr(self, name)] for name in ("weights", "blocks", "layers")
        }
        return {
            "example": dataclasses.asdict(self.example),
            "score": self.score,
            "loss": self.loss,
            "as_encoded": self.as_encoded,
            "document": self.document.to_dict(),
            "query": self.query.to_dict(),
            **parts,
        }

    def _repr_html_(self) -> str:
        return notebook_html.of_explanation(self)


def _ranking(examples: Sequence[RankedExample]) -> Ranking:
    return Ranking(
        [example.text for example in examples],
        [example.example_id for example in examples],
        [example.score for example in examples],
    )
