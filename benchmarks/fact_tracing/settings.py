"""Sizes of the benchmark, and the rows of its tables."""

import dataclasses
import itertools

from benchmarks.fact_tracing.gradients import Features
from benchmarks.fact_tracing.methods import Method
from trackstar.small_models import TrainSettings

BM25, RANDOM, GOLD = "BM25", "random", "gold"


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The part with retraining, on a smaller corpus of its own.

    Args:
        facts: Facts of its corpus.
        passages: Passages among them.
        words_per_passage: Short ones: a batch is padded to its longest document, so that a few long ones double the time.
        model: Shape and training.
        queries: Queries whose losses are measured.
        subsets: Random halves of the corpus, m.
        seeds: Trainings of each half.
        k: Documents a query that leave-k-out removes.
        groups: Groups of queries that share a training.
        leave_out_seeds: Trainings of each group and method.
        models: Models of the whole corpus whose scores are averaged, for the LDS that does not depend on one training's chance.
    """

    facts: int
    passages: int
    words_per_passage: int
    model: TrainSettings
    queries: int
    subsets: int
    seeds: tuple[int, ...]
    k: int
    groups: int
    leave_out_seeds: tuple[int, ...]
    models: int


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is.

    Args:
        name: Name of the size.
        facts: Facts in each corpus.
        passages: Passages of other text among them.
        model: Shape and training of the model.
        sides: d₀ = d₁ of the pooled blocks: small, middle, large.
        weight_sides: d₀ = d₁ where every weight has a block of its own; about as many numbers as the middle size, and as the
            large one.
        seeds: Of the projections.
        costly_seeds: Of the rows that sweep damping and mixing, and of the small and the large sizes.
        patch_queries: Queries of the tail-patch.
        patch_k: Proponents of each.
        truth: The part with retraining.
    """

    name: str
    facts: int
    passages: int
    model: TrainSettings
    sides: tuple[int, int, int]
    weight_sides: tuple[int, int]
    seeds: tuple[int, ...]
    costly_seeds: tuple[int, ...]
    patch_queries: int
    patch_k: int
    truth: GroundTruth

    def with_every_seed(self) -> "Size":
        """The same with all seeds of the projections for every row."""
        return dataclasses.replace(self, costly_seeds=self.seeds)

    def with_retraining_seeds(self, count: int) -> "Size":
        """The same with so many trainings of each subset, group and method."""
        seeds = tuple(range(count))
        return dataclasses.replace(self, truth=dataclasses.replace(self.truth, seeds=seeds, leave_out_seeds=seeds))


_SMALL_MODEL = TrainSettings(
    vocabulary_size=2048, hidden_size=48, intermediate_size=128, layers=2, steps=200, batch_size=16, learning_rate=3e-3
)

SIZES = {
    "standard": Size(
        name="standard",
        facts=1200,
        passages=800,
        model=TrainSettings(layers=8, steps=1500, learning_rate=3e-3),
        sides=(16, 32, 64),
        weight_sides=(17, 34),
        seeds=(0, 1, 2),
        costly_seeds=(0,),
        patch_queries=60,
        patch_k=10,
        truth=GroundTruth(
            facts=150,
            passages=30,
            words_per_passage=20,
            model=TrainSettings(
                vocabulary_size=2048,
                hidden_size=96,
                intermediate_size=256,
                layers=3,
                steps=300,
                batch_size=32,
                learning_rate=3e-3,
            ),
            queries=100,
            subsets=20,
            seeds=(0, 1),
            k=3,
            groups=2,
            leave_out_seeds=(0, 1),
            models=5,
        ),
    ),
    "small": Size(
        name="small",
        facts=100,
        passages=40,
        model=_SMALL_MODEL,
        sides=(4, 8, 12),
        weight_sides=(5, 8),
        seeds=(0, 1),
        costly_seeds=(0,),
        patch_queries=8,
        patch_k=3,
        truth=GroundTruth(
            facts=40,
            passages=10,
            words_per_passage=20,
            model=dataclasses.replace(_SMALL_MODEL, steps=40),
            queries=12,
            subsets=4,
            seeds=(0,),
            k=2,
            groups=1,
            leave_out_seeds=(0,),
            models=2,
        ),
    ),
}


def ablation(size: Size) -> list[Method]:
    """Every row that is scored with gradients; those with the same projected gradients stand together."""
    small, middle, large = size.sides
    rows: list[Method] = []
    for seed, moments in itertools.product(size.seeds, ("none", "exact")):
        features = Features(moments, middle, seed=seed)
        for preconditioner, unit in itertools.product(("none", "train", "eval", "mixed"), (True, False)):
            rows.append(Method(features, preconditioner, unit))
        rows += [Method(features, p, normalisation="block") for p in ("none", "train", "mixed")]
        if moments == "exact" and seed in size.costly_seeds:
            rows += [Method(features, "mixed", mixing=weight) for weight in (0.01, 0.1, 0.5, 0.9, 0.99)]
            rows += [Method(features, p, damping=c) for p in ("train", "mixed") for c in (0.001, 0.01, 1.0)]
    for seed, moments in itertools.product(size.seeds, ("none", "exact")):
        rows += by_weight(Features(moments, size.weight_sides[0], "weights", seed))
    for seed, moments in itertools.product(size.costly_seeds, ("none", "exact")):
        rows += [Method(Features(moments, small, seed=seed), p) for p in ("none", "train", "mixed")]
    for seed in size.costly_seeds:
        rows += by_weight(Features("exact", size.weight_sides[1], "weights", seed))
    # Decomposing sixteen blocks of 4,096 numbers takes several minutes a preconditioner: at that size only without.
    rows += [
        Method(Features(m, large, seed=seed)) for seed, m in itertools.product(size.costly_seeds, ("none", "exact"))
    ]
    return rows


def by_weight(features: Features) -> list[Method]:
    """The rows of a layout with one block a weight: unit norm of the whole, or weight by weight first."""
    return [Method(features, p, normalisation=n) for p in ("none", "train", "mixed") for n in ("vector", "block")]


def principal(size: Size) -> dict[str, Method]:
    """The rows that tail-patch and retraining look at, by the names that the tables give them."""
    middle, seed = size.sides[1], size.seeds[0]
    with_v, without = Features("exact", middle, seed=seed), Features("none", middle, seed=seed)
    return {
        "TrackStar (V, mixed R, unit norm)": Method(with_v, "mixed"),
        "V, R_train, unit norm": Method(with_v, "train"),
        "V, unit norm": Method(with_v),
        "R_train, unit norm": Method(without, "train"),
        "gradient cosine": Method(without),
        "TRAK-like (R_train, no unit norm)": Method(without, "train", unit_norm=False),
        "gradient dot product": Method(without, unit_norm=False),
        "V, mixed R, unit norm by weight": Method(
            Features("exact", size.weight_sides[0], "weights", seed), "mixed", normalisation="block"
        ),
    }


LEFT_OUT = (
    "TrackStar (V, mixed R, unit norm)",
    "V, mixed R, unit norm by weight",
    "gradient cosine",
    BM25,
)
"""Rows whose proponents are left out; each costs trainings, where LDS costs none a row."""
