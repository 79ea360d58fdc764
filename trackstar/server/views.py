"""Traces and explanations as the messages that clients get."""

from typing import Any

from trackstar.server import messages
from trackstar.trace import Explanation, TokenContributions, Trace

QUERY_SET = "live"


def record_of(trace: Trace) -> messages.Record:
    """A trace's result."""
    fields = trace.to_dict(QUERY_SET)
    return messages.Record(**{name: fields[name] for name in messages.Record.__dataclass_fields__})


def explanation_of(explanation: Explanation) -> messages.Explanation:
    """An explanation of one rank."""
    example = explanation.example
    return messages.Explanation(
        rank=example.rank,
        example_id=example.example_id,
        index_score=example.score,
        score=explanation.score,
        loss=explanation.loss,
        as_encoded=explanation.as_encoded,
        document=_tokens_of(explanation.document),
        query=_tokens_of(explanation.query),
        blocks=[messages.Block(block.name, block.contribution) for block in explanation.blocks],
        layers=[messages.Layer(layer.layer, layer.kind, layer.contribution) for layer in explanation.layers],
    )


def _tokens_of(tokens: TokenContributions) -> messages.Tokens:
    fields: dict[str, Any] = tokens.to_dict()
    segments = [[part.start, part.end, part.contribution] for part in tokens.segments()]
    return messages.Tokens(**fields, segments=segments)
