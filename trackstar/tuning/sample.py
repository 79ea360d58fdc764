"""Documents to compare encodings on, and others to fit them on; queries to compare them with."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from trackstar import storage
from trackstar.batching import Example
from trackstar.corpus import WorkItem, expand, plan
from trackstar.errors import TrackStarError
from trackstar.fitting import SampleTask, choose_sample, sample_records
from trackstar.json_lines import jsonl
from trackstar.models import LoadedModel
from trackstar.results import Query
from trackstar.spec import Spec
from trackstar.tokenization import Tokenization, UnusableRecordError

SAMPLE_SIZE, FIT_SIZE = 1_000, 4_096


def tokenization(loaded: LoadedModel, spec: Spec) -> Tokenization:
    """Text to examples, as a spec has it."""
    return Tokenization(loaded.tokenizer, spec.vocabulary_size, spec.max_length, spec.long_documents, spec.append_eos)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Examples that are read once and kept in memory.

    Args:
        scored: Whose scores are compared.
        fitted: What second moments, whitened projections and R are fitted on; none of them is among `scored`.
        unusable: Records that were drawn and cannot be used.
    """

    scored: tuple[Example, ...]
    fitted: tuple[Example, ...]
    unusable: int


def draw(
    items: Sequence[WorkItem], tokenization: Tokenization, sample_size: int | None, fit_size: int | None, seed: int
) -> Sample:
    """A random sample of a corpus, by the rule by which `fit` draws its own.

    Args:
        items: The corpus.
        tokenization: Makes examples of its records.
        sample_size: Examples to score; None for a thousand, or half of what there is.
        fit_size: Examples to fit on; None for 4,096, or what is left.
        seed: Of the choice.

    Raises:
        TrackStarError: the corpus is empty, or has fewer usable documents than were asked for.
    """
    wanted = (sample_size or SAMPLE_SIZE) + (fit_size or FIT_SIZE)
    [task] = choose_sample(items, wanted, 1, seed)
    examples: list[Example] = []
    unusable = 0
    for item, quota in zip(task.items, task.quotas, strict=True):
        for record in sample_records(item, quota, seed):
            try:
                examples += tokenization.documents(record)[0]
            except UnusableRecordError:
                unusable += 1
    random.Random(seed).shuffle(examples)
    total = len(examples)
    scored = sample_size or max(1, min(SAMPLE_SIZE, total // 2, total - (fit_size or 0)))
    fitted = fit_size or min(FIT_SIZE, total - scored)
    if scored < 1 or fitted < 1 or scored + fitted > total:
        raise TrackStarError(
            f"the sample wants {scored:,} documents to score (--sample_size) and {max(1, fitted):,} others to fit on "
            f"(--fit_size); {total:,} usable ones were found: give smaller numbers, or a larger --corpus"
        )
    return Sample(tuple(examples[:scored]), tuple(examples[scored : scored + fitted]), unusable)


def choose_queries(queries: Sequence[Query], count: int, tokenization: Tokenization) -> list[Example]:
    """Evenly spaced queries, `count` at most, as examples.

    Raises:
        TrackStarError: one of them cannot be used; the message names it.
    """
    count = min(count, len(queries))
    chosen = [queries[place * len(queries) // count] for place in range(count)]
    examples = []
    for query in chosen:
        try:
            examples.append(tokenization.query(query.example_id, query.prompt, query.target))
        except UnusableRecordError as error:
            raise TrackStarError(f"query {query.example_id!r}: {error}") from error
    return examples


def as_task(examples: Sequence[Example], folder: Path) -> SampleTask:
    """Examples as what the sums of `fit` are made over: tokens in a shard of their own.

    Args:
        examples: Documents.
        folder: Where to write the shard.
    """
    uri = str(folder / "fitted.jsonl")
    lines = ({"id": example.example_id, "input_ids": list(example.input_ids)} for example in examples)
    storage.write_bytes(uri, jsonl(lines))
    [shard] = expand([uri])
    [item] = plan([shard], max(1, shard.size))
    return SampleTask((item,), (len(examples),), 0)
