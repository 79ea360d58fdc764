"""Sizes of the benchmark, and the named rows that answer its questions."""

import dataclasses
from collections.abc import Sequence

from benchmarks.fact_tracing import settings as facts
from trackstar.recipes import WHITENING_DAMPING
from trackstar.small_models import TrainSettings
from trackstar.spec import ATTRIBUTED
from trackstar.tuning.candidates import Family, paper

KB = 1024


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is.

    Args:
        name: Name of the size.
        facts: The fact-tracing benchmark's size, whose corpora, models and retrainings these are.
        kilobytes: Bytes of an encoding at which every form is measured, in KB of 1,024.
        one_seed_above: KB above which one seed has to do.
        variant_kilobytes: KB at which variants are measured, with one seed.
        paper_kilobytes: KB of the paper's layout; the last without R.
        principal_kilobytes: KB of whitened sign bits that retraining looks at, beside the paper's layout; tail-patch looks at the
            variants'.
        seeds: Of the projections.
        exact_queries: Queries, of those that the model answers, whose exact scores are computed.
        exact_documents: Documents that they are computed with; None for all.
        r_dimension: Dimensions of a block up to which R is fitted.
        memory_bytes: For the queries' full gradients, or their encodings.
        models: Layers, width and steps of the models of `--models`, by name.
        model_kilobytes: KB at which these are measured.
        model_seeds: Of their projections.
        model_exact: Queries and documents of their exact scores.
    """

    name: str
    facts: facts.Size
    kilobytes: tuple[float, ...]
    one_seed_above: float
    variant_kilobytes: tuple[float, ...]
    paper_kilobytes: tuple[float, ...]
    principal_kilobytes: tuple[float, ...]
    seeds: tuple[int, ...]
    exact_queries: int
    exact_documents: int | None
    r_dimension: int
    memory_bytes: int
    models: dict[str, TrainSettings]
    model_kilobytes: tuple[float, ...]
    model_seeds: tuple[int, ...]
    model_exact: tuple[int, int | None]


def _model(hidden: int, intermediate: int, layers: int, steps: int, learning_rate: float) -> TrainSettings:
    return TrainSettings(
        hidden_size=hidden, intermediate_size=intermediate, layers=layers, steps=steps, learning_rate=learning_rate
    )


_LARGEST = dataclasses.replace(_model(512, 1408, 8, 400, 1e-3), precision="bfloat16")


SIZES = {
    "standard": Size(
        name="standard",
        facts=facts.SIZES["standard"],
        kilobytes=(1, 2, 4, 8, 16, 64, 128),
        one_seed_above=16,
        variant_kilobytes=(2, 8),
        paper_kilobytes=(2, 8, 32, 128),
        principal_kilobytes=(1, 2, 4, 8),
        seeds=(0, 1, 2),
        exact_queries=200,
        exact_documents=None,
        r_dimension=1_300,
        memory_bytes=3 << 30,
        models={
            "2M": facts.SIZES["standard"].model,
            "7M": _model(256, 768, 8, 800, 2e-3),
            "25M": _LARGEST,
        },
        model_kilobytes=(1, 4, 16, 128),
        model_seeds=(0,),
        model_exact=(50, 500),
    ),
    "small": Size(
        name="small",
        facts=facts.SIZES["small"],
        kilobytes=(0.125, 0.5),
        one_seed_above=0.125,
        variant_kilobytes=(0.25,),
        paper_kilobytes=(0.125, 0.5),
        principal_kilobytes=(0.125, 0.5),
        seeds=(0, 1),
        exact_queries=8,
        exact_documents=60,
        r_dimension=100,
        memory_bytes=256 << 20,
        models={"tiny": dataclasses.replace(facts.SIZES["small"].model, hidden_size=32, steps=20)},
        model_kilobytes=(0.125, 0.5),
        model_seeds=(0,),
        model_exact=(4, 40),
    ),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """What a group of rows is there for.

    Args:
        key: What the command line calls it.
        title: The question.
        families: The rows, at all sizes or at one.
        everywhere: Whether at all sizes.
        every_seed: Whether with all seeds, though not at all sizes.
    """

    key: str
    title: str
    families: Sequence[Family]
    everywhere: bool = True
    every_seed: bool = False


STORAGES = ("bfloat16", "int8", "sign")
DAMPING = 0.1
"""Of all rows but those that ask for less; the product's default was set by what those showed."""
GAUSSIAN = Family("gaussian", moments="exact")
GAUSSIAN_SIGN = dataclasses.replace(GAUSSIAN, storage="sign")
WHITENED = Family("whitened", moments="none", whitening_damping=DAMPING)
SIGN = dataclasses.replace(WHITENED, storage="sign")
OUTPUTS = dataclasses.replace(SIGN, attributed="outputs")
LESS_DAMPED = tuple(dataclasses.replace(family, whitening_damping=WHITENING_DAMPING) for family in (SIGN, OUTPUTS))
FOLDED = dataclasses.replace(LESS_DAMPED[0], moments="factored")


def questions() -> tuple[Question, ...]:
    """The named rows. All but variants have one block a weight, each to unit norm first."""
    both = (SIGN, OUTPUTS)
    return (
        Question("gaussian", "What do fewer bits lose, with Gaussian projections?", _stored(GAUSSIAN)),
        Question("whitened", "What does whitening give, and fewer bits then?", _stored(WHITENED)),
        Question(
            "attributed",
            "Some of the weights, with larger blocks?",
            [
                *(dataclasses.replace(SIGN, attributed=some) for some in ATTRIBUTED if some != "all"),
                dataclasses.replace(WHITENED, attributed="outputs"),
            ],
        ),
        Question(
            "moments",
            "Does whitening want V, too?",
            [
                *(dataclasses.replace(family, moments="exact") for family in both),
                dataclasses.replace(GAUSSIAN_SIGN, moments="none"),
            ],
            everywhere=False,
        ),
        Question(
            "preconditioner",
            "Does R help after whitening, and without?",
            [
                dataclasses.replace(family, preconditioner=r)
                for family in (SIGN, OUTPUTS, GAUSSIAN_SIGN)
                for r in ("train", "mixed")
            ],
            everywhere=False,
        ),
        Question(
            "parts",
            "Which parts of whitening, and how?",
            [
                dataclasses.replace(SIGN, exponents=(-0.5, 0.0)),
                dataclasses.replace(SIGN, exponents=(0.0, -0.5)),
                dataclasses.replace(SIGN, exponents=(-0.25, -0.25)),
                dataclasses.replace(SIGN, moments="factored"),
                FOLDED,
                *(dataclasses.replace(family, whitening_damping=1.0) for family in both),
            ],
            everywhere=False,
        ),
        Question(
            "damping",
            "Less damping of whitening?",
            LESS_DAMPED,
            everywhere=False,
            every_seed=True,
        ),
        Question(
            "norms",
            "Norms and layout",
            [
                *(dataclasses.replace(family, normalisation="vector") for family in both),
                dataclasses.replace(SIGN, layout="blocks"),
                dataclasses.replace(GAUSSIAN_SIGN, normalisation="vector"),
                dataclasses.replace(GAUSSIAN_SIGN, layout="blocks"),
            ],
            everywhere=False,
        ),
    )


def paper_families() -> tuple[Family, Family]:
    """The paper's layout with mixed R and without R."""
    return paper("exact", "mixed"), paper("exact", "none")


def _stored(family: Family) -> list[Family]:
    return [dataclasses.replace(family, storage=storage) for storage in STORAGES]
