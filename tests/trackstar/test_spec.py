"""The spec: its identity, its form on disk, and what it says when it differs."""

import dataclasses
import json

import pytest

from tests.encoders import make_encoder
from tests.tiny_models import tiny_model
from trackstar.errors import TrackStarError
from trackstar.fitting import PENDING, check_memory, differences
from trackstar.models import prepare_model
from trackstar.spec import Spec


@pytest.fixture(scope="module")
def spec() -> Spec:
    return make_encoder(prepare_model(tiny_model("llama"))).spec


def test_reads_what_it_wrote(spec: Spec) -> None:
    again = Spec.from_json(spec.to_json())
    assert again == spec
    assert again.hash == spec.hash
    assert (spec.dimension, spec.bytes_per_encoding) == (6 * 30, 6 * 30 * 4)


def test_every_field_is_part_of_the_identity(spec: Spec) -> None:
    others = {"str": "other", "int": 77, "float": 0.77, "bool": None}
    for field in dataclasses.fields(Spec):
        if field.name == "format_version" or len(field.metadata["choices"] or ()) == 1:
            continue
        value = getattr(spec, field.name)
        choices = field.metadata["choices"]
        other = next(c for c in choices if c != value) if choices else others[type(value).__name__]
        changed = dataclasses.replace(spec, **{field.name: (not value) if isinstance(value, bool) else other})
        assert changed.hash != spec.hash, field.name
        [line] = spec.differences(changed)
        assert line.startswith(f"{field.name}: ")


def test_bad_specs_are_told_apart(spec: Spec) -> None:
    fields = json.loads(spec.to_json())
    cases = {
        "not the spec of an index": "nonsense",
        r"format version 99; this program reads version 3\. .* fitted and built again": json.dumps(
            {**fields, "format_version": 99}
        ),
        "format version 2": json.dumps({k: v for k, v in fields.items() if k != "attributed"} | {"format_version": 2}),
        "unknown or missing fields: attributed": json.dumps({k: v for k, v in fields.items() if k != "attributed"}),
        "unknown or missing fields: colour": json.dumps({**fields, "colour": 1}),
        "edited by hand": json.dumps({**fields, "damping": 0.5}),
    }
    for message, text in cases.items():
        with pytest.raises(TrackStarError, match=message):
            Spec.from_json(text)
    with pytest.raises(TrackStarError, match="layout is 'rows'; it must be one of blocks, weights"):
        dataclasses.replace(spec, layout="rows")
    with pytest.raises(TrackStarError, match="block_rows is 0"):
        dataclasses.replace(spec, block_rows=0)
    with pytest.raises(TrackStarError, match="attributed is 'some'; it must be one of all, outputs, attention, mlp"):
        dataclasses.replace(spec, attributed="some")


def test_hashes_still_to_come_do_not_count_as_differences(spec: Spec) -> None:
    stored = dataclasses.replace(spec, preconditioner="abc", moments="exact", moments_fingerprint="def")
    wanted = dataclasses.replace(stored, preconditioner=PENDING, moments_fingerprint=PENDING)
    assert differences(stored, wanted) == []
    assert differences(stored, dataclasses.replace(wanted, damping=0.2)) == ["damping: 0.1 here, 0.2 there"]
    assert differences(spec, wanted) != []  # the stored one has no preconditioner at all


def test_sums_that_do_not_fit_are_refused_before_they_are_made(spec: Spec) -> None:
    large = dataclasses.replace(spec, preconditioner=PENDING, num_blocks=16, block_rows=1024, block_columns=1024)
    with pytest.raises(TrackStarError, match=r"GiB .* lower --block_rows"):
        check_memory(large, 1)
    check_memory(dataclasses.replace(large, preconditioner="none"), 1)
    check_memory(dataclasses.replace(spec, preconditioner=PENDING), 1)


def test_bytes_of_every_form(spec: Spec) -> None:
    odd = dataclasses.replace(spec, block_rows=1, block_columns=9, num_blocks=3)  # d = 27
    expected = {"bfloat16": 54, "float32": 108, "int8": 27, "sign": 4}
    for storage, size in expected.items():
        assert dataclasses.replace(odd, storage=storage).bytes_per_encoding == size
    assert dataclasses.replace(odd, storage="int8").describe_storage() == "int8, 27 bytes a row and a scale of 4"
    with pytest.raises(TrackStarError, match="storage is 'bit'; it must be one of bfloat16, float32, int8, sign"):
        dataclasses.replace(odd, storage="bit")
