"""The class itself: saved, read, compared, reduced to factors, estimated."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_models import tiny_model
from tests.trackstar.second_moments.training import TrainRun, exact, from_checkpoint, load_gpt2
from trackstar import second_moments, storage
from trackstar.errors import TrackStarError
from trackstar.models import find_weights
from trackstar.second_moments import Exact, Factored, SecondMoments

pytest_plugins = ["tests.gcs"]


def some_moments() -> SecondMoments:
    values = torch.rand(5, 7, generator=torch.Generator().manual_seed(1))
    return SecondMoments("adamw", 1e-7, {"a": Exact(values), "b": Factored(torch.rand(3), torch.rand(4))})


def test_save_and_read(tmp_path: Path) -> None:
    moments = some_moments()
    first, second = str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors")
    second_moments.save(moments, first)
    second_moments.save(dataclasses.replace(moments, by_weight=dict(reversed(moments.by_weight.items()))), second)
    assert Path(first).read_bytes() == Path(second).read_bytes()
    found = second_moments.read(first)
    assert (found.source, found.epsilon, found.fingerprint) == ("adamw", 1e-7, moments.fingerprint)
    assert isinstance(found.by_weight["a"], Exact) and isinstance(found.by_weight["b"], Factored)
    assert found.by_weight["b"].shape == (3, 4)


def test_object_store(tmp_path: Path, gcs: str, trained: Callable[[str, str], TrainRun]) -> None:
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    expected = load_gpt2(checkpoint).fingerprint
    model = tiny_model("gpt2")
    weights = find_weights(model)
    storage.copy(str(checkpoint / "optimizer.pt"), f"{gcs}/run/checkpoint-3/optimizer.pt")
    moments = second_moments.load(f"{gcs}/run/checkpoint-3", model, weights)
    second_moments.save(moments, f"{gcs}/v.safetensors")
    assert moments.fingerprint == second_moments.read(f"{gcs}/v.safetensors").fingerprint == expected
    assert second_moments.load(f"{gcs}/v.safetensors", model, weights).fingerprint == expected
    with pytest.raises(TrackStarError, match=r"gs://.*/run: no such optimizer state"):
        second_moments.load(f"{gcs}/run", model, weights)
    with pytest.raises(TrackStarError, match=r"gs://.*/none\.pt: cannot be read"):
        second_moments.load(f"{gcs}/none.pt", model, weights)


def test_read_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(TrackStarError, match=r"none\.safetensors: no second moments here; run `trackstar fit`"):
        second_moments.read(str(tmp_path / "none.safetensors"))
    metadata = {"trackstar": json.dumps({"contents": "something else"})}
    save_file({"a": torch.ones(2, 2)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(TrackStarError, match=r"other\.safetensors: holds no second moments"):
        second_moments.read(str(tmp_path / "other.safetensors"))


def test_fingerprint_follows_names_values_and_form() -> None:
    moments = some_moments()
    changed = exact(moments.by_weight["a"]).clone()
    changed[4, 6] = torch.nextafter(changed[4, 6], torch.tensor(2.0))
    variants = [
        moments,
        dataclasses.replace(moments, by_weight={**moments.by_weight, "a": Exact(changed)}),
        dataclasses.replace(moments, by_weight={"c": moments.by_weight["a"], "b": moments.by_weight["b"]}),
        dataclasses.replace(moments, by_weight={**moments.by_weight, "a": Exact(changed.reshape(7, 5))}),
        moments.factored(),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert dataclasses.replace(moments).fingerprint == moments.fingerprint


def test_factored_keeps_rank_one_and_means() -> None:
    r, c = torch.rand(6) + 0.1, torch.rand(9) + 0.1
    moments = SecondMoments("estimated", 1e-8, {"w": Exact(torch.outer(r, c)), "f": Factored(r, c)})
    found = moments.factored()
    assert found.by_weight["f"] is moments.by_weight["f"]
    w = found.by_weight["w"]
    assert isinstance(w, Factored)
    torch.testing.assert_close(torch.outer(w.rows, w.columns) / w.rows.mean(), torch.outer(r, c))


def test_select(trained: Callable[[str, str], TrainRun]) -> None:
    _, checkpoint = trained("gpt2", "adamw_torch_fused")
    model, weights = from_checkpoint(checkpoint)
    moments = second_moments.load(str(checkpoint), model, weights)
    assert list(moments.select(weights[2:4]).by_weight) == [weight.name for weight in weights[2:4]]
    other = dataclasses.replace(weights[0], name="transformer.h.9.attn.c_attn.weight")
    with pytest.raises(TrackStarError, match=r"none for transformer\.h\.9\.attn\.c_attn\.weight"):
        moments.select([*weights, other])
    turned = dataclasses.replace(weights[0], outputs=weights[0].inputs, inputs=weights[0].outputs)
    with pytest.raises(TrackStarError, match=r"h\.0\.attn\.c_attn\.weight is 32×96, its moments are 96×32"):
        moments.select([turned])


def test_estimated() -> None:
    sums = torch.rand(3, 4, dtype=torch.float64) + 1
    moments = second_moments.estimated({"w": sums}, 8)
    assert moments.source == "estimated" and exact(moments.by_weight["w"]).dtype == torch.float32
    torch.testing.assert_close(exact(moments.by_weight["w"]), (sums / 8).float())
    with pytest.raises(TrackStarError, match="0 examples: the sample is empty"):
        second_moments.estimated({"w": sums}, 0)
    with pytest.raises(TrackStarError, match="8 examples: w is zero throughout"):
        second_moments.estimated({"w": torch.zeros(3, 4)}, 8)
