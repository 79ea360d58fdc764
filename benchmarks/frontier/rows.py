"""The rows of one corpus: questions × sizes × seeds as encodings, with the names of their files."""

import dataclasses
from collections.abc import Iterable, Sequence

from benchmarks.frontier.settings import GAUSSIAN, KB, WHITENED, Question, Size, paper_families, questions
from trackstar.models import LoadedModel, block_layout
from trackstar.spec import Spec
from trackstar.tuning.candidates import Candidate, Family, at_most, member

PAPER = Question("The paper's layout: pooled blocks, unit norm of the whole, bfloat16", paper_families())


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


def rows(loaded: LoadedModel, template: Spec, size: Size) -> list[Row]:
    """All rows of a corpus."""
    found: list[Row] = []
    for question in questions():
        kilobytes = size.kilobytes if question.everywhere else (size.variant_kilobytes,)
        for family in question.families:
            for kb in kilobytes:
                seeds = size.seeds if kb <= size.one_seed_above else size.seeds[:1]
                found += _row(question.title, family, loaded, template, kb, seeds, size.r_dimension)
    return [*found, *paper_rows(loaded, template, size.paper_sides, size.seeds)]


def model_rows(loaded: LoadedModel, template: Spec, size: Size) -> list[Row]:
    """The few rows that models of several sizes are compared by."""
    found: list[Row] = []
    for family in (GAUSSIAN, WHITENED):
        for storage in ("bfloat16", "sign"):
            chosen = dataclasses.replace(family, storage=storage)
            for kb in size.model_kilobytes:
                found += _row(
                    "Models of several sizes", chosen, loaded, template, kb, size.model_seeds, size.r_dimension
                )
    return [*found, *paper_rows(loaded, template, size.paper_sides, size.model_seeds)]


def paper_rows(loaded: LoadedModel, template: Spec, sides: Sequence[int], seeds: Sequence[int]) -> list[Row]:
    """The paper's layout: decomposing blocks of the largest side takes long, so that size goes without R, and with one seed."""
    mixed, without = paper_families()
    found = []
    for side in sides:
        family = without if side == sides[-1] else mixed
        blocks = len(block_layout(loaded.weights, family.layout, template.layer_groups).names)
        some = seeds[:1] if side == sides[-1] else seeds
        candidates = [
            Candidate(family, member(family, dataclasses.replace(template, projection_seed=seed), blocks, side, side))
            for seed in some
        ]
        found.append(Row(PAPER.title, tuple(candidates)))
    return found


def principal(loaded: LoadedModel, template: Spec, size: Size) -> dict[str, Candidate]:
    """The encodings that tail-patch and retraining look at, by the names that tables give them; one seed."""
    small, middle, large = size.kilobytes[0], size.variant_kilobytes, size.kilobytes[-1]
    sign = dataclasses.replace(WHITENED, storage="sign")
    chosen = {
        f"whitened, sign, {small:g} KB": (sign, small),
        f"whitened, sign, {middle:g} KB": (sign, middle),
        f"whitened, bfloat16, {large:g} KB": (WHITENED, large),
        f"Gaussian, V, sign, {middle:g} KB": (dataclasses.replace(GAUSSIAN, storage="sign"), middle),
        f"Gaussian, V, bfloat16, {large:g} KB": (GAUSSIAN, large),
    }
    seeded = dataclasses.replace(template, projection_seed=size.seeds[0])
    found = {}
    for name, (family, kb) in chosen.items():
        candidate = at_most(family, seeded, loaded.weights, int(kb * KB))
        if candidate is not None:
            found[name] = candidate
    [largest] = paper_rows(loaded, template, size.paper_sides[-1:], size.seeds)
    return {**found, f"the paper's layout, {largest.num_bytes / KB:g} KB": largest.candidates[0]}


def unique(all_rows: Iterable[Row]) -> list[Candidate]:
    """Every candidate once."""
    return list({file_name(c): c for row in all_rows for c in row.candidates}.values())


def file_name(candidate: Candidate) -> str:
    """A name that says all of what an encoding is, fit for a file."""
    family, spec = candidate.family, candidate.spec
    left, right = family.exponents
    projection = family.projection
    if projection == "whitened":
        projection += f"{left:g}_{right:g}_damping{family.whitening_damping:g}"
    parts = [
        "frontier",
        projection,
        f"V_{family.moments}",
        f"{family.layout}{spec.block_rows}x{spec.block_columns}",
        family.normalisation,
        f"R_{family.preconditioner}",
        family.storage,
        f"seed{spec.projection_seed}",
    ]
    return "-".join(parts)


def _row(
    question: str,
    family: Family,
    loaded: LoadedModel,
    template: Spec,
    kilobytes: float,
    seeds: Sequence[int],
    r_dimension: int,
) -> list[Row]:
    """The row, unless nothing so small exists, or its R would be too large."""
    candidates = []
    for seed in seeds:
        seeded = dataclasses.replace(template, projection_seed=seed)
        candidate = at_most(family, seeded, loaded.weights, int(kilobytes * KB))
        if candidate is None:
            return []
        if family.preconditioner != "none" and candidate.spec.block_dimension > r_dimension:
            return []
        candidates.append(candidate)
    return [Row(question, tuple(candidates))]
