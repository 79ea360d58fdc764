"""Records and queries to examples: tokens, passages of long documents, and which tokens are supervised."""

import dataclasses

from transformers import PreTrainedTokenizerBase

from trackstar.batching import Example
from trackstar.corpus import Record
from trackstar.errors import TrackStarError

_HEAD_CHARACTERS = 1 << 16
_HEAD_CHARACTERS_PER_TOKEN = 16
_MARGIN = 64
"""Tokens between what is used of a text's beginning and the place where it was cut off."""


class UnusableRecordError(Exception):
    """A record or query that no gradient can be had of; its text is the reason."""


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """How text becomes examples.

    Args:
        tokenizer: The model's; None for a corpus of token ids.
        vocabulary_size: Rows of the model's embedding.
        max_length: Longest example in tokens.
        long_documents: "truncate" or "split".
        append_eos: Whether documents end in the end-of-text token.
    """

    tokenizer: PreTrainedTokenizerBase | None
    vocabulary_size: int
    max_length: int
    long_documents: str
    append_eos: bool

    def documents(self, record: Record) -> tuple[list[Example], bool]:
        """The examples of a record, and whether tokens were cut off.

        Passages of a split document overlap by one token, so that every token is predicted exactly once; their ids are
        `<id>#0`, `<id>#1`, …

        Raises:
            UnusableRecordError: nothing to predict, or a token outside the vocabulary.
        """
        offsets: list[tuple[int, int]] | None = None
        if record.input_ids is not None:
            tokens = tuple(record.input_ids)
        else:
            assert record.text is not None
            tokens, offsets = self._document_tokens(record.text)
            if self.append_eos:
                assert self.tokenizer is not None
                if self.tokenizer.eos_token_id is None:
                    raise TrackStarError("--append_eos: the tokenizer has no end-of-text token")
                tokens = (*tokens, self.tokenizer.eos_token_id)
        self._check(tokens)
        if len(tokens) < 2:
            raise UnusableRecordError(f"{len(tokens)} token(s): no token to predict from another")
        if len(tokens) <= self.max_length:
            return [Example(record.example_id, tokens, 1, record.position, record.text)], False
        if self.long_documents == "truncate":
            text = self._passage_text(record.text, tokens, offsets, 0, self.max_length)
            return [Example(record.example_id, tokens[: self.max_length], 1, record.position, text)], True
        step = self.max_length - 1
        examples = []
        for number, start in enumerate(range(0, len(tokens) - 1, step)):
            end = min(start + self.max_length, len(tokens))
            # The overlapping token is context; the passage's text begins after it.
            text = self._passage_text(record.text, tokens, offsets, start + (number > 0), end)
            examples.append(Example(f"{record.example_id}#{number}", tokens[start:end], 1, record.position, text))
        return examples, False

    def query(self, example_id: str, prompt: str, target: str) -> Example:
        """A query: loss over the target's tokens, given the prompt.

        Prompt and target are tokenized together, with one space between them where neither brings one. A token that
        straddles the border belongs to the target. A prompt that is too long loses its beginning.

        Raises:
            UnusableRecordError: empty target, target longer than the context, or no token to predict it from.
        """
        if not target.strip():
            raise UnusableRecordError("the target is empty")
        if prompt and not prompt[-1].isspace() and not target[0].isspace():
            prompt += " "
        text = prompt + target
        # Trailing space of the prompt usually becomes part of the target's first token.
        border = len(prompt.rstrip()) if prompt.strip() else len(prompt)
        tokens, offsets = self.tokens(text)
        if offsets is None:
            shared = self.tokens(text[:border])[0]
            first = next((i for i, (x, y) in enumerate(zip(tokens, shared, strict=False)) if x != y), len(shared))
        else:
            first = next((i for i, (start, end) in enumerate(offsets) if end > border and end > start), len(tokens))
            while len(tokens) > first and offsets[len(tokens) - 1] == (0, 0):
                tokens = tokens[:-1]  # an end-of-text token that the tokenizer adds is not the target's
        first = max(first, 1)
        self._check(tokens)
        if len(tokens) - first < 1:
            raise UnusableRecordError("no token to predict the target from: give a prompt")
        if len(tokens) > self.max_length:
            cut = len(tokens) - self.max_length
            if first - cut < 1:
                raise UnusableRecordError(
                    f"the target has {len(tokens) - first} tokens; max_length is {self.max_length}"
                )
            tokens, first = tokens[cut:], first - cut
        return Example(example_id, tokens, first, 0, text)

    def _document_tokens(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]] | None]:
        """The tokens of a document; of one that is cut at `max_length` anyway, no more than so many of its beginning.

        A tokenizer takes up to 1 kB a token: a line of 64 MiB, tokenized whole, would take all memory there is.
        """
        characters = max(_HEAD_CHARACTERS, _HEAD_CHARACTERS_PER_TOKEN * self.max_length)
        while self.long_documents == "truncate" and len(text) > characters:
            tokens, offsets = self.tokens(text[:characters])
            if len(tokens) > self.max_length + _MARGIN:
                return tokens, offsets
            characters *= 4
        return self.tokens(text)

    def tokens(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]] | None]:
        """All tokens of a text, and which characters each is of; None where the tokenizer cannot tell.

        Raises:
            TrackStarError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise TrackStarError(
                "the corpus has text and the model's folder has no tokenizer: add one, or give input_ids"
            )
        encoded = self.tokenizer(text, return_offsets_mapping=self.tokenizer.is_fast, verbose=False)
        return tuple(encoded["input_ids"]), encoded.get("offset_mapping")

    def _check(self, tokens: tuple[int, ...]) -> None:
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.vocabulary_size):
            raise UnusableRecordError(
                f"token {max(tokens) if min(tokens) >= 0 else min(tokens)} lies outside the model's vocabulary of "
                f"{self.vocabulary_size}: is the model of another vocabulary?"
            )

    def _passage_text(
        self, text: str | None, tokens: tuple[int, ...], offsets: list[tuple[int, int]] | None, start: int, end: int
    ) -> str | None:
        if text is None:
            return None
        if offsets is None:
            assert self.tokenizer is not None
            decoded = self.tokenizer.decode(list(tokens[start:end]))
            return decoded if isinstance(decoded, str) else "".join(decoded)
        spans = [span for span in offsets[start:end] if span[1] > span[0]]
        return text[spans[0][0] : spans[-1][1]] if spans else ""
