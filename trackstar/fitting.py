"""What `fit` does, as library calls: the spec and the fixed sample; `sample_sums` has the sums over it."""

import dataclasses
import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence

import psutil

from trackstar import second_moments
from trackstar.attributed import attributing
from trackstar.batching import Example
from trackstar.corpus import Record, WorkItem, read
from trackstar.covariances import Part
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.indexing import ItemExamples
from trackstar.models import LoadedModel, block_layout
from trackstar.second_moments import Factored, SecondMoments
from trackstar.spec import Spec

PENDING = "pending"
"""Stands in the spec for a hash that the running `fit` is yet to find out."""
_MAX_SAMPLED_ITEMS = 64
_PASS_BYTES = 8 << 30
"""Sums of covariances that one pass over the sample makes at most, in each worker."""
_SHARE_OF_MEMORY = 8
"""The part of a machine's memory that they may take: sums are copied when they are written, and two are added into a third."""


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
    attributed: str,
    layout: str,
    layer_groups: int,
    block_rows: int,
    block_columns: int,
    projection: str,
    projection_seed: int,
    whitening_damping: float,
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
        TrackStarError: max_length above the model's context, or no context length to be found; no damping of whitening.
    """
    context = loaded.context_length
    if max_length is None and context is None:
        raise TrackStarError("the model's configuration names no context length: give --max_length")
    if max_length is not None and context is not None and max_length > context:
        raise TrackStarError(f"--max_length {max_length} is above the model's context of {context} tokens")
    is_whitened = projection == "whitened"
    if is_whitened and not whitening_damping > 0:
        raise TrackStarError(
            f"--whitening_damping {whitening_damping}: directions without a gradient make it necessary; it must be above zero"
        )
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
        attributed=attributed,
        layout=layout,
        layer_groups=layer_groups,
        block_rows=block_rows,
        block_columns=block_columns,
        num_blocks=len(block_layout(attributing(loaded, attributed).weights, layout, layer_groups).names),
        projection=projection,
        projection_seed=projection_seed,
        projection_fingerprint=PENDING if is_whitened else "",
        whitening_damping=whitening_damping if is_whitened else 0.0,
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


def stage_spec(spec: Spec, *, moments: bool, projections: bool) -> Spec:
    """The spec of an encoder that lacks what `fit` is yet to make: the preconditioner, perhaps the rest.

    Args:
        spec: The index's, as far as it is known.
        moments: Whether the encoder has the second moments.
        projections: Whether it has the spec's projections; Gaussian ones otherwise.
    """
    found = dataclasses.replace(spec, preconditioner="none")
    if not moments:
        found = dataclasses.replace(found, moments="none")
    if not projections:
        found = dataclasses.replace(found, projection="gaussian", projection_fingerprint="", whitening_damping=0.0)
    return found


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


def pass_bytes(local_workers: int | None) -> int:
    """Bytes of covariances' sums that one pass over the sample makes.

    Args:
        local_workers: Worker processes that share this machine's memory; None where they run elsewhere.
    """
    if local_workers is None:
        return _PASS_BYTES
    return min(_PASS_BYTES, psutil.virtual_memory().total // (_SHARE_OF_MEMORY * local_workers))


def check_pass_memory(passes: Sequence[Sequence[Part]], workers: int) -> None:
    """Raises TrackStarError where the covariances of one weight are too large for this machine's memory."""
    largest = max(sum(part.num_bytes for part in group) for group in passes)
    needed, available = 3 * largest * workers, psutil.virtual_memory().available
    if needed > available:
        raise TrackStarError(
            f"the covariances behind whitened projections need {needed / 2**30:.1f} GiB ({largest / 2**30:.1f} GiB in each of "
            f"{workers} workers, and copies of them) and {available / 2**30:.1f} GiB are available: lower "
            "--direct_num_workers, use a machine with more memory, or take --projection gaussian"
        )


def sample_key(tasks: Sequence[SampleTask], spec: Spec) -> str:
    """Name of what is summed over a sample under a spec."""
    return hashlib.sha256("".join(task.key(spec.hash) for task in tasks).encode()).hexdigest()[:32]


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
