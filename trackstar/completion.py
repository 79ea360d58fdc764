"""Greedy completions: what the model itself says after a prompt."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError


@torch.no_grad()
def greedy(encoder: Encoder, prompt: str, max_new_tokens: int, cancel: Callable[[], bool] | None = None) -> str | None:
    """At every step the likeliest token, until the model ends its text, its context is full, or there are enough.

    Args:
        encoder: Has the model; its lock is held for one token at a time, so that traces need not wait for long completions.
        prompt: Space at its end is left to the completion, as in `Tokenization.query`.
        max_new_tokens: Positive.
        cancel: Asked after every token.

    Returns:
        What follows on the prompt; None where it was cancelled.

    Raises:
        TrackStarError: no tokenizer, no text in the prompt, or no room in the model's context.
    """
    loaded = encoder.loaded
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise TrackStarError("the model's folder has no tokenizer, so it cannot be asked anything: add one")
    if not prompt.strip():
        raise TrackStarError("the prompt is empty: give the model something to go on from")
    check_unicode(prompt)
    tokens = _prompt_tokens(tokenizer, prompt.rstrip())
    context = loaded.context_length
    if context is not None and len(tokens) >= context:
        raise TrackStarError(
            f"the prompt has {len(tokens):,} tokens and the model's context {context:,}: shorten it by "
            f"{len(tokens) - context + 1:,} tokens or more"
        )
    room = max_new_tokens if context is None else min(max_new_tokens, context - len(tokens))
    ends = _end_tokens(loaded.model.generation_config, tokenizer)
    forward = _Forward(encoder)
    new: list[int] = []
    step = tokens
    while len(new) < room:
        token = forward(step)
        if token in ends:
            break
        new.append(token)
        step = [token]
        if cancel is not None and cancel():
            return None
    said = _text_after(tokenizer, tokens, new).rstrip(
        "\ufffd"
    )  # the first bytes of a character that did not come to its end
    return said.lstrip() if prompt[-1].isspace() else said


def check_unicode(text: str) -> None:
    """Raises TrackStarError where a text holds half of a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrackStarError(
            f"character {error.start} of the text is half of a surrogate pair, which is no character"
        ) from None


class _Forward:
    """The likeliest next token, with what was computed for the tokens before kept."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._past: Any = None
        model = encoder.loaded.model
        # Logits of the last position alone, where the model can do that.
        self._settings = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        )

    def __call__(self, tokens: list[int]) -> int:
        loaded = self._encoder.loaded
        with self._encoder.lock:  # while a trace runs, hooks of its own are on the model
            output = loaded.model(
                input_ids=torch.tensor([tokens], device=loaded.device),
                past_key_values=self._past,
                use_cache=True,
                **self._settings,
            )
        self._past = output.past_key_values
        return int(output.logits[0, -1].argmax())


def _prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's tokens, without an end-of-text token that the tokenizer adds."""
    tokens = list(tokenizer(prompt, verbose=False)["input_ids"])
    while len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()
    return tokens


def _end_tokens(generation: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a text, by the model's settings and its tokenizer."""
    named = getattr(generation, "eos_token_id", None)
    ends = {named} if isinstance(named, int) else set(named or ())
    return ends | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


def _text_after(tokenizer: PreTrainedTokenizerBase, tokens: list[int], new: list[int]) -> str:
    """The text of the new tokens; some tokenizers drop a space where a text begins, so the prompt is decoded with them."""
    before, whole = _decoded(tokenizer, tokens), _decoded(tokenizer, tokens + new)
    return whole[len(before) :] if whole.startswith(before) else _decoded(tokenizer, new)


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return text if isinstance(text, str) else "".join(text)
