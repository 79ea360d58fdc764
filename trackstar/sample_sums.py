"""Sums over the fixed sample of `fit`: made task by task, each into a file, and merged in a tree."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from trackstar import storage, tensors
from trackstar.batching import Example, collate, plan_batches, windows
from trackstar.covariances import CovarianceSink, CovarianceSums, Part
from trackstar.encoder import Encoder
from trackstar.fitting import SampleTask, sampled_examples
from trackstar.gradients import GradientEngine, Sink, SquareSumSink
from trackstar.preconditioner import GramSum

KINDS = ("gram", "squares", "covariance")
"""Σ vec(E) vec(E)ᵀ for R_train, Σ G ⊙ G for second moments, and the sums behind whitened projections."""

S = TypeVar("S", bound=Sink)
Examples = Callable[[], Iterable[Example]]
"""Gives the examples, from the first one, each time it is called."""


def sum_gram(encoder: Encoder, task: SampleTask) -> GramSum:
    """Σ vec(E_b) vec(E_b)ᵀ over the task's examples, before any preconditioner; non-finite examples are left out."""
    total = GramSum(encoder.spec.num_blocks, encoder.spec.block_dimension)
    for window in windows(sampled_examples(encoder, task), encoder.window):
        gradients = encoder.project(window).gradients
        finite = torch.isfinite(gradients.flatten(1).sum(dim=1))
        total.add(gradients[finite])
    return total


def sum_squares(encoder: Encoder, task: SampleTask) -> SquareSumSink:
    """Σ G ⊙ G of every weight over the task's examples; those that the device's memory cannot take are left out."""

    def leave_out(sink: SquareSumSink, losses: torch.Tensor) -> None:
        sink.count -= int((~torch.isfinite(losses)).sum())

    return _over(
        encoder,
        lambda: sampled_examples(encoder, task),
        lambda: SquareSumSink(encoder.loaded.weights, encoder.loaded.device),
        leave_out,
    )


def sum_covariances(encoder: Encoder, examples: Examples, parts: Sequence[Part]) -> CovarianceSums:
    """Sums behind covariances over examples; those that the device's memory cannot take are left out.

    Args:
        encoder: With the second moments, where they are exact.
        examples: The examples.
        parts: Which covariances.
    """
    sink = _over(
        encoder, examples, lambda: CovarianceSink(parts, encoder.inverse_roots, encoder.loaded.device), lambda *_: None
    )
    return sink.total


def _over(
    encoder: Encoder, examples: Examples, make: Callable[[], S], after_batch: Callable[[S, torch.Tensor], None]
) -> S:
    """A sink that has seen all examples.

    Args:
        encoder: Runs the batches.
        examples: The examples.
        make: Makes an empty sink.
        after_batch: Called with the sink and the losses [B] of each batch.
    """
    left_out: set[tuple[int, int]] = set()
    while (sink := _try(encoder, examples, make(), after_batch, left_out)) is None:
        pass  # a batch that breaks off spoils the sums: they begin anew, with what has been learned of the memory
    return sink


def _try(
    encoder: Encoder,
    examples: Examples,
    sink: S,
    after_batch: Callable[[S, torch.Tensor], None],
    left_out: set[tuple[int, int]],
) -> S | None:
    """The sink after all examples but those `left_out` (window, number), or None where memory ran out.

    Examples that do not fit even alone are added to `left_out`.
    """
    failures = encoder.limit.failures
    with GradientEngine(encoder.loaded, sink) as engine:
        for number, window in enumerate(windows(examples(), encoder.window)):
            lengths = [len(example.input_ids) for example in window]
            chosen = [i for i in range(len(window)) if (number, i) not in left_out]
            plan = plan_batches([lengths[i] for i in chosen], encoder.spec.batch_tokens)

            def run(indices: list[int], window: list[Example] = window) -> None:
                after_batch(sink, engine.run(collate([window[i] for i in indices])))

            too_large = encoder.limit.each([[chosen[i] for i in batch] for batch in plan], lengths, run)
            left_out.update((number, i) for i in too_large)
            if encoder.limit.failures != failures:
                return None
    return sink


def sum_task(kind: str, encoder: Encoder, task: SampleTask, uri: str, parts: Sequence[Part] = ()) -> None:
    """Writes a task's sums of one of the `KINDS` to a file; `parts` are the covariances."""
    if kind == "gram":
        sum_gram(encoder, task).save(uri)
    elif kind == "squares":
        sink = sum_squares(encoder, task)
        save_squares(uri, sink.sums, sink.count)
    else:
        sum_covariances(encoder, lambda: sampled_examples(encoder, task), parts).save(uri)


def save_squares(uri: str, sums: dict[str, torch.Tensor], count: int) -> None:
    """Writes Σ G ⊙ G as one safetensors file."""
    tensors.save(uri, sums, {"count": str(count)})


def load_squares(uri: str) -> tuple[dict[str, torch.Tensor], int]:
    """Reads what `save_squares` wrote."""
    sums, metadata = tensors.load(uri)
    return sums, int(metadata["count"])


def merge_files(kind: str, first: str, second: str) -> str:
    """Adds two files of partial sums of one of the `KINDS` into a third and returns its name.

    The name follows from theirs; where it exists the work was done before. The two stay, so that a retry finds them.
    """
    folder, one = first.rsplit("/", 1)
    merged = f"{folder}/{hashlib.sha256(f'{one}+{second}'.encode()).hexdigest()[:32]}.{kind}.safetensors"
    if not storage.exists(merged):
        if kind == "gram":
            total = GramSum.load(first)
            total.merge(GramSum.load(second))
            total.save(merged)
        elif kind == "squares":
            sums, count = load_squares(first)
            others, other_count = load_squares(second)
            save_squares(merged, {name: sums[name] + others[name] for name in sums}, count + other_count)
        else:
            CovarianceSums.load(first).merge(CovarianceSums.load(second)).save(merged)
    return merged
