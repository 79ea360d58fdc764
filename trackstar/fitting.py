"""What `fit` does, as library calls: the spec, the fixed sample, and sums over it that merge in a tree."""

import dataclasses
import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence

import psutil
import torch

from trackstar import second_moments, tensors
from trackstar import storage as files
from trackstar.batching import Example, collate, plan_batches, windows
from trackstar.corpus import Record, WorkItem, read
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.gradients import GradientEngine, SquareSumSink
from trackstar.indexing import ItemExamples
from trackstar.models import LoadedModel, block_layout
from trackstar.preconditioner import GramSum
from trackstar.second_moments import Factored, SecondMoments
from trackstar.spec import Spec

PENDING = "pending"
"""Stands in the spec for a hash that the running `fit` is yet to find out."""
_MAX_SAMPLED_ITEMS = 64


@dataclasses.dataclass(frozen=True)
class SampleTask:
    """A part of the fixed sample: so many records of each of some work items."""

    items: tuple[WorkItem, ...]
    quotas: tuple[int, ...]
    seed: int

    def to_dict(self) -> dict:
        """Plain values, for the way through Beam."""
        return {"items": [item.to_dict() for item in self.items], "quotas": list(self.quotas), "seed": self.seed}

    @classmethod
    def from_dict(cls, fields: dict) -> "SampleTask":
        """From `to_dict`'s values."""
        return cls(tuple(map(WorkItem.from_dict, fields["items"])), tuple(fields["quotas"]), fields["seed"])

    def key(self, spec_hash: str) -> str:
        """Name of its partial sums, a function of the spec and the records it takes."""
        items = [item.key(spec_hash) for item in self.items]
        return hashlib.sha256(json.dumps([items, self.quotas, self.seed]).encode()).hexdigest()[:32]


def make_spec(
    loaded: LoadedModel,
    *,
    max_length: int | None,
    long_documents: str,
    append_eos: bool,
    batch_tokens: int,
    layout: str,
    layer_groups: int,
    block_rows: int,
    block_columns: int,
    projection_seed: int,
    moments: SecondMoments | None,
    moments_pending: bool,
    factored: bool,
    precondition: bool,
    damping: float,
    normalisation: str,
    storage: str,
    stores_text: bool,
) -> Spec:
    """The spec that settings, model and moments give; hashes that are still to be computed are `PENDING`.

    Raises:
        TrackStarError: max_length above the model's context, or no context length to be found.
    """
    context = loaded.context_length
    if max_length is None and context is None:
        raise TrackStarError("the model's configuration names no context length: give --max_length")
    if max_length is not None and context is not None and max_length > context:
        raise TrackStarError(f"--max_length {max_length} is above the model's context of {context} tokens")
    if moments_pending:
        kind, source = "factored" if factored else "exact", "estimated"
        fingerprint, epsilon = PENDING, second_moments.DEFAULT_EPSILON
    elif moments is None:
        kind, source, fingerprint, epsilon = "none", "none", "", 0.0
    else:
        all_factored = all(isinstance(moment, Factored) for moment in moments.by_weight.values())
        kind, source = "factored" if all_factored else "exact", moments.source
        fingerprint, epsilon = moments.fingerprint, moments.epsilon
    return Spec(
        model_architecture=type(loaded.model).__name__,
        model_fingerprint=loaded.fingerprint,
        model_dtype=loaded.dtype_name,
        tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        vocabulary_size=loaded.vocabulary_size,
        max_length=max_length or context or 0,
        long_documents=long_documents,
        append_eos=append_eos,
        batch_tokens=batch_tokens,
        layout=layout,
        layer_groups=layer_groups,
        block_rows=block_rows,
        block_columns=block_columns,
        num_blocks=len(block_layout(loaded.weights, layout, layer_groups).names),
        projection="gaussian",
        projection_seed=projection_seed,
        moments=kind,
        moments_source=source,
        moments_fingerprint=fingerprint,
        moments_epsilon=epsilon,
        preconditioner=PENDING if precondition else "none",
        damping=damping,
        normalisation=normalisation,
        storage=storage,
        stores_text=stores_text,
    )


def differences(stored: Spec, wanted: Spec) -> list[str]:
    """`Spec.differences`, but for hashes that `wanted` has yet to find out."""
    known = {
        field.name: getattr(stored, field.name)
        for field in dataclasses.fields(Spec)
        if getattr(wanted, field.name) == PENDING and getattr(stored, field.name) not in ("", "none")
    }
    return stored.differences(dataclasses.replace(wanted, **known))


def check_memory(spec: Spec, workers: int) -> None:
    """Raises TrackStarError where the sums of R, one set a worker, would not fit into this machine's memory."""
    if spec.preconditioner == "none":
        return
    needed = 8 * spec.num_blocks * spec.block_dimension**2 * max(2, workers)
    available = psutil.virtual_memory().available
    if needed > available:
        raise TrackStarError(
            f"the preconditioner's sums need {needed / 2**30:.1f} GiB ({spec.num_blocks} blocks of "
            f"{spec.block_dimension:,} × {spec.block_dimension:,} float64, {max(2, workers)} at a time) and "
            f"{available / 2**30:.1f} GiB are available: lower --block_rows and --block_columns, --layer_groups, or "
            "--direct_num_workers"
        )


def warn_small_sample(count: int, spec: Spec, tell: Callable[[str], None]) -> None:
    """Tells where the sample is too small for a preconditioner of full rank."""
    if count < spec.block_dimension:
        tell(
            f"note: {count:,} examples are behind blocks of {spec.block_dimension:,} dimensions; damping fills the rest. "
            "A larger --sample_size (or corpus) gives a better preconditioner"
        )


def choose_sample(items: Sequence[WorkItem], sample_size: int, num_tasks: int, seed: int) -> list[SampleTask]:
    """A fixed random sample of the corpus that does not need the whole corpus read.

    Up to 64 work items are drawn at random (seeded by their own names); each gives records in proportion to its bytes. The
    choice depends on the corpus, the size and the seed alone.

    Raises:
        TrackStarError: there is nothing to draw from.
    """
    if not items:
        raise TrackStarError("the corpus is empty: none of its shards holds a record; check --corpus")
    drawn = sorted(items, key=lambda item: item.key(f"sample/{seed}"))[:_MAX_SAMPLED_ITEMS]
    total = sum(item.num_bytes for item in drawn)
    quotas = (
        [max(1, -(-sample_size * item.num_bytes // total)) for item in drawn] if total else [sample_size] * len(drawn)
    )
    tasks = []
    for first in range(min(num_tasks, len(drawn))):
        span = slice(first, None, num_tasks)
        tasks.append(SampleTask(tuple(drawn[span]), tuple(quotas[span]), seed))
    return tasks


def sampled_examples(encoder: Encoder, task: SampleTask) -> Iterator[Example]:
    """The task's examples, in the order of its items and their records; unusable records give none."""
    for item, quota in zip(task.items, task.quotas, strict=True):
        examples = ItemExamples(encoder, item)
        for record in sample_records(item, quota, task.seed):
            yield from examples.of_record(record)


def sample_records(item: WorkItem, quota: int, seed: int) -> list[Record]:
    """The `quota` records of an item whose seeded hash of shard and position is smallest, in their own order."""
    heap: list[tuple[int, int, Record]] = []
    for record in read(item):
        if not isinstance(record, Record):
            continue
        digest = hashlib.blake2b(f"{seed}/{record.shard}/{record.position}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), record.position, record)
        if len(heap) < quota:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [record for _, _, record in sorted(heap, key=lambda entry: entry[1])]


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
    left_out: set[tuple[int, int]] = set()
    while (sink := _try_squares(encoder, task, left_out)) is None:
        pass  # a batch that breaks off spoils the sums: they begin anew, with what has been learned of the memory
    return sink


def _try_squares(encoder: Encoder, task: SampleTask, left_out: set[tuple[int, int]]) -> SquareSumSink | None:
    """The sums without the examples `left_out` (window, number), or None where memory ran out.

    Examples that do not fit even alone are added to `left_out`.
    """
    sink = SquareSumSink(encoder.loaded.weights, encoder.loaded.device)
    failures = encoder.limit.failures
    with GradientEngine(encoder.loaded, sink) as engine:
        for number, window in enumerate(windows(sampled_examples(encoder, task), encoder.window)):
            lengths = [len(example.input_ids) for example in window]
            chosen = [i for i in range(len(window)) if (number, i) not in left_out]
            plan = plan_batches([lengths[i] for i in chosen], encoder.spec.batch_tokens)

            def run(indices: list[int], window: list[Example] = window) -> None:
                losses = engine.run(collate([window[i] for i in indices]))
                sink.count -= int((~torch.isfinite(losses)).sum())

            too_large = encoder.limit.each([[chosen[i] for i in batch] for batch in plan], lengths, run)
            left_out.update((number, i) for i in too_large)
            if encoder.limit.failures != failures:
                return None
    return sink


def sum_task(kind: str, encoder: Encoder, task: SampleTask, uri: str) -> None:
    """Writes a task's "gram" or "squares" sums to a file."""
    if kind == "gram":
        sum_gram(encoder, task).save(uri)
    else:
        sink = sum_squares(encoder, task)
        save_squares(uri, sink.sums, sink.count)


def save_squares(uri: str, sums: dict[str, torch.Tensor], count: int) -> None:
    """Writes Σ G ⊙ G as one safetensors file."""
    tensors.save(uri, sums, {"count": str(count)})


def load_squares(uri: str) -> tuple[dict[str, torch.Tensor], int]:
    """Reads what `save_squares` wrote."""
    sums, metadata = tensors.load(uri)
    return sums, int(metadata["count"])


def merge_files(kind: str, first: str, second: str) -> str:
    """Adds two files of partial sums ("gram" or "squares") into a third and returns its name.

    The name follows from theirs; where it exists the work was done before. The two stay, so that a retry finds them.
    """
    folder, one = first.rsplit("/", 1)
    merged = f"{folder}/{hashlib.sha256(f'{one}+{second}'.encode()).hexdigest()[:32]}.{kind}.safetensors"
    if not files.exists(merged):
        if kind == "gram":
            total = GramSum.load(first)
            total.merge(GramSum.load(second))
            total.save(merged)
        else:
            sums, count = load_squares(first)
            others, other_count = load_squares(second)
            save_squares(merged, {name: sums[name] + others[name] for name in sums}, count + other_count)
    return merged
