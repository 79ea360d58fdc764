"""Which characters of a text each token is of, so that a text can be shaded by its tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trackstar.tokenization import Tokenization

Span = tuple[int, int]

_WINDOW = 32
"""Characters beyond the last token in which the next one is looked for, where the tokenizer has no offsets."""


def pieces_of(tokenizer: PreTrainedTokenizerBase | None, tokens: Sequence[int]) -> list[str]:
    """Each token decoded by itself; "<number>" without a tokenizer."""
    if tokenizer is None:
        return [f"<{token}>" for token in tokens]
    decoded = [tokenizer.decode([token]) for token in tokens]
    return [piece if isinstance(piece, str) else "".join(piece) for piece in decoded]


def spans_of(tokenization: Tokenization, text: str, tokens: Sequence[int], context: int = 0) -> list[Span]:
    """Start and end, in characters, of each token of `text`.

    Args:
        tokenization: Has the tokenizer.
        text: What the tokens were made of; an end-of-text token may lie behind it.
        tokens: T tokens.
        context: How many of them lie before the text: a later passage's first one.

    Returns:
        T pairs. By the tokenizer's own offsets where it has some and makes these tokens of this text; else each token is looked
        for in the text by its piece. Empty at the place where it belongs for a token that is not in the text.
    """
    if tokenization.tokenizer is None or not text:
        return [(0, 0)] * len(tokens)
    inside = tuple(tokens[context:])
    own, offsets = tokenization.tokens(text)
    found = None if offsets is None else _aligned(own, offsets, inside, len(text))
    return [(0, 0)] * context + (found or _located(pieces_of(tokenization.tokenizer, inside), text))


def _aligned(own: tuple[int, ...], offsets: list[Span], tokens: tuple[int, ...], length: int) -> list[Span] | None:
    """Offsets of `tokens` where these are `own`, or a part of them, but for a last one behind the text."""
    for behind in (0, 1):
        core = tokens[: len(tokens) - behind]
        for start in sorted({0, 1, len(own) - len(core)}):
            if core and start >= 0 and own[start : start + len(core)] == core:
                spans = [(int(a), int(b)) for a, b in offsets[start : start + len(core)]]
                return spans + [(length, length)] * behind
    return None


def _located(pieces: Sequence[str], text: str) -> list[Span]:
    """Each piece where it next occurs in the text; pieces that are no text of their own share what lies between the others."""
    spans: list[Span] = []
    waiting = 0  # tokens since the last one that was found
    at = 0
    for piece in pieces:
        start = text.find(piece, at, at + len(piece) + _WINDOW) if piece and "\ufffd" not in piece else -1
        if start < 0:
            waiting += 1
            continue
        spans += [(at, start)] * waiting + [(start, start + len(piece))]
        at, waiting = start + len(piece), 0
    return spans + [(at, len(text))] * waiting
