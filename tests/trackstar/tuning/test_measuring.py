"""Scores of many encodings that share one run, against each encoded by itself; and what wide ones tend to."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.encoders import make_encoder
from tests.tiny_models import tiny_model
from tests.trackstar.test_gradients import examples, random_moments
from trackstar.encoder import Encoder, precondition_and_normalise
from trackstar.models import prepare_model
from trackstar.preconditioner import GramSum, Preconditioner, mix, mixing_weight
from trackstar.projection import orthogonal_projection
from trackstar.recipes import WHITENING_DAMPING
from trackstar.spec import Spec
from trackstar.stored_forms import FORMS
from trackstar.tuning import measuring
from trackstar.tuning.agreement import Judge
from trackstar.tuning.candidates import Candidate, Family, member
from trackstar.tuning.exact import exact_scores
from trackstar.tuning.materials import Materials, cut
from trackstar.tuning.sample import as_task
from trackstar.whitening import Projections

LOADED = prepare_model(tiny_model("llama"))
MOMENTS = {
    "none": None,
    "factored": random_moments(LOADED.weights, "factored"),
    "exact": random_moments(LOADED.weights, "exact"),
}
# Not of two tokens: see test_exact.
DOCUMENTS, QUERIES = ([e for e in examples(n, seed) if len(e.input_ids) > 2] for n, seed in ((25, 4), (6, 2)))
FITTED = [dataclasses.replace(example, first_target=1) for example in examples(40, seed=5)]
TEMPLATE: Spec = dataclasses.replace(
    make_encoder(LOADED, layout="weights").spec, projection="whitened", whitening_damping=WHITENING_DAMPING
)


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    """Sums of a few covariances at a time."""
    return Materials(LOADED, TEMPLATE, MOMENTS, as_task(FITTED, tmp_path), tmp_path, pass_bytes=20_000)


def candidate(family: Family, side: int, other: int | None = None) -> Candidate:
    blocks = len(LOADED.weights) if family.layout == "weights" else 6
    return Candidate(family, member(family, TEMPLATE, blocks, side, other or side))


def plain_encoder(materials: Materials, chosen: Candidate) -> Encoder:
    """The candidate's own, made anew: projections of just its shape."""
    own = Materials(LOADED, TEMPLATE, MOMENTS, materials.sample, materials.folder / "own", 1 << 30)
    return own.encoder(dataclasses.replace(chosen.spec, preconditioner="none"), exponents=chosen.family.exponents)


def preconditioner(gradients: torch.Tensor, damping: float) -> Preconditioner:
    total = GramSum(*gradients.shape[1:])
    total.add(gradients)
    return Preconditioner.of(total.mean(), damping, total.count)


@pytest.mark.parametrize("moments", ["none", "factored", "exact"])
@pytest.mark.parametrize("projected", ["gaussian", "whitened"])
def test_narrow_encodings_are_cut_out_of_wide_ones(materials: Materials, projected: str, moments: str) -> None:
    family = Family(projected, moments=moments)
    wide, narrow = candidate(family, 9, 8), candidate(family, 4, 6)
    encoder = materials.encoder(wide.spec)
    found = cut(encoder.project(DOCUMENTS).gradients, wide.spec, narrow.spec)
    for own in (plain_encoder(materials, narrow), materials.encoder(narrow.spec)):
        expected = own.project(DOCUMENTS).gradients
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("moments", ["none", "factored", "exact"])
def test_roots_are_what_whitened_projections_put_before_orthogonal_ones(materials: Materials, moments: str) -> None:
    spec = candidate(Family("whitened", moments=moments), 5, 7).spec
    found: Projections = materials.projections(spec)
    roots = materials.roots(moments)
    for weight in LOADED.weights:
        left, right = roots(weight)
        of_left = orthogonal_projection(spec.projection_seed, weight.name, "left", weight.outputs, 5)
        of_right = orthogonal_projection(spec.projection_seed, weight.name, "right", weight.inputs, 7)
        for root, directions, whitened in zip(
            (left.T, right), (of_left, of_right), found.by_weight[weight.name], strict=True
        ):
            expected = root @ directions
            assert (whitened.double() - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "sign"])
@pytest.mark.parametrize("normalisation", ["vector", "block"])
@pytest.mark.parametrize("r", ["none", "train"])
def test_scores_are_those_of_each_encoding_by_itself(
    materials: Materials, r: str, normalisation: str, storage: str
) -> None:
    family = Family("whitened", "weights", normalisation, r, storage, "none")
    chosen, wider = candidate(family, 4), candidate(dataclasses.replace(family, storage="float32"), 7, 5)
    together = measuring.Group((wider, chosen))
    found = measuring.scores(materials, together, QUERIES, DOCUMENTS)[chosen]
    encoder = plain_encoder(materials, chosen)
    root = None
    if r == "train":
        root = preconditioner(encoder.project(FITTED).gradients, chosen.spec.damping).inverse_root
    documents, _ = precondition_and_normalise(encoder.project(DOCUMENTS).gradients, root, normalisation)
    queries, _ = precondition_and_normalise(encoder.project(QUERIES).gradients, root, normalisation)
    stored = FORMS[storage].pack(documents).values(torch.float32)
    # A number that lies at the border between two stored ones may fall to either side: rounding differs.
    tolerance = {"float32": 2e-4, "bfloat16": 2e-3, "int8": 4e-3, "sign": 2e-2}[storage]
    np.testing.assert_allclose(found, (queries @ stored.T).numpy(), rtol=0, atol=tolerance)


def test_mixed_r_scores_what_is_stored_under_r_train(materials: Materials) -> None:
    family = Family("gaussian", "weights", "block", "mixed", "float32", "none")
    chosen = candidate(family, 4)
    task = examples(12, seed=8)
    found = measuring.scores(materials, measuring.Group((chosen,)), QUERIES, DOCUMENTS, task)[chosen]
    encoder = plain_encoder(materials, chosen)
    train = preconditioner(encoder.project(FITTED).gradients, chosen.spec.damping)
    evaluation = preconditioner(encoder.project(task).gradients, chosen.spec.damping)
    root = mix(train, evaluation, mixing_weight(train, evaluation)).inverse_root
    documents, _ = precondition_and_normalise(encoder.project(DOCUMENTS).gradients, root, "block")
    queries, _ = precondition_and_normalise(encoder.project(QUERIES).gradients, root, "block")
    np.testing.assert_allclose(found, (queries @ documents.T).numpy(), rtol=0, atol=2e-3)
    train_alone = candidate(dataclasses.replace(family, preconditioner="train"), 4)
    other = measuring.scores(materials, measuring.Group((train_alone,)), QUERIES, DOCUMENTS)[train_alone]
    assert np.abs(found - other).max() > 0.02  # R_eval counts


@pytest.mark.parametrize("normalisation", ["vector", "block"])
@pytest.mark.parametrize(
    ("projected", "moments"), [("gaussian", "exact"), ("gaussian", "none"), ("whitened", "factored")]
)
def test_wide_encodings_agree_with_the_exact_scores(
    materials: Materials, projected: str, moments: str, normalisation: str
) -> None:
    metric = materials.metric(moments, projected == "whitened")
    exact = exact_scores(LOADED, QUERIES, DOCUMENTS, {"it": metric})["it"].cosines(normalisation)
    judge = Judge(exact, 5)
    family = Family(projected, "weights", normalisation, "none", "float32", moments)
    candidates = [candidate(family, side) for side in (3, 24, 480)]
    scores = measuring.scores(materials, measuring.Group(tuple(candidates)), QUERIES, DOCUMENTS)
    found = [float(judge.agreement(scores[each]).spearman.mean()) for each in candidates]
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.95
    shuffled = np.random.default_rng(0).permuted(scores[candidates[2]], axis=1)
    assert abs(judge.agreement(shuffled).spearman.mean()) < 0.3  # 25 documents: chance of 1/√(6·25)


def test_groups_share_gradients_and_keep_to_the_memory() -> None:
    families = [Family(p, storage=s) for p in ("gaussian", "whitened") for s in ("bfloat16", "sign")]
    candidates = [candidate(family, side) for side in (2, 6, 4) for family in families]
    seeded = dataclasses.replace(candidates[0].spec, projection_seed=1)
    candidates.append(Candidate(candidates[0].family, seeded))
    roomy = measuring.group(candidates, 10, 1 << 30)
    assert len(roomy) == 3
    tight = measuring.group(candidates, 10, 4 * 10 * candidates[4].spec.dimension * 3)
    assert len(tight) > 3
    for groups in (roomy, tight):
        assert sorted(map(id, (c for g in groups for c in g.candidates))) == sorted(map(id, candidates))
        for together in groups:
            assert len({(c.family.features, c.spec.projection_seed) for c in together.candidates}) == 1
            assert together.widest.block_rows == max(c.spec.block_rows for c in together.candidates)


def test_windows_take_every_document_once_longest_first() -> None:
    windows = list(measuring.windows_by_length(DOCUMENTS, 7))
    assert sorted(place for window in windows for place in window) == list(range(len(DOCUMENTS)))
    lengths = [len(DOCUMENTS[place].input_ids) for window in windows for place in window]
    assert lengths == sorted(lengths, reverse=True)


def test_speed_is_measured(materials: Materials) -> None:
    for r in ("none", "train"):
        speed = measuring.examples_per_second(
            materials, candidate(Family("whitened", preconditioner=r, storage="sign"), 4), DOCUMENTS
        )
        assert 0 < speed < 10**7
