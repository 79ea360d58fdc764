"""Examples, and batches of them that depend on the input alone.

Padding is on the right and there is no attention mask: a causal model's tokens never look at what follows them, and
padding has no loss, so neither a value nor a gradient of a real token depends on it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One training document, one passage of a long one, or one query, as tokens."""

    example_id: str
    input_ids: tuple[int, ...]
    first_target: int = 1
    """Index of the first supervised token: 1 for a document, the target's first for a query."""
    position: int = 0
    """Where the record lies in its shard."""
    text: str | None = None

    @property
    def num_targets(self) -> int:
        """Supervised tokens: what the loss sums over."""
        return max(0, len(self.input_ids) - max(1, self.first_target))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Right-padded examples of similar length."""

    input_ids: torch.Tensor
    """int64 [B, T]."""
    rows: torch.Tensor
    """int64 [S]: the example of each supervised token."""
    columns: torch.Tensor
    """int64 [S]: the position that predicts it (one before it)."""
    targets: torch.Tensor
    """int64 [S]: the supervised tokens."""

    @property
    def size(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def collate(examples: Sequence[Example], pad_token: int = 0) -> Batch:
    """Pads examples on the right and lists their supervised tokens, example after example."""
    width = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_token, dtype=torch.int64)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids, dtype=torch.int64)
        first = max(1, example.first_target)
        rows += [row] * (len(example.input_ids) - first)
        columns += range(first - 1, len(example.input_ids) - 1)
        targets += example.input_ids[first:]
    return Batch(input_ids, *(torch.tensor(values, dtype=torch.int64) for values in (rows, columns, targets)))


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups examples of similar length so that a padded batch holds at most `batch_tokens` tokens.

    The longest come first, ties in input order: the plan is a function of the lengths and the budget alone. An example longer
    than the budget is a batch by itself.
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = lengths[index]
    return batches


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cuts a stream into lists of `size` items; the last may be shorter."""
    window: list[T] = []
    for item in items:
        window.append(item)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
