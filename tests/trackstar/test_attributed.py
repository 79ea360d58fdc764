"""Which weights are attributed, and that encodings of some of them are those of all with the others cut away."""

import dataclasses

import pytest
import torch

from tests.encoders import make_encoder
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.trackstar.test_covariances import covariances
from tests.trackstar.test_gradients import examples, random_moments
from trackstar import whitening
from trackstar.attributed import attributing, select
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.models import LoadedModel, WeightInfo, prepare_model
from trackstar.spec import ATTRIBUTED


def inputs_of(loaded: LoadedModel, disturbed: WeightInfo | None = None) -> dict[str, torch.Tensor]:
    """What every weight reads when a few tokens run through the model, with noise on the output of one of them."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for weight in loaded.weights:

        def keep(module, arguments, output, name=weight.name):
            found[name] = arguments[0].detach().clone()
            return output + 1.0 if disturbed is not None and name == disturbed.name else output

        handles.append(loaded.model.get_submodule(weight.module).register_forward_hook(keep))
    try:
        with torch.no_grad():
            loaded.model(input_ids=torch.arange(2, 9)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_outputs_are_what_no_other_weight_of_their_part_reads(name: str) -> None:
    """Of a layer's attention, and of its MLP: the weights on whose outputs the inputs of no other one depend."""
    loaded = prepare_model(tiny_model(name))
    before = inputs_of(loaded)
    last = set()
    for weight in loaded.weights:
        after = inputs_of(loaded, weight)
        part = [w.name for w in loaded.weights if (w.layer, w.kind) == (weight.layer, weight.kind)]
        if all(torch.equal(before[other], after[other]) for other in part):
            last.add(weight.name)
    chosen = select(loaded.weights, "outputs")
    assert {weight.name for weight in chosen} == last
    assert len(chosen) == 2 * 3
    assert list(chosen) == [weight for weight in loaded.weights if weight.name in last]


def test_choices() -> None:
    weights = prepare_model(tiny_model("llama")).weights
    assert select(weights, "all") == weights
    assert {weight.kind for weight in select(weights, "mlp")} == {"mlp"}
    assert len(select(weights, "mlp")) + len(select(weights, "attention")) == len(weights)
    for chosen in ATTRIBUTED:
        assert select(select(weights, chosen), chosen) == select(weights, chosen)
    with pytest.raises(TrackStarError, match="must be one of all, outputs, attention, mlp"):
        select(weights, "queries")
    with pytest.raises(TrackStarError, match="--attributed mlp: the model has no such matrix"):
        select(select(weights, "attention"), "mlp")


def test_unknown_names_leave_the_last_matrix() -> None:
    weights = [
        WeightInfo(f"h.0.mixer.{name}.weight", f"h.0.mixer.{name}", 8, 8, False, "mlp", 0)
        for name in ("first", "second")
    ]
    assert [weight.module for weight in select(weights, "outputs")] == ["h.0.mixer.second"]


@pytest.mark.parametrize("chosen", ATTRIBUTED)
@pytest.mark.parametrize("moments", ["none", "exact"])
def test_encodings_are_those_of_all_weights_cut(chosen: str, moments: str) -> None:
    loaded = prepare_model(tiny_model("gpt2"))
    second = random_moments(loaded.weights, moments)
    asked = examples(5, seed=3)
    everything = make_encoder(loaded, moments=second, layout="weights").project(asked).gradients
    places = [i for i, weight in enumerate(loaded.weights) if weight in select(loaded.weights, chosen)]
    some = attributing(loaded, chosen)
    of_some = None if second is None else second.select(some.weights)
    found = make_encoder(loaded, moments=of_some, layout="weights", attributed=chosen)
    assert found.loaded.weights == some.weights
    torch.testing.assert_close(found.project(asked).gradients, everything[:, places])
    assert found.loaded.coverage.attributed == sum(w.outputs * w.inputs for w in some.weights)


def test_whitened_encodings_are_those_of_all_weights_cut() -> None:
    """Each weight is whitened by itself."""
    loaded = prepare_model(tiny_model("llama"))
    sample, asked = examples(20, seed=4), examples(5, seed=3)
    made = {}
    for chosen in ("all", "outputs"):
        plain = make_encoder(loaded, layout="weights", attributed=chosen)
        parts, sums = covariances(plain, sample)
        spec = dataclasses.replace(plain.spec, projection="whitened", whitening_damping=0.1)
        projections = whitening.whitened(parts, sums, spec, None)
        spec = dataclasses.replace(spec, projection_fingerprint=projections.fingerprint)
        made[chosen] = Encoder(loaded, spec, None, None, projections).project(asked).gradients
    places = [i for i, weight in enumerate(loaded.weights) if weight in select(loaded.weights, "outputs")]
    torch.testing.assert_close(
        made["outputs"], made["all"][:, places], rtol=1e-4, atol=1e-4 * float(made["all"].abs().max())
    )
    assert "attributed: outputs (--attributed), " in attributing(loaded, "outputs").coverage.describe()
