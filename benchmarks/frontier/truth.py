"""What the model itself says of encodings: tail-patch, and LDS by the retrained halves of the fact-tracing benchmark."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from benchmarks.fact_tracing.dataset import Dataset, sample
from benchmarks.fact_tracing.gradients import Tell
from benchmarks.fact_tracing.settings import GroundTruth
from benchmarks.fact_tracing.truth import models_of
from benchmarks.frontier.measured import Bench
from benchmarks.frontier.rows import principal
from benchmarks.frontier.settings import Size
from trackstar.evaluation.intervals import Estimate
from trackstar.evaluation.lds import lds, subset_masks
from trackstar.evaluation.retraining import RetrainingTask, retrain_subsets
from trackstar.tuning import measuring


def retrained(dataset: Dataset, size: Size, folder: Path, scratch: Path, tell: Tell) -> dict[str, dict[str, Estimate]]:
    """LDS of the principal encodings, with the gradients of one model and with the scores of several averaged.

    Args:
        dataset: The smaller corpus with its model.
        size: Of the benchmark.
        folder: Where the fact-tracing benchmark keeps what its retrainings found; what is missing is trained.
        scratch: For sums, while it runs.
        tell: Told how far it is.

    Returns:
        Row → "one model" and "averaged" → LDS.
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
        bench = Bench.of(checkpoint, dataset.texts, dataset.queries)
        materials = bench.materials(scratch / f"truth-{dataset.name}-{number}")
        chosen = principal(bench.loaded, bench.template, size)
        asked = [bench.queries[place] for place in places]
        scores = {
            candidate: dense
            for together in measuring.group(list(chosen.values()), len(asked), size.memory_bytes)
            for candidate, dense in measuring.scores(materials, together, asked, bench.documents, bench.queries).items()
        }
        by_model.append({name: scores[candidate] for name, candidate in chosen.items()})
    return {
        name: {
            "one model": lds(of_first, masks, losses).estimate(),
            "averaged": lds(np.mean([of_model[name] for of_model in by_model], axis=0), masks, losses).estimate(),
        }
        for name, of_first in by_model[0].items()
    }
