"""The rows of one corpus: questions × sizes × seeds as encodings, with the names of their files."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.frontier.settings import (
    FOLDED,
    GAUSSIAN,
    GAUSSIAN_SIGN,
    KB,
    LESS_DAMPED,
    OUTPUTS,
    SIGN,
    WHITENED,
    Question,
    Size,
    paper_families,
    questions,
)
from trackstar.models import LoadedModel
from trackstar.spec import ATTRIBUTED, Spec
from trackstar.tuning.candidates import Candidate, Family, at_most

PAPER = Question("paper", "The paper's layout: pooled blocks, unit norm of the whole, bfloat16", paper_families())
KEYS = (*(question.key for question in questions()), PAPER.key)
"""What `Choice.questions` may hold."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of the rows; None takes all.

    Args:
        questions: Keys of the questions.
        storages: Stored forms.
        kilobytes: KB of an encoding, for questions that are asked at all sizes and for the paper's layout.
        dimension: Numbers of an encoding at most.
        seeds: How many of the projections' seeds.
    """

    questions: Sequence[str] | None = None
    storages: Sequence[str] | None = None
    kilobytes: Sequence[float] | None = None
    dimension: int | None = None
    seeds: int | None = None

    def takes(self, question: Question, candidate: Candidate) -> bool:
        """Whether an encoding is among them, as far as its size in KB does not matter."""
        return (
            (self.questions is None or question.key in self.questions)
            and (self.storages is None or candidate.family.storage in self.storages)
            and (self.dimension is None or candidate.spec.dimension <= self.dimension)
        )

    def applied(self, size: Size) -> Size:
        """A size with the KB and the seeds that are chosen."""
        return dataclasses.replace(
            size,
            kilobytes=tuple(sorted(self.kilobytes)) if self.kilobytes is not None else size.kilobytes,
            seeds=size.seeds[: self.seeds],
        )


EVERYTHING = Choice()


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: an encoding under several projections.

    Args:
        question: What it is there for.
        candidates: One a seed.
    """

    question: str
    candidates: tuple[Candidate, ...]

    @property
    def family(self) -> Family:
        """Of all of them."""
        return self.candidates[0].family

    @property
    def num_bytes(self) -> int:
        """Of one stored encoding."""
        return self.candidates[0].num_bytes

    @property
    def shape(self) -> str:
        """Blocks × d₀ × d₁."""
        spec = self.candidates[0].spec
        return f"{spec.num_blocks}×{spec.block_rows}×{spec.block_columns}"

    @property
    def files(self) -> list[str]:
        """Names of the candidates' files."""
        return [file_name(candidate) for candidate in self.candidates]


def rows(loaded: LoadedModel, template: Spec, size: Size, choice: Choice = EVERYTHING) -> list[Row]:
    """All rows of a corpus, or those chosen."""
    size = choice.applied(size)
    found: list[Row] = []
    for question in questions():
        kilobytes = size.kilobytes if question.everywhere else size.variant_kilobytes
        for family in question.families:
            for kb in kilobytes:
                every_seed = question.every_seed or (question.everywhere and kb <= size.one_seed_above)
                seeds = size.seeds if every_seed else size.seeds[:1]
                found += _row(question, family, loaded, template, kb, seeds, size.r_dimension, choice)
    return [*found, *paper_rows(loaded, template, size, size.seeds, choice)]


def model_rows(loaded: LoadedModel, template: Spec, size: Size, choice: Choice = EVERYTHING) -> list[Row]:
    """The few rows that models of several sizes are compared by; of the choice the stored forms and the dimension count."""
    several = Question("models", "Models of several sizes", ())
    choice = Choice(storages=choice.storages, dimension=choice.dimension)
    found: list[Row] = []
    for family in (GAUSSIAN, GAUSSIAN_SIGN, WHITENED, SIGN, OUTPUTS):
        for kb in size.model_kilobytes:
            found += _row(several, family, loaded, template, kb, size.model_seeds, size.r_dimension, choice)
    return [*found, *paper_rows(loaded, template, size, size.model_seeds, choice)]


def paper_rows(
    loaded: LoadedModel, template: Spec, size: Size, seeds: Sequence[int], choice: Choice = EVERYTHING
) -> list[Row]:
    """The paper's layout: decomposing blocks of the largest size takes long, so that one goes without R, and with one seed."""
    mixed, without = paper_families()
    largest = size.paper_kilobytes[-1]
    found = []
    for kb in size.paper_kilobytes:
        if choice.kilobytes is not None and kb not in choice.kilobytes:
            continue
        family, some = (without, seeds[:1]) if kb == largest else (mixed, seeds)
        found += _row(PAPER, family, loaded, template, kb, some, size.r_dimension, choice)
    return found


def principal(loaded: LoadedModel, template: Spec, size: Size) -> dict[str, Candidate]:
    """The encodings that retraining looks at, by the names that tables give them; one seed."""
    return _candidates(_principal(size), loaded, template, size)


def patched(loaded: LoadedModel, template: Spec, size: Size) -> dict[str, Candidate]:
    """Those of them that tail-patch looks at, too: sign bits under block norms at the variants' sizes, and the paper's layout."""
    chosen = {
        name: (family, kb)
        for name, (family, kb) in _principal(size).items()
        if (family.storage, family.normalisation) == ("sign", "block") and kb in size.variant_kilobytes
    }
    return _candidates({**chosen, paper_name(size): _principal(size)[paper_name(size)]}, loaded, template, size)


def _principal(size: Size) -> dict[str, tuple[Family, float]]:
    """Name → family and KB."""
    middle, large = size.variant_kilobytes[-1], size.kilobytes[-1]
    _, paper = paper_families()
    return {
        **{
            f"whitened, {attributed}, sign, {kb:g} KB": (dataclasses.replace(SIGN, attributed=attributed), kb)
            for attributed in ATTRIBUTED
            for kb in size.principal_kilobytes
        },
        **{
            f"whitened, {'V factored, ' if family is FOLDED else ''}damping {family.whitening_damping:g}, "
            f"{family.attributed}, sign, {kb:g} KB": (family, kb)
            for family in (*LESS_DAMPED, FOLDED)
            for kb in size.variant_kilobytes
        },
        f"whitened, all, bfloat16, {large:g} KB": (WHITENED, large),
        f"whitened, outputs, bfloat16, {large:g} KB": (dataclasses.replace(WHITENED, attributed="outputs"), large),
        f"whitened, V, outputs, sign, {middle:g} KB": (dataclasses.replace(OUTPUTS, moments="exact"), middle),
        f"whitened, all, sign, whole norm, {middle:g} KB": (dataclasses.replace(SIGN, normalisation="vector"), middle),
        f"Gaussian, V, all, sign, {middle:g} KB": (GAUSSIAN_SIGN, middle),
        f"Gaussian, V, all, bfloat16, {large:g} KB": (GAUSSIAN, large),
        paper_name(size): (paper, size.paper_kilobytes[-1]),
    }


def _candidates(
    chosen: Mapping[str, tuple[Family, float]], loaded: LoadedModel, template: Spec, size: Size
) -> dict[str, Candidate]:
    """The largest of each family within its KB, with the first seed; without those of which nothing so small exists."""
    seeded = dataclasses.replace(template, projection_seed=size.seeds[0])
    found = {name: at_most(family, seeded, loaded.weights, int(kb * KB)) for name, (family, kb) in chosen.items()}
    return {name: candidate for name, candidate in found.items() if candidate is not None}


def paper_name(size: Size) -> str:
    """What tables call the paper's layout at its largest."""
    return f"the paper's layout, {size.paper_kilobytes[-1]:g} KB"


def papers(all_rows: Iterable[Row]) -> Row | None:
    """The row of the paper's layout at its largest, if it is among these."""
    found = [row for row in all_rows if row.question == PAPER.title]
    return max(found, key=lambda row: row.num_bytes, default=None)


def unique(all_rows: Iterable[Row]) -> list[Candidate]:
    """Every candidate once."""
    return list({file_name(c): c for row in all_rows for c in row.candidates}.values())


def file_name(candidate: Candidate) -> str:
    """A name that says all of what an encoding is, fit for a file."""
    family, spec = candidate.family, candidate.spec
    left, right = family.exponents
    projection = family.projection
    if projection == "whitened":
        projection += f"_orthogonal{left:g}_{right:g}_damping{family.whitening_damping:g}"
    parts = [
        "frontier",
        projection,
        *([family.attributed] if family.attributed != "all" else []),
        f"V_{family.moments}",
        f"{family.layout}{spec.block_rows}x{spec.block_columns}",
        family.normalisation,
        f"R_{family.preconditioner}",
        family.storage,
        f"seed{spec.projection_seed}",
    ]
    return "-".join(parts)


def _row(
    question: Question,
    family: Family,
    loaded: LoadedModel,
    template: Spec,
    kilobytes: float,
    seeds: Sequence[int],
    r_dimension: int,
    choice: Choice,
) -> list[Row]:
    """The row, unless nothing so small exists, its R would be too large, or it is not chosen."""
    candidates = []
    for seed in seeds:
        seeded = dataclasses.replace(template, projection_seed=seed)
        candidate = at_most(family, seeded, loaded.weights, int(kilobytes * KB))
        if candidate is None or not choice.takes(question, candidate):
            return []
        if family.preconditioner != "none" and candidate.spec.block_dimension > r_dimension:
            return []
        candidates.append(candidate)
    return [Row(question.title, tuple(candidates))]
