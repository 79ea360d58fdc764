"""What clients send and get, as dataclasses: the API document is made of them (`trackstar.server.openapi`)."""

import dataclasses
from typing import Annotated, Any, Literal

from trackstar.server.typed import Doc

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
Stage = Literal["waiting", "encoding", "scanning", "reading"]
End = Literal["proponents", "opponents"]


@dataclasses.dataclass(frozen=True)
class TraceRequest:
    """A query whose proponents are to be found in the whole index."""

    prompt: Annotated[str, Doc("what the model was asked; may be empty where the target has several tokens")]
    target: Annotated[str, Doc("what it said: the completion whose loss is differentiated")]
    top_k: Annotated[int, Doc("proponents to find; at most the server's limit max_top_k", 1, 2**31 - 1)] = 20
    opponents: Annotated[bool, Doc("whether to find as many opponents, the lowest scores, too")] = False


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A prompt for the model to complete."""

    prompt: Annotated[str, Doc("what the model is asked")]
    max_new_tokens: Annotated[
        int, Doc("tokens at most; no more than the server's limit max_new_tokens", 1, 2**31 - 1)
    ] = 16


@dataclasses.dataclass(frozen=True)
class ExplanationRequest:
    """Which rows of a trace's result to explain."""

    ranks: Annotated[list[int], Doc("ranks, from 1; at most the server's limit max_ranks of them", 1)]
    end: Annotated[End, Doc("which end of the ranking")] = "proponents"


@dataclasses.dataclass(frozen=True)
class ErrorBody:
    """What is wrong."""

    code: Annotated[str, Doc("a word for programs")]
    message: Annotated[str, Doc("what is wrong, for people")]
    hint: Annotated[str, Doc("what to do about it; may be empty")]


@dataclasses.dataclass(frozen=True)
class ErrorAnswer:
    """The body of every answer that is an error."""

    error: ErrorBody


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a trace is."""

    stage: Annotated[
        Stage,
        Doc("waiting in the queue, encoding the query, scanning the index, or reading the texts of what was found"),
    ] = "waiting"
    fraction: Annotated[float, Doc("share of the index that was scanned, 0 to 1")] = 0.0
    rows: Annotated[int, Doc("rows that were scanned")] = 0
    rows_per_second: Annotated[float | None, Doc("rows a second, on average; null until it is known")] = None
    seconds_left: Annotated[float | None, Doc("an estimate; null until it is known")] = None


@dataclasses.dataclass(frozen=True)
class TraceState:
    """How a trace stands: what its events carry."""

    id: Annotated[str, Doc("16 hexadecimal digits")]
    state: Annotated[State, Doc("queued and running change by themselves; done, failed and cancelled stay")]
    before: Annotated[int, Doc("traces that wait before this one; 0 unless it is queued")]
    seconds: Annotated[float | None, Doc("how long it took, or takes so far; null while it waits")]
    progress: Progress
    cancelling: Annotated[bool, Doc("whether it was cancelled and has not ended yet")]
    error: Annotated[ErrorBody | None, Doc("why it failed, or null")]


@dataclasses.dataclass(frozen=True)
class TraceSummary(TraceState):
    """A trace without its result."""

    prompt: Annotated[str, Doc("as asked")]
    target: Annotated[str, Doc("as asked")]
    top_k: Annotated[int, Doc("as asked")]
    opponents: Annotated[bool, Doc("as asked")]
    created: Annotated[str, Doc("when it was asked for: ISO 8601, UTC")]
    snapshot: Annotated[int | None, Doc("version of the index that was scanned; null until it is done")]


@dataclasses.dataclass(frozen=True)
class Record:
    """A query with its proponents, best first: a line of `trackstar score`'s results file, and what only a trace knows."""

    example_id: Annotated[str, Doc("the trace's id")]
    query_set: Annotated[str, Doc("where the query comes from: live")]
    inputs_plaintext: Annotated[str, Doc("the prompt")]
    targets_plaintext: Annotated[str, Doc("the target")]
    proponents: Annotated[list[str], Doc("texts; empty strings where the index holds none")]
    proponent_ids: Annotated[list[str], Doc("ids of the examples")]
    proponent_scores: Annotated[list[float], Doc("scores, highest first")]
    opponents: Annotated[list[str], Doc("texts; no items unless opponents were asked for")]
    opponent_ids: Annotated[list[str], Doc("ids of the examples")]
    opponent_scores: Annotated[list[float], Doc("scores, lowest first")]
    proponent_shards: Annotated[list[str], Doc("URIs of the corpus files that the examples come from")]
    proponent_positions: Annotated[
        list[int], Doc("where in its file each record lies: byte offset, or number of the row")
    ]
    proponent_losses: Annotated[list[float], Doc("each example's loss in nats, when it was encoded")]
    proponent_num_tokens: Annotated[list[int], Doc("each example's tokens")]
    opponent_shards: Annotated[list[str], Doc("the same of the opponents")]
    opponent_positions: Annotated[list[int], Doc("the same of the opponents")]
    opponent_losses: Annotated[list[float], Doc("the same of the opponents")]
    opponent_num_tokens: Annotated[list[int], Doc("the same of the opponents")]
    loss: Annotated[float, Doc("−log p(target | prompt) in nats")]
    num_target_tokens: Annotated[int, Doc("tokens of the target")]
    version: Annotated[int, Doc("version of the index that was scanned")]
    num_examples: Annotated[int, Doc("examples that were scored")]
    seconds: Annotated[float, Doc("how long it took")]


@dataclasses.dataclass(frozen=True)
class Trace(TraceSummary):
    """A trace, with its result as soon as it is done."""

    result: Annotated[Record | None, Doc("null unless the state is done")]


@dataclasses.dataclass(frozen=True)
class TraceList:
    """The traces that the server remembers."""

    traces: Annotated[list[TraceSummary], Doc("the newest first")]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the tokens of a text contribute to a score; `by_position` sums to it, and so does `by_target`."""

    text: Annotated[str, Doc("what was encoded")]
    input_ids: Annotated[list[int], Doc("the tokens")]
    pieces: Annotated[list[str], Doc("each token by itself, for labels")]
    spans: Annotated[
        list[list[int]], Doc("each token's first character and the one after its last, in Unicode code points")
    ]
    first_target: Annotated[int, Doc("the first token whose loss is differentiated")]
    by_position: Annotated[list[float], Doc("where in the text the model uses what both sides share")]
    by_target: Annotated[
        list[float] | None, Doc("what is learned from predicting each token; null where that is not known")
    ]
    segments: Annotated[
        list[list[float]],
        Doc("for shading: [start, end, contribution] of pieces of the text that do not overlap, in order; by position"),
    ]
    target_segments: Annotated[list[list[float]], Doc("the same by predicted token; no items where that is not known")]


@dataclasses.dataclass(frozen=True)
class Block:
    """What a block of the encodings contributes to a score."""

    name: Annotated[str, Doc("of its weight, or of its layers")]
    contribution: Annotated[float, Doc("to the score")]


@dataclasses.dataclass(frozen=True)
class Layer:
    """What the weights of one layer and kind contribute to a score."""

    layer: Annotated[int, Doc("number of the layer")]
    kind: Annotated[Literal["attention", "mlp"], Doc("attention or mlp")]
    contribution: Annotated[float, Doc("to the score")]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Where the score of one example comes from."""

    rank: Annotated[int, Doc("from 1")]
    example_id: Annotated[str, Doc("the example")]
    index_score: Annotated[float, Doc("the score that the index gave, of encodings as it stores them")]
    score: Annotated[float, Doc("the same computed again from texts: the sum of the contributions")]
    loss: Annotated[float, Doc("the example's loss in nats, computed again")]
    as_encoded: Annotated[bool, Doc("whether the text has become the tokens that were encoded")]
    document: Annotated[Tokens, Doc("contributions of the example's tokens")]
    query: Annotated[Tokens, Doc("contributions of the query's tokens to the same score")]
    blocks: Annotated[list[Block], Doc("contributions of blocks; they sum to the score")]
    layers: Annotated[list[Layer], Doc("contributions of layers; they sum to the score")]


@dataclasses.dataclass(frozen=True)
class ExplanationList:
    """Explanations of some rows of a trace."""

    id: Annotated[str, Doc("the trace")]
    end: Annotated[End, Doc("which end of the ranking")]
    explanations: Annotated[list[Explanation], Doc("one a rank, in the order asked for")]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model says."""

    prompt: Annotated[str, Doc("as asked")]
    completion: Annotated[
        str, Doc("what follows on the prompt, with the space between them if there is one: a target as it is")
    ]


@dataclasses.dataclass(frozen=True)
class Health:
    """That the server is up."""

    status: Annotated[Literal["ok"], Doc("ok")]


@dataclasses.dataclass(frozen=True)
class Info:
    """What is served."""

    version: Annotated[str, Doc("of trackstar")]
    live: Annotated[bool, Doc("true: traces can be asked for")]
    index: Annotated[str, Doc("where the index lies")]
    spec: Annotated[dict[str, Any], Doc("all that determines an encoding; its hash is the index's identity")]
    spec_hash: Annotated[str, Doc("the spec's hash")]
    snapshot: Annotated[int, Doc("version of the index that traces scan")]
    rows: Annotated[int, Doc("examples in that version")]
    model: Annotated[str, Doc("the checkpoint")]
    limits: Annotated[dict[str, int], Doc("the server's limits; max_tokens is that of prompt and target together")]
