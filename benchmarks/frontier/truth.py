"""LDS: what the retrained halves of the fact-tracing benchmark say of encodings."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from benchmarks.fact_tracing.dataset import Dataset, sample
from benchmarks.fact_tracing.gradients import Tell
from benchmarks.fact_tracing.settings import BM25, RANDOM, GroundTruth
from benchmarks.fact_tracing.truth import models_of
from benchmarks.frontier.measured import Bench
from benchmarks.frontier.rows import file_name, paper_name, principal
from benchmarks.frontier.settings import Size
from trackstar.evaluation.bm25 import bm25_scores
from trackstar.evaluation.intervals import Bootstrap, Estimate
from trackstar.evaluation.lds import lds, subset_masks
from trackstar.evaluation.random_baseline import random_scores
from trackstar.evaluation.retraining import RetrainingTask, retrain_subsets
from trackstar.tuning import measuring
from trackstar.tuning.candidates import Candidate


@dataclasses.dataclass(frozen=True)
class Foretold:
    """LDS of one row.

    Args:
        lds: Mean over queries.
        difference: The same less the LDS of the paper's layout, query by query; None for itself.
    """

    lds: Estimate
    difference: Estimate | None


def retrained(dataset: Dataset, size: Size, folder: Path, scratch: Path, tell: Tell) -> dict[str, dict[str, Foretold]]:
    """LDS of the principal encodings, with the gradients of one model and with the scores of several averaged.

    Scores are kept in files, so that a run that breaks off goes on where it was.

    Args:
        dataset: The smaller corpus with its model.
        size: Of the benchmark.
        folder: Where the fact-tracing benchmark keeps what its retrainings found; what is missing is trained.
        scratch: For sums, while it runs.
        tell: Told how far it is.

    Returns:
        Row → "one model" and, for rows of gradients, "averaged" → LDS.
    """
    truth: GroundTruth = size.facts.truth
    places = sample(dataset, truth.queries)
    queries = [dataset.queries[place] for place in places]
    tokenizer = AutoTokenizer.from_pretrained(dataset.checkpoint)
    task = RetrainingTask.of(dataset.ids, dataset.texts, queries, truth.model, tokenizer)
    masks = subset_masks(len(dataset.ids), truth.subsets)
    losses = retrain_subsets(task, masks, str(folder), truth.seeds)
    by_model: list[Mapping[str, np.ndarray]] = []
    for number, checkpoint in enumerate(models_of(dataset, truth, tell)):
        tell(f"{dataset.name}: scores with model {number + 1} of {truth.models}")
        by_model.append(_scores(checkpoint, dataset, places, size, scratch / f"truth-{dataset.name}-{number}", tell))
    one = {
        **by_model[0],
        BM25: bm25_scores(dataset.texts, [query.prompt + query.target for query in queries]),
        RANDOM: random_scores([query.example_id for query in queries], dataset.ids),
    }
    averaged = {name: np.mean([of_model[name] for of_model in by_model], axis=0) for name in by_model[0]}
    found: dict[str, dict[str, Foretold]] = {name: {} for name in one}
    for kind, scores in (("one model", one), ("averaged", averaged)):
        per_query = {name: lds(of_row, masks, losses).per_query for name, of_row in scores.items()}
        for name, foretold in _foretold(per_query, paper_name(size)).items():
            found[name][kind] = foretold
    return found


def _foretold(per_query: Mapping[str, np.ndarray], reference: str) -> dict[str, Foretold]:
    """Means and differences, of each row's LDS [Q]."""
    means = Bootstrap().estimates(per_query)
    less = {name: values - per_query[reference] for name, values in per_query.items() if name != reference}
    differences = Bootstrap().estimates(less)
    return {name: Foretold(mean, differences.get(name)) for name, mean in means.items()}


def _scores(
    checkpoint: Path, dataset: Dataset, places: Sequence[int], size: Size, scratch: Path, tell: Tell
) -> dict[str, np.ndarray]:
    """Scores of all documents for some queries with the gradients of one model, [Q, N] a row."""
    bench = Bench.of(checkpoint, dataset.texts, dataset.queries)
    chosen = principal(bench.loaded, bench.template, size)
    files = {name: _file(dataset, checkpoint, places, candidate) for name, candidate in chosen.items()}
    missing = [candidate for name, candidate in chosen.items() if not files[name].exists()]
    if missing:
        asked = [bench.queries[place] for place in places]
        materials = bench.materials(scratch, tell)
        for together in measuring.group(missing, len(asked), size.memory_bytes):
            found = measuring.scores(materials, together, asked, bench.documents, bench.queries)
            _save((files[name], found[candidate]) for name, candidate in chosen.items() if candidate in found)
    return {name: np.load(file) for name, file in files.items()}


def _file(dataset: Dataset, checkpoint: Path, places: Sequence[int], candidate: Candidate) -> Path:
    """Where scores are kept: named by the model's training, the queries and the encoding."""
    training = json.loads((checkpoint / "training.json").read_text())["identity"]
    queries = [[query.example_id, query.prompt, query.target] for query in dataset.queries]
    identity = hashlib.sha256(json.dumps([training, queries, list(places)]).encode()).hexdigest()[:16]
    return dataset.folder / "frontier_scores" / identity / f"{file_name(candidate)}.npy"


def _save(found: Iterable[tuple[Path, np.ndarray]]) -> None:
    for path, scores in found:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp.npy")
        np.save(partial, scores)
        partial.replace(path)
