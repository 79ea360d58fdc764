"""The frontier of quality against bytes on a user's own sample, and the encoding that a budget of bytes is best spent on."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from trackstar.batching import Example
from trackstar.errors import TrackStarError
from trackstar.evaluation.intervals import Bootstrap, Estimate
from trackstar.models import LoadedModel
from trackstar.second_moments import SecondMoments
from trackstar.spec import Spec
from trackstar.tuning import measuring
from trackstar.tuning.agreement import Judge
from trackstar.tuning.candidates import Candidate
from trackstar.tuning.exact import exact_scores
from trackstar.tuning.kept import Kept
from trackstar.tuning.materials import Materials, estimated_moments
from trackstar.tuning.plan import Plan, Settings, make_plan
from trackstar.tuning.sample import Sample, as_task

SPEARMAN, PEARSON, OVERLAP = "spearman", "pearson", "overlap"
NEAR_BEST = 0.005
"""Candidates whose mean correlation is so near the best one's are as good: of these, bytes and speed decide."""
_SPEED_EXAMPLES = 64

Stage = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]
"""Called with a stage's name and its number of examples; what it gives is told how many are done."""
Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of one encoding.

    Args:
        candidate: The encoding.
        agreement: `SPEARMAN`, `PEARSON` and `OVERLAP` with the exact scores, means over the queries.
        examples_per_second: Encoded and stored.
    """

    candidate: Candidate
    agreement: Mapping[str, Estimate]
    examples_per_second: float

    @property
    def quality(self) -> float:
        """Mean Spearman correlation; −1 where no query has one."""
        mean = self.agreement[SPEARMAN].mean
        return -1.0 if mean is None else mean


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The frontier.

    Args:
        rows: One an encoding, by bytes, the best first among equals.
        recommended: The row that the budget is best spent on.
        documents: How many were scored.
        left_out: What is not among the rows, and why.
    """

    rows: tuple[Row, ...]
    recommended: Row
    documents: int
    left_out: tuple[str, ...]


def tune(
    loaded: LoadedModel,
    template: Spec,
    moments: SecondMoments | None,
    sample: Sample,
    queries: Sequence[Example],
    settings: Settings,
    folder: Path,
    kept: str,
    stage: Stage,
    tell: Tell = lambda line: None,
) -> Tuned:
    """Measures the frontier and recommends an encoding.

    Args:
        loaded: The model.
        template: A spec of the model; whatever no family decides is as it says. Its projection is "whitened", so that it has a
            damping.
        moments: Second moments; None estimates them on the sample, or goes without where the template has none.
        sample: The documents.
        queries: The queries.
        settings: What is compared.
        folder: For the sample, and for sums that may be larger than the memory; it must exist.
        kept: Folder, local or gs://, of what is found on the way; what an earlier run left there is not measured again.
        stage: Shows how far it is.
        tell: Told what is found on the way.

    Raises:
        TrackStarError: see `make_plan`; fewer documents than are compared; a query whose gradient is zero or not finite.
    """
    if len(sample.scored) <= settings.top_k:
        raise TrackStarError(
            f"{len(sample.scored):,} documents to score, of which the best {settings.top_k} are compared: raise --sample_size, "
            "lower --top_k, or give a larger --corpus"
        )
    plan = make_plan(loaded.weights, template, settings, len(queries), len(sample.fitted))
    return _Comparison(loaded, template, moments, sample, queries, settings, folder, kept, stage, tell).run(plan)


class _Comparison:
    """One run of `tune`; takes its arguments."""

    def __init__(
        self,
        loaded: LoadedModel,
        template: Spec,
        moments: SecondMoments | None,
        sample: Sample,
        queries: Sequence[Example],
        settings: Settings,
        folder: Path,
        kept: str,
        stage: Stage,
        tell: Tell,
    ):
        self._loaded, self._template, self._moments = loaded, template, moments
        self._sample, self._queries, self._settings = sample, queries, settings
        self._folder, self._stage, self._tell = folder, stage, tell
        self._kept = Kept(kept, template, sample, queries, settings)

    def run(self, plan: Plan) -> Tuned:
        """Measures what is not kept."""
        exact = self._kept.exact(lambda: self._exact(plan))
        usable = np.flatnonzero(np.isfinite(exact).all(axis=0))
        if len(usable) < len(self._sample.scored):
            self._tell(f"{len(self._sample.scored) - len(usable):,} documents have no gradient and are left out")
        documents = [self._sample.scored[place] for place in usable]
        agreement = self._agreement(plan, documents, Judge(exact[:, usable], self._settings.top_k))
        speeds = self._speeds(plan, documents[:_SPEED_EXAMPLES])
        rows = [Row(candidate, agreement[candidate], speeds[candidate]) for candidate in plan.candidates]
        rows.sort(key=lambda row: (row.candidate.num_bytes, -row.quality, row.candidate.family.name))
        return Tuned(tuple(rows), recommend(rows, self._settings.budget), len(documents), plan.left_out)

    @cached_property
    def _materials(self) -> Materials:
        """What encodings are made of; second moments are estimated if need be."""
        kind = self._template.moments
        fitted = as_task(self._sample.fitted, self._folder)
        moments = self._moments
        if moments is None and kind != "none":
            self._tell(f"estimating second moments on {len(self._sample.fitted):,} documents")
            moments = estimated_moments(self._loaded, self._template, fitted)
            moments = moments.factored() if kind == "factored" else moments
        return Materials(
            self._loaded,
            self._template,
            by_kind(moments, kind),
            fitted,
            self._folder,
            self._settings.memory_bytes,
            self._tell,
        )

    def _exact(self, plan: Plan) -> np.ndarray:
        """Cosines of full gradients, float64 [Q, N]; NaN for documents without one."""
        settings, documents = self._settings, self._sample.scored
        metric = self._materials.metric(self._template.moments, settings.exact == "whitened")
        total = sum(each.last - each.first + len(documents) for each in plan.passes)
        with self._stage("full gradients", total) as done:
            found = exact_scores(
                self._loaded,
                self._queries,
                documents,
                {"exact": metric},
                memory_bytes=settings.memory_bytes,
                batch_tokens=self._template.batch_tokens,
                on_progress=lambda count, _: done(count),
            )
        return found["exact"].cosines(settings.exact_normalisation)

    def _agreement(
        self, plan: Plan, documents: Sequence[Example], judge: Judge
    ) -> dict[Candidate, Mapping[str, Estimate]]:
        """Each candidate's agreement with the exact scores."""
        found: dict[Candidate, Mapping[str, Estimate]] = {}
        for candidate in plan.candidates:
            if (known := self._kept.agreement(candidate)) is not None:
                found[candidate] = known
        missing = [candidate for candidate in plan.candidates if candidate not in found]
        if found:
            self._tell(f"{len(found):,} of {len(plan.candidates):,} encodings were measured before")
        groups = measuring.group(missing, len(self._queries), self._settings.memory_bytes)
        if not groups:
            return found
        with self._stage("encodings", len(groups) * len(documents)) as done:
            for number, together in enumerate(groups):
                on_progress = _after(number * len(documents), done)
                scores = measuring.scores(self._materials, together, self._queries, documents, on_progress=on_progress)
                for candidate, of_candidate in scores.items():
                    agreement = judge.agreement(of_candidate)
                    columns = {SPEARMAN: agreement.spearman, PEARSON: agreement.pearson, OVERLAP: agreement.overlap}
                    found[candidate] = Bootstrap().estimates(columns)
                    self._kept.keep_agreement(candidate, found[candidate])
        return found

    def _speeds(self, plan: Plan, examples: Sequence[Example]) -> dict[Candidate, float]:
        """Examples a second of each candidate; those that differ in their norms alone are as fast as each other."""
        known: dict[object, float] = {}
        missing: dict[object, Candidate] = {}
        for candidate in plan.candidates:
            if (speed := self._kept.speed(candidate)) is not None:
                known[_costs(candidate)] = speed
            else:
                missing.setdefault(_costs(candidate), candidate)
        missing = {costs: candidate for costs, candidate in missing.items() if costs not in known}
        if missing:
            with self._stage("speed", len(missing)) as done:
                for count, (costs, candidate) in enumerate(missing.items(), 1):
                    known[costs] = measuring.examples_per_second(self._materials, candidate, examples)
                    self._kept.keep_speed(candidate, known[costs])
                    done(count)
        return {candidate: known[_costs(candidate)] for candidate in plan.candidates}


def by_kind(moments: SecondMoments | None, kind: str) -> dict[str, SecondMoments | None]:
    """All second moments that candidates may ask for: none, those there are, and cheaper ones."""
    found: dict[str, SecondMoments | None] = {"none": None}
    if moments is not None:
        found[kind] = moments
        found["factored"] = moments.factored()
    return found


def recommend(rows: Sequence[Row], budget: int) -> Row:
    """Of the rows within the budget that are about as good as the best of them: the one of fewest bytes, then the fastest.

    Raises:
        TrackStarError: none is within the budget.
    """
    within = [row for row in rows if row.candidate.num_bytes <= budget]
    if not within:
        raise TrackStarError(f"--budget {budget:,} bytes: no encoding is so small")
    best = max(row.quality for row in within)
    near = [row for row in within if row.quality >= best - NEAR_BEST]
    return min(near, key=lambda row: (row.candidate.num_bytes, -row.examples_per_second, row.candidate.family.name))


def _after(before: int, done: Callable[[int], None]) -> Callable[[int], None]:
    """Adds what was done before."""
    return lambda count: done(before + count)


def _costs(candidate: Candidate) -> object:
    """What the time of encoding depends on."""
    spec = candidate.spec
    return candidate.family.features, spec.block_rows, spec.block_columns, spec.preconditioner, spec.storage
