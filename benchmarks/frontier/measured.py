"""Every encoding's ranking of a corpus and its agreement with the exact scores, kept in files; and the metrics of them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.common import make_spec
from benchmarks.fact_tracing.ablation import TOP_K, Rankings
from benchmarks.fact_tracing.dataset import Dataset
from benchmarks.fact_tracing.gradients import Model, Tell
from benchmarks.fact_tracing.methods import Ranked
from benchmarks.frontier.rows import file_name
from benchmarks.frontier.settings import DAMPING, Size
from trackstar.batching import Example
from trackstar.corpus import Record
from trackstar.evaluation.intervals import Bootstrap, Estimate
from trackstar.evaluation.metrics import MRR, RECALL, at_k, fact_metrics
from trackstar.models import LoadedModel
from trackstar.results import Query
from trackstar.second_moments import SecondMoments
from trackstar.spec import Spec
from trackstar.tuning import measuring
from trackstar.tuning.agreement import Judge
from trackstar.tuning.candidates import Candidate, Family
from trackstar.tuning.exact import exact_scores
from trackstar.tuning.materials import Materials
from trackstar.tuning.run import OVERLAP, PEARSON, SPEARMAN
from trackstar.tuning.sample import as_task, tokenization

METRICS = {
    "gradients": ("none", False),
    "V": ("exact", False),
    "whitened": ("none", True),
    "V, whitened": ("exact", True),
}
"""Exact scores: name → second moments, and whether both sides are whitened."""
REFERENCES = tuple((metric, normalisation) for metric in METRICS for normalisation in ("vector", "block"))
RECALL_10 = at_k(RECALL, 10)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A trained model with its corpus as examples.

    Args:
        loaded: The model.
        template: A spec of it.
        documents: The corpus.
        queries: All queries.
        moments: By kind.
    """

    loaded: LoadedModel
    template: Spec
    documents: tuple[Example, ...]
    queries: tuple[Example, ...]
    moments: Mapping[str, SecondMoments | None]

    @classmethod
    def of(cls, checkpoint: Path, texts: Sequence[str], queries: Sequence[Query]) -> "Bench":
        """Loads the model with its optimizer's second moments, and tokenizes."""
        model = Model(checkpoint)
        template = make_spec(
            model.loaded,
            block_rows=1,
            block_columns=1,
            projection="whitened",
            moments=model.moments,
            storage="bfloat16",
            whitening_damping=DAMPING,
        )
        to_examples = tokenization(model.loaded, template)
        records = (Record(str(place), "corpus", place, text, None) for place, text in enumerate(texts))
        return cls(
            model.loaded,
            template,
            tuple(example for record in records for example in to_examples.documents(record)[0]),
            tuple(to_examples.query(query.example_id, query.prompt, query.target) for query in queries),
            {"none": None, "exact": model.moments, "factored": model.moments.factored()},
        )

    def materials(self, folder: Path, tell: Tell) -> Materials:
        """Fitted on the whole corpus."""
        folder.mkdir(parents=True, exist_ok=True)
        fitted = as_task(self.documents, folder)
        return Materials(self.loaded, self.template, self.moments, fitted, folder, tell=tell)


class Measured:
    """Rankings and agreement of one corpus and model; what is missing is made.

    Rankings are of the queries that the model answers alone. A run that breaks off goes on where it was: an encoding is done when
    its files are there.

    Args:
        dataset: The corpus with its trained model.
        bench: The same as examples.
        size: Of the benchmark.
        exact: Queries and documents of the exact scores, None documents for all; or None, for rankings without agreement.
        folder: For sums, while it runs.
        tell: Told how far it is.
    """

    def __init__(
        self, dataset: Dataset, bench: Bench, size: Size, exact: tuple[int, int | None] | None, folder: Path, tell: Tell
    ):
        self.dataset = dataset
        self.bench = bench
        self.rankings = Rankings(dataset, tell)
        self._size = size
        self._tell = tell
        self._materials = bench.materials(folder, tell)
        answered = np.flatnonzero(dataset.answered).tolist()
        enough = len(answered) >= size.facts.patch_queries
        self.places: list[int] = answered if enough else list(range(len(dataset.queries)))
        """Places of the queries that are scored: those that the model answers, or all where it answers too few."""
        self.has_exact = exact is not None
        num_queries, num_documents = exact or (None, None)
        self.exact_places = [self.places[number] for number in spaced(len(self.places), num_queries)]
        self.exact_documents = spaced(len(bench.documents), num_documents)
        identity = json.dumps([self.exact_places, self.exact_documents])
        self._exact_name = "exact-" + hashlib.sha256(identity.encode()).hexdigest()[:12]

    def make(self, candidates: Sequence[Candidate]) -> None:
        """Makes what is missing."""
        missing = [candidate for candidate in candidates if not self._is_done(candidate)]
        self._tell(f"{self.dataset.name}: {len(missing)} of {len(candidates)} encodings to measure")
        queries = [self.bench.queries[place] for place in self.places]
        row_of = {place: row for row, place in enumerate(self.places)}
        exact_rows = [row_of[place] for place in self.exact_places]
        groups = measuring.group(missing, len(queries), self._size.memory_bytes)
        for number, together in enumerate(groups, 1):
            name = f"{self.dataset.name}: {number} of {len(groups)} runs, {len(together.candidates)} encodings"
            self._tell(f"{name}, {together.family.projection}, widest {together.widest.dimension:,} numbers")
            scores = measuring.scores(self._materials, together, queries, self.bench.documents, self.bench.queries)
            for candidate, dense in scores.items():
                self._save_ranking(candidate, dense)
                if self._wants_agreement(candidate):
                    self._save_agreement(candidate, dense[np.ix_(exact_rows, self.exact_documents)])

    def metrics(self, files: Sequence[str]) -> dict[str, Estimate]:
        """MRR and Recall@10 of one row's rankings, averaged query by query, over the queries that were scored."""
        values = self._values(files)
        return Bootstrap().estimates({name: np.mean(of_seeds, axis=0) for name, of_seeds in values.items()})

    def difference(self, files: Sequence[str], others: Sequence[str]) -> dict[str, Estimate]:
        """Their MRR and Recall@10 less another row's, query by query."""
        values, less = self._values(files), self._values(others)
        return Bootstrap().estimates({n: np.mean(values[n], axis=0) - np.mean(less[n], axis=0) for n in values})

    def by_seed(self, files: Sequence[str]) -> dict[str, list[float]]:
        """The means of each seed: how much the projection's chance does."""
        return {name: [float(np.mean(of_seed)) for of_seed in v] for name, v in self._values(files).items()}

    def agreement(self, candidate: Candidate) -> dict[str, dict[str, Estimate]]:
        """Reference → measure → mean over queries, of one encoding."""
        content = json.loads(self._agreement_file(candidate).read_text())
        return {
            reference: Bootstrap().estimates({name: np.array(values, float) for name, values in measures.items()})
            for reference, measures in content.items()
        }

    def exact_metrics(self) -> dict[str, dict[str, Estimate]]:
        """MRR and Recall@10 of the exact scores themselves, over their queries; only where all documents were scored."""
        if not self.has_exact or len(self.exact_documents) < len(self.bench.documents):
            return {}
        gold = self.rankings.is_gold()[self.exact_places]
        found = {}
        for (metric, normalisation), scores in self._exact.items():
            ranked = Ranked.of(scores.astype(np.float32), self.dataset.ids, TOP_K)
            correct = np.take_along_axis(gold, ranked.places, axis=1)
            values = fact_metrics(correct.tolist(), (1, 10))
            found[f"{metric}, {normalisation}"] = Bootstrap().estimates({n: values[n] for n in (MRR, RECALL_10)})
        return found

    def _values(self, files: Sequence[str]) -> dict[str, list[np.ndarray]]:
        """Metric → values of each query, one array a seed."""
        gold = self.rankings.is_gold()[self.places]
        found: dict[str, list[np.ndarray]] = {}
        for file in files:
            correct = np.take_along_axis(gold, self.rankings.read(file).some(self.places).places, axis=1)
            values = fact_metrics(correct.tolist(), (1, 10))
            for name in (MRR, RECALL_10):
                found.setdefault(name, []).append(values[name])
        return found

    @cached_property
    def _exact(self) -> dict[tuple[str, str], np.ndarray]:
        """Reference → exact scores of the sample, [queries, documents] float64."""
        path = self.rankings.path(self._exact_name)
        if not path.exists():
            extent = f"{len(self.exact_places):,} queries × {len(self.exact_documents):,} documents"
            self._tell(f"{self.dataset.name}: full gradients, {extent}")
            found = exact_scores(
                self.bench.loaded,
                [self.bench.queries[place] for place in self.exact_places],
                [self.bench.documents[place] for place in self.exact_documents],
                {name: self._materials.metric(*settings) for name, settings in METRICS.items()},
                memory_bytes=self._size.memory_bytes,
            )
            arrays = {
                f"{metric}, {normalisation}": found[metric].cosines(normalisation)
                for metric, normalisation in REFERENCES
            }
            partial = path.with_name(f"{path.stem}.partial.npz")
            np.savez(partial, **arrays)
            partial.replace(path)
        with np.load(path) as arrays:
            return {(metric, norm): arrays[f"{metric}, {norm}"] for metric, norm in REFERENCES}

    @cached_property
    def _judges(self) -> dict[tuple[str, str], Judge]:
        k = min(10, len(self.exact_documents) - 1)
        return {reference: Judge(scores, k) for reference, scores in self._exact.items()}

    def _save_ranking(self, candidate: Candidate, scores: np.ndarray) -> None:
        ranked = Ranked.of(scores, self.dataset.ids, TOP_K)
        shape = len(self.dataset.queries), ranked.places.shape[1]
        places, values = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
        places[self.places], values[self.places] = ranked.places, ranked.scores
        Ranked(places, values).save(self.rankings.path(file_name(candidate)))

    def _save_agreement(self, candidate: Candidate, sampled: np.ndarray) -> None:
        """Of the sample's scores, [queries, documents], with all exact ones."""
        found: dict[str, dict[str, list[float | None]]] = {}
        for (metric, normalisation), judge in self._judges.items():
            agreement = judge.agreement(sampled)
            columns = {SPEARMAN: agreement.spearman, PEARSON: agreement.pearson, OVERLAP: agreement.overlap}
            found[f"{metric}, {normalisation}"] = {
                measure: [None if np.isnan(value) else float(value) for value in values]
                for measure, values in columns.items()
            }
        path = self._agreement_file(candidate)
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(found))
        partial.replace(path)

    def _wants_agreement(self, candidate: Candidate) -> bool:
        """Of the first seed alone: over hundreds of queries and all documents a projection's chance does little."""
        return self.has_exact and candidate.spec.projection_seed == self._size.seeds[0]

    def _is_done(self, candidate: Candidate) -> bool:
        wanted = self._wants_agreement(candidate)
        return (self._agreement_file(candidate) if wanted else self.rankings.path(file_name(candidate))).exists()

    def _agreement_file(self, candidate: Candidate) -> Path:
        """Written after the ranking: where it is, both are."""
        return self.rankings.path(file_name(candidate)).with_suffix(f".{self._exact_name}.json")


def spaced(total: int, count: int | None) -> list[int]:
    """So many evenly spaced numbers below `total`; all of them for None."""
    count = min(count or total, total)
    return [number * total // count for number in range(count)]


def own_reference(family: Family) -> str | None:
    """The exact scores that a family's tend to as it gets wider, if they are among the `REFERENCES`."""
    metric = next(
        (n for n, found in METRICS.items() if found == (family.moments, family.projection == "whitened")), None
    )
    plain = Family(
        family.projection,
        "weights",
        family.normalisation,
        "none",
        family.storage,
        family.moments,
        DAMPING if family.projection == "whitened" else family.whitening_damping,
    )
    pooled_alike = dataclasses.replace(family, layout="weights") == plain and family.normalisation == "vector"
    return f"{metric}, {family.normalisation}" if metric and (family == plain or pooled_alike) else None
