"""Encodings of a budget: as large as it allows, and of the bytes that rows of theirs really take."""

import dataclasses

import pytest
import torch

from tests.encoders import make_encoder
from tests.tiny_models import tiny_model
from trackstar.models import WeightInfo, block_layout, prepare_model
from trackstar.spec import Spec
from trackstar.stored_forms import FORMS
from trackstar.tuning.candidates import Family, at_most, families, member, stored_bytes

LOADED = prepare_model(tiny_model("llama"))
TEMPLATE: Spec = make_encoder(LOADED, layout="weights").spec
LARGE = [
    WeightInfo(f"model.layers.{layer}.{kind}.weight", "", m, n, False, kind, layer)
    for layer in range(8)
    for kind, m, n in (("attention", 256, 256), ("mlp", 768, 256))
]


@pytest.mark.parametrize("num_bytes", [64, 100, 513, 2048, 8192])
@pytest.mark.parametrize("family", families("exact"), ids=lambda family: family.name)
def test_the_largest_of_a_budget(family: Family, num_bytes: int) -> None:
    candidate = at_most(family, TEMPLATE, LARGE, num_bytes)
    blocks = len(block_layout(LARGE, family.layout, TEMPLATE.layer_groups).names)
    if candidate is None:
        smallest = member(family, TEMPLATE, blocks, 1, 1)
        assert stored_bytes(smallest) > num_bytes
        return
    spec = candidate.spec
    assert candidate.num_bytes <= num_bytes
    side = spec.block_rows
    assert side == spec.block_columns
    assert stored_bytes(member(family, TEMPLATE, blocks, side + 1, side + 1)) > num_bytes
    # What rows of this spec take where they are stored.
    rows = FORMS[spec.storage].pack(torch.randn(3, spec.dimension))
    scales = 0 if rows.scales is None else rows.scales.nbytes
    assert (rows.nbytes + scales) == 3 * candidate.num_bytes
    assert (spec.projection, spec.normalisation, spec.storage) == (
        family.projection,
        family.normalisation,
        family.storage,
    )


def test_no_side_is_larger_than_the_largest_weight() -> None:
    candidate = at_most(Family(storage="sign"), TEMPLATE, LARGE, 10**9)
    assert candidate is not None
    assert (candidate.spec.block_rows, candidate.spec.block_columns) == (768, 256)


def test_a_budget_without_any_encoding() -> None:
    assert at_most(Family(storage="sign"), TEMPLATE, LARGE, 1) is None  # 16 bits are wanted
    assert at_most(Family(storage="sign"), TEMPLATE, LARGE, 2) is not None
    assert at_most(Family(storage="float32"), TEMPLATE, LARGE, 63) is None


@pytest.mark.parametrize("moments", ["none", "factored", "exact"])
def test_families_differ_and_have_names_of_their_own(moments: str) -> None:
    found = families(moments, 0.3)
    assert len({family.name for family in found}) == len(set(found)) == len(found)
    assert {family.storage for family in found} == {"bfloat16", "int8", "sign"}
    assert {family.projection for family in found} == {"gaussian", "whitened"}
    pooled = [family for family in found if family.layout == "blocks"]
    assert {(family.projection, family.storage) for family in pooled} == {
        (projection, storage) for projection in ("gaussian", "whitened") for storage in ("bfloat16", "sign")
    }
    papers = [family for family in found if family.has_papers_layout]
    assert {family.preconditioner for family in papers} == {"none", "train"}
    assert {(f.projection, f.layout, f.normalisation, f.storage) for f in papers} == {
        ("gaussian", "blocks", "vector", "bfloat16")
    }
    kinds = {"exact": {"exact", "factored", "none"}, "factored": {"factored", "none"}, "none": {"none"}}
    assert {family.moments for family in found} == kinds[moments]
    assert all(family.whitening_damping == 0.3 for family in found)


def test_features_tell_apart_what_has_other_gradients() -> None:
    family = Family("whitened", moments="exact")
    same = [dataclasses.replace(family, storage="sign"), dataclasses.replace(family, normalisation="vector")]
    other = [
        dataclasses.replace(family, moments="none"),
        dataclasses.replace(family, exponents=(-0.5, 0.0)),
        dataclasses.replace(family, whitening_damping=1.0),
        dataclasses.replace(family, layout="blocks"),
        dataclasses.replace(family, projection="gaussian"),
    ]
    assert all(each.features == family.features for each in same)
    assert len({each.features for each in (family, *other)}) == 1 + len(other)
    gaussian = Family("gaussian")
    assert dataclasses.replace(gaussian, whitening_damping=1.0).features == gaussian.features
