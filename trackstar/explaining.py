"""Explanations of ranked examples: their tokens found again, their contributions, and where in the text these are."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from trackstar import storage
from trackstar.batching import Example
from trackstar.corpus import Record, WorkItem, read
from trackstar.corpus.shards import format_of
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.passages import fetch_rows
from trackstar.token_influence import Contributions, contributions
from trackstar.token_text import pieces_of, spans_of
from trackstar.tokenization import Tokenization, UnusableRecordError
from trackstar.trace import BlockContribution, Explanation, RankedExample, TokenContributions, WeightContribution

_LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""How far a loss that is computed again, perhaps on another device, may be off, of its size."""
_LATER_PASSAGE = re.compile(r"#[1-9]\d*\Z")


def explain_examples(
    encoder: Encoder,
    query: Example,
    ranked: Sequence[RankedExample],
    by_target: bool = True,
    check: Callable[[], None] = lambda: None,
) -> list[Explanation]:
    """One explanation for each of some proponents or opponents of a query.

    Raises:
        TrackStarError: an example whose tokens cannot be found again, or as `token_influence.contributions`.
    """
    documents = [document_again(encoder.tokenization, example) for example in ranked]
    found = contributions(encoder, query, [document for document, _ in documents], by_target, check)
    return [_explanation(encoder, query, *parts) for parts in zip(ranked, documents, found, strict=True)]


def document_again(tokenization: Tokenization, ranked: RankedExample) -> tuple[Example, int]:
    """What was encoded, from the text that the index holds or else from the corpus; and how many tokens are not in its text.

    A text becomes the tokens that it was made of, but for one that was cut out of a longer document: what went before a later
    passage is not in it, and a text without its end may end in other tokens. Such are read from the corpus, if it is in reach.

    Raises:
        TrackStarError: neither gives any tokens.
    """
    context = 1 if tokenization.long_documents == "split" and _LATER_PASSAGE.search(ranked.example_id) else 0
    from_text = _from_text(tokenization, ranked, context) if ranked.text else None
    if from_text is not None and not context and len(from_text.input_ids) == ranked.num_tokens:
        return from_text, 0
    try:
        return _from_corpus(tokenization, ranked), context
    except TrackStarError as error:
        if from_text is not None:
            return from_text, 0
        raise TrackStarError(
            f"{ranked.example_id}: cannot be explained: the index holds no text of it, and the corpus does not give it: {error}"
        ) from error


def _from_text(tokenization: Tokenization, ranked: RankedExample, context: int) -> Example | None:
    """The text's tokens; of a later passage, that is without its `context`."""
    if tokenization.tokenizer is None:
        return None
    tokens, offsets = tokenization.tokens(ranked.text)
    if context and offsets is not None:  # tokens that the tokenizer begins every text with
        begun = next((i for i, (start, end) in enumerate(offsets) if end > start), 0)
        tokens = tokens[begun:]
    end = tokenization.tokenizer.eos_token_id
    if tokenization.append_eos and end is not None and len(tokens) + context + 1 == ranked.num_tokens:
        tokens = (*tokens, end)
    tokens = tokens[: tokenization.max_length]
    return Example(ranked.example_id, tokens, 1, ranked.position, ranked.text) if len(tokens) > 1 else None


def _from_corpus(tokenization: Tokenization, ranked: RankedExample) -> Example:
    record = _record(ranked)
    try:
        examples, _ = tokenization.documents(record)
    except UnusableRecordError as error:
        raise TrackStarError(f"{ranked.shard}, position {ranked.position}: {error}") from error
    for example in examples:
        if example.example_id == ranked.example_id:
            return example
    raise TrackStarError(f"{ranked.shard}, position {ranked.position}: the record there is {record.example_id!r}")


def _record(ranked: RankedExample) -> Record:
    """The example's record, from the version of the shard that was indexed."""
    _, footer = fetch_rows(ranked.file, [], ())
    shard_format = format_of(ranked.shard)
    if shard_format is None or not {"start", "end", "fingerprint"} <= set(footer):
        raise TrackStarError(f"{ranked.file}: its footer does not say which version of {ranked.shard} it was made of")
    start, end, fingerprint = int(footer["start"]), int(footer["end"]), footer["fingerprint"]
    if shard_format in ("jsonl", "txt"):
        start, end = ranked.position, ranked.position + 1  # the line that begins at this byte
    item = WorkItem(ranked.shard, shard_format, storage.info(ranked.shard).size, fingerprint, start, end)
    for record in read(item):
        if record.position == ranked.position and isinstance(record, Record):
            return record
        if record.position >= ranked.position:
            break
    raise TrackStarError(f"{ranked.shard}: no usable record at position {ranked.position}")


def _explanation(
    encoder: Encoder, query: Example, ranked: RankedExample, of_document: tuple[Example, int], found: Contributions
) -> Explanation:
    document, context = of_document
    tolerance = _LOSS_TOLERANCE[encoder.spec.model_dtype] * max(1.0, abs(ranked.loss))
    weights = encoder.loaded.weights
    return Explanation(
        example=ranked,
        score=found.score,
        loss=found.loss,
        document=_tokens(encoder.tokenization, document, context, found.by_position, found.by_target),
        query=_tokens(encoder.tokenization, query, 0, found.query_by_position, found.query_by_target),
        weights=tuple(
            WeightContribution(weight.name, weight.layer, weight.kind, float(value))
            for weight, value in zip(weights, found.by_weight, strict=True)
        ),
        blocks=tuple(
            BlockContribution(name, float(value))
            for name, value in zip(encoder.layout.names, found.by_block, strict=True)
        ),
        as_encoded=len(document.input_ids) == ranked.num_tokens and abs(found.loss - ranked.loss) <= tolerance,
    )


def _tokens(
    tokenization: Tokenization,
    example: Example,
    context: int,
    by_position: np.ndarray,
    by_target: np.ndarray | None,
) -> TokenContributions:
    text = example.text or ""
    return TokenContributions(
        text=text,
        input_ids=example.input_ids,
        pieces=tuple(pieces_of(tokenization.tokenizer, example.input_ids)),
        spans=tuple(spans_of(tokenization, text, example.input_ids, context)),
        first_target=example.first_target,
        by_position=tuple(by_position.tolist()),
        by_target=None if by_target is None else tuple(by_target.tolist()),
    )
