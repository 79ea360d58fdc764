"""What the model itself says of the rows: tail-patch, and retraining."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.fact_tracing.ablation import Rankings
from benchmarks.fact_tracing.dataset import Dataset, sample
from benchmarks.fact_tracing.gradients import Features, Gradients, Model, Tell
from benchmarks.fact_tracing.methods import Method, Ranked, dense_scores
from benchmarks.fact_tracing.settings import BM25, GOLD, LEFT_OUT, RANDOM, GroundTruth, Size
from trackstar.evaluation import tail_patch_run
from trackstar.evaluation.bm25 import bm25_scores
from trackstar.evaluation.intervals import Bootstrap, Estimate
from trackstar.evaluation.lds import lds, repeatability, subset_masks
from trackstar.evaluation.leave_out import Effect, leave_out
from trackstar.evaluation.metrics import patches_of, tail_patch_metrics
from trackstar.evaluation.random_baseline import random_scores
from trackstar.evaluation.retraining import RetrainingTask, retrain_subsets
from trackstar.evaluation.tail_patch import TailPatch, TailPatchSettings, TailPatchSource
from trackstar.evaluation.tail_patch_plan import make_plan
from trackstar.evaluation.tail_patch_tasks import run_here
from trackstar.results import Query, Result
from trackstar.small_models import train_checkpoint


@dataclasses.dataclass(frozen=True)
class Patches:
    """Tail-patch of one row, in percentage points."""

    rate: float
    estimates: dict[str, Estimate]


def tail_patches(rankings: Rankings, rows: Mapping[str, str], size: Size, tell: Tell) -> dict[str, Patches]:
    """Tail-patch of each row's first proponents, all at one learning rate: the largest in the gold documents' linear range.

    Args:
        rankings: The results.
        rows: Name in the table → name of the results file.
        size: Queries, and proponents of each.
        tell: Told how far it is.
    """
    dataset = rankings.dataset
    places = sample(dataset, size.patch_queries)
    patch: TailPatch | None = None
    made: dict[str, Patches] = {}
    rate: float | None = None
    for name, file in {GOLD: GOLD, **rows}.items():
        kept = rankings.path(file).with_name(f"{file}.tail_patch-{len(places)}x{size.patch_k}.json")
        chosen = rankings.results(file, places)
        if kept.exists():
            found = json.loads(kept.read_text())
        else:
            if patch is None:
                source = TailPatchSource(
                    str(dataset.checkpoint), None, TailPatchSettings(step="normalised", append_eos=True)
                )
                patch = source.load()
            measured = tail_patch_run.measure(
                make_plan(chosen, size.patch_k), run_here(patch), rate or "auto", 0 if rate else 64, tell
            )
            found = {"rate": measured.rate, "rows": measured.rows()[0]}
            kept.write_text(json.dumps(found))
            tell(f"{dataset.name}: tail-patch of {name}")
        rate = found["rate"]
        made[name] = Patches(found["rate"], _estimates(found["rows"], chosen, size.patch_k))
    return made


def _estimates(rows: Sequence[Mapping[str, Any]], chosen: Sequence[Result], k: int) -> dict[str, Estimate]:
    ks = sorted({1, 3, 5, 10, k} & set(range(1, k + 1)))
    return Bootstrap().estimates(tail_patch_metrics("", patches_of(rows), chosen, ks))


@dataclasses.dataclass(frozen=True)
class Retrained:
    """What retraining says.

    Args:
        documents: Of the corpus.
        queries: Whose losses were measured.
        answered: How many of these the model of the whole corpus answers.
        lds: Row → mean over queries, with the gradients of one model.
        lds_of_models: The same with scores averaged over several models of the whole corpus; rows of gradients alone.
        repeatability: Correlation of the losses with those of other trainings of the same halves; None with one seed.
        effects: Row → what leaving its proponents out did.
    """

    documents: int
    queries: int
    answered: int
    lds: dict[str, Estimate]
    lds_of_models: dict[str, Estimate]
    repeatability: Estimate | None
    effects: dict[str, Effect]


def retrained(dataset: Dataset, rows: Mapping[str, Method], truth: GroundTruth, folder: Path, tell: Tell) -> Retrained:
    """LDS and leave-k-out on a corpus of its own.

    Args:
        dataset: The smaller corpus with its model, which is trained by the recipe of the retrainings.
        rows: Name in the table → row.
        truth: Sizes.
        folder: Where the retrainings' results are kept.
        tell: Told how far it is.
    """
    places = sample(dataset, truth.queries)
    queries = [dataset.queries[place] for place in places]
    tokenizer = AutoTokenizer.from_pretrained(dataset.checkpoint)
    task = RetrainingTask.of(dataset.ids, dataset.texts, queries, truth.model, tokenizer)
    masks = subset_masks(len(dataset.ids), truth.subsets)
    tell(f"{dataset.name}: {truth.subsets * len(truth.seeds)} retrainings on halves")
    losses = retrain_subsets(task, masks, str(folder), truth.seeds)
    by_model = [_gradient_scores(dataset, model, places, rows) for model in models_of(dataset, truth, tell)]
    scores = {**by_model[0], **_other_scores(dataset, queries)}
    averaged = {name: np.mean([of_model[name] for of_model in by_model], axis=0) for name in rows}
    listed = {
        name: Ranked.of(row, dataset.ids, len(dataset.ids) // 2).results(queries, dataset.ids, dataset.texts, name)
        for name, row in scores.items()
        if name in LEFT_OUT
    }
    tell(f"{dataset.name}: retrainings with documents left out")
    without = leave_out(task, listed, truth.k, truth.groups, str(folder), truth.leave_out_seeds)
    repeated = repeatability(losses) if len(truth.seeds) > 1 else None
    return Retrained(
        documents=len(dataset.ids),
        queries=len(queries),
        answered=sum(dataset.answered[place] for place in places),
        lds={name: lds(row, masks, losses).estimate() for name, row in scores.items()},
        lds_of_models={name: lds(row, masks, losses).estimate() for name, row in averaged.items()},
        repeatability=None if repeated is None else Bootstrap().estimates({"": repeated})[""],
        effects=without.effects(),
    )


def models_of(dataset: Dataset, truth: GroundTruth, tell: Tell) -> Iterator[Path]:
    """Checkpoints of models of the whole corpus that differ in the seed of their training; the first is the data set's."""
    yield dataset.checkpoint
    for seed in range(1, truth.models):
        tell(f"{dataset.name}: model {seed + 1} of {truth.models}")
        settings = dataclasses.replace(truth.model, seed=seed)
        yield train_checkpoint(dataset.texts, dataset.folder / f"model-{seed}", settings)


def _gradient_scores(
    dataset: Dataset, checkpoint: Path, places: Sequence[int], rows: Mapping[str, Method]
) -> dict[str, np.ndarray]:
    """Scores of all documents for some queries, [Q, N] a row; R_eval is of all the corpus's queries."""
    model = Model(checkpoint)
    names: dict[Features, dict[Method, str]] = {}
    for name, method in rows.items():
        names.setdefault(method.features, {})[method] = name
    scores: dict[str, np.ndarray] = {}
    for features, named in names.items():
        gradients = Gradients(model.encoder(features), dataset.texts, dataset.queries)
        scores |= {named[method]: row[places] for method, row in dense_scores(list(named), gradients).items()}
    return scores


def _other_scores(dataset: Dataset, queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """Scores that need no model, [Q, N]."""
    return {
        BM25: bm25_scores(dataset.texts, [query.prompt + query.target for query in queries]),
        RANDOM: random_scores([query.example_id for query in queries], dataset.ids),
    }
