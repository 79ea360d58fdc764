"""Every row's ranking of the corpus, kept in files, and the metrics of it."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.fact_tracing.dataset import Dataset
from benchmarks.fact_tracing.gradients import Features, Gradients, Model, Tell
from benchmarks.fact_tracing.methods import Method, Ranked, dense_scores
from benchmarks.fact_tracing.settings import BM25, GOLD, RANDOM
from trackstar.evaluation.bm25 import bm25_scores
from trackstar.evaluation.facts import fact_id_of
from trackstar.evaluation.intervals import Bootstrap, Estimate
from trackstar.evaluation.metrics import MRR, RECALL, at_k, fact_metrics
from trackstar.evaluation.random_baseline import random_scores
from trackstar.results import Result

TOP_K = 100


class Rankings:
    """The k best documents of each query under every row, kept in files that are made where they are missing.

    Args:
        dataset: The data set; the files lie in `rankings/` of its folder, under names that no other training shares.
        tell: Told how far it is.
    """

    def __init__(self, dataset: Dataset, tell: Tell):
        self.dataset = dataset
        self._tell = tell
        self._folder = dataset.folder / "rankings" / results_identity(dataset)
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of a row."""
        return self._folder / f"{name}.npz"

    def make(self, rows: Sequence[Method]) -> None:
        """Makes what is missing; rows with the same projected gradients share their computation."""
        for features, group in itertools.groupby(rows, key=lambda method: method.features):
            missing = [method for method in group if not self.path(method.name).exists()]
            if missing:
                for method, scores in dense_scores(missing, self._gradients(features)).items():
                    self._write(method.name, scores)
                    self._tell(f"{self.dataset.name}: {method.name}")

    def baselines(self) -> None:
        """BM25, random, and the documents that state the fact (for the tail-patch)."""
        makers: dict[str, Callable[[], np.ndarray]] = {BM25: self._bm25, RANDOM: self._random, GOLD: self._gold}
        for name, maker in makers.items():
            if not self.path(name).exists():
                self._write(name, maker(), positive_only=name != RANDOM)
                self._tell(f"{self.dataset.name}: {name}")

    def read(self, name: str) -> Ranked:
        """A row's ranking."""
        return Ranked.load(self.path(name))

    def results(self, name: str, places: Sequence[int]) -> list[Result]:
        """A row's results for some queries."""
        data = self.dataset
        return (
            self.read(name).some(places).results([data.queries[place] for place in places], data.ids, data.texts, name)
        )

    def is_gold(self) -> np.ndarray:
        """[Q, N + 1] bool: whether a document states the query's fact; the last column, of what is not listed, is false."""
        data = self.dataset
        column = {example_id: number for number, example_id in enumerate(data.ids)}
        marks = np.zeros((len(data.queries), len(column) + 1), bool)
        for row, query in zip(marks, data.queries, strict=True):
            row[[column[example_id] for example_id in data.facts[fact_id_of(query)].gold_ids]] = True
        return marks

    def _gradients(self, features: Features) -> Gradients:
        self._tell(f"{self.dataset.name}: projected gradients, {features}")
        model = Model(self.dataset.checkpoint)
        return Gradients(model.encoder(features), self.dataset.texts, self.dataset.queries)

    def _write(self, name: str, scores: np.ndarray, positive_only: bool = False) -> None:
        Ranked.of(scores, self.dataset.ids, TOP_K, positive_only).save(self.path(name))

    def _bm25(self) -> np.ndarray:
        return bm25_scores(self.dataset.texts, [query.prompt + query.target for query in self.dataset.queries])

    def _random(self) -> np.ndarray:
        return random_scores([query.example_id for query in self.dataset.queries], self.dataset.ids)

    def _gold(self) -> np.ndarray:
        return self.is_gold()[:, :-1].astype(np.float32)


def results_identity(dataset: Dataset) -> str:
    """Hash of what the model was trained on, and how, and of what it is asked."""
    training = json.loads((dataset.checkpoint / "training.json").read_text())["identity"]
    queries = [[query.example_id, query.prompt, query.target] for query in dataset.queries]
    return hashlib.sha256(json.dumps([training, queries]).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Of one row: over the queries that the model answers, and over all; seeds are averaged query by query."""

    seeds: int
    answered: dict[str, Estimate]
    everything: dict[str, Estimate]

    def to_dict(self) -> dict:
        """Plain values."""
        return dataclasses.asdict(self)


def metrics(rankings: Rankings, names: Sequence[str]) -> Metrics:
    """MRR, Recall@10 and Precision@10 of one row.

    Args:
        rankings: Where its results are.
        names: Its rankings, one a seed.
    """
    gold = rankings.is_gold()
    columns: dict[str, list[np.ndarray]] = {}
    for name in names:
        correct = np.take_along_axis(gold, rankings.read(name).places, axis=1)  # −1 is the last column
        for metric, values in fact_metrics(correct.tolist(), (1, 10)).items():
            columns.setdefault(metric, []).append(values)
    mean = {metric: np.mean(values, axis=0) for metric, values in columns.items()}
    answered = np.array(rankings.dataset.answered)
    kept = {metric: np.where(answered, values, np.nan) for metric, values in mean.items()}
    return Metrics(len(names), Bootstrap().estimates(kept), Bootstrap().estimates(mean))


SHOWN = (MRR, at_k(RECALL, 1), at_k(RECALL, 10))
