"""The frontier of quality against bytes on a user's own sample, and the encoding that a budget of bytes is best spent on."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
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

    fitted = as_task(sample.fitted, folder)
    if moments is None and template.moments != "none":
        tell(f"estimating second moments on {len(sample.fitted):,} documents")
        moments = estimated_moments(loaded, template, fitted)
        moments = moments.factored() if template.moments == "factored" else moments
    materials = Materials(loaded, template, by_kind(moments, template.moments), fitted, folder, settings.memory_bytes)
    if settings.exact == "whitened":
        tell(f"covariances for whitening on {len(sample.fitted):,} documents")
    metric = materials.metric(template.moments, settings.exact == "whitened")
    total = sum(each.last - each.first + len(sample.scored) for each in plan.passes)
    with stage("full gradients", total) as done:
        exact = exact_scores(
            loaded,
            queries,
            sample.scored,
            {"exact": metric},
            memory_bytes=settings.memory_bytes,
            batch_tokens=template.batch_tokens,
            on_progress=lambda count, _: done(count),
        )["exact"].cosines(settings.exact_normalisation)
    usable = np.flatnonzero(np.isfinite(exact).all(axis=0))
    if len(usable) < len(sample.scored):
        tell(f"{len(sample.scored) - len(usable):,} documents have no gradient and are left out")
    judge = Judge(exact[:, usable], settings.top_k)
    documents = [sample.scored[place] for place in usable]
    agreement = _agreement(materials, plan, queries, documents, judge, stage)
    rows = _rows(materials, agreement, documents, stage)
    return Tuned(rows, recommend(rows, settings.budget), len(documents), plan.left_out)


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


def _agreement(
    materials: Materials,
    plan: Plan,
    queries: Sequence[Example],
    documents: Sequence[Example],
    judge: Judge,
    stage: Stage,
) -> dict[Candidate, dict[str, Estimate]]:
    """Each candidate's agreement with the exact scores."""
    found: dict[Candidate, dict[str, Estimate]] = {}
    with stage("encodings", len(plan.groups) * len(documents)) as done:
        for number, together in enumerate(plan.groups):
            on_progress = _after(number * len(documents), done)
            scores = measuring.scores(materials, together, queries, documents, on_progress=on_progress)
            for candidate, of_candidate in scores.items():
                agreement = judge.agreement(of_candidate)
                columns = {SPEARMAN: agreement.spearman, PEARSON: agreement.pearson, OVERLAP: agreement.overlap}
                found[candidate] = Bootstrap().estimates(columns)
    return found


def _after(before: int, done: Callable[[int], None]) -> Callable[[int], None]:
    """Adds what was done before."""
    return lambda count: done(before + count)


def _rows(
    materials: Materials,
    agreement: Mapping[Candidate, Mapping[str, Estimate]],
    documents: Sequence[Example],
    stage: Stage,
) -> tuple[Row, ...]:
    """The rows, with how fast each is; candidates that differ in their norms alone are as fast as each other."""
    examples = documents[:_SPEED_EXAMPLES]
    speeds: dict[object, float] = {}
    rows = []
    with stage("speed", len(agreement)) as done:
        for count, (candidate, estimates) in enumerate(agreement.items(), 1):
            spec = candidate.spec
            key = candidate.family.features, spec.block_rows, spec.block_columns, spec.preconditioner, spec.storage
            if key not in speeds:
                speeds[key] = measuring.examples_per_second(materials, candidate, examples)
            rows.append(Row(candidate, estimates, speeds[key]))
            done(count)
    return tuple(sorted(rows, key=lambda row: (row.candidate.num_bytes, -row.quality, row.candidate.family.name)))
