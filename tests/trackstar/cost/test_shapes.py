"""What encoding is counted to take, against the operations that torch really does.

Counted are matrix products, as torch runs them, with and without what is to be counted; attention's own products, which the model
leaves out, are batched ones and told apart.
"""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.encoders import make_encoder
from tests.tiny_models import tiny_model
from trackstar.attributed import attributing
from trackstar.batching import Batch, Example, collate
from trackstar.cost.shapes import EncodingShape, WhiteningShape
from trackstar.cost.skeleton import load_skeleton
from trackstar.covariances import CovarianceSink, plan_parts, shared_inputs
from trackstar.gradients import GradientEngine, Sink, SquareSumSink
from trackstar.models import LoadedModel, WeightInfo, prepare_model
from trackstar.second_moments import SecondMoments, estimated
from trackstar.spec import ATTRIBUTED

LENGTH, COUNT = 11, 3
TOKENS = LENGTH * COUNT
aten = torch.ops.aten


class NoSink:
    """Looks at nothing."""

    def begin(self, batch: Batch) -> None:
        pass

    def forward(self, weight: WeightInfo, a: torch.Tensor) -> None:
        return None

    def backward(self, weight: WeightInfo, saved: None, s: torch.Tensor) -> None:
        pass


def counted(loaded: LoadedModel, sink: Sink) -> dict[str, int]:
    """FLOP of one batch of `COUNT` examples of `LENGTH` tokens, by the kind of product."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 90, (COUNT, LENGTH), generator=generator).tolist()
    batch = collate([Example(str(i), some) for i, some in enumerate(ids)])
    in_place = {aten.addmm_: lambda total, left, right, *_, **__: 2 * left[0] * left[1] * right[1]}
    with GradientEngine(loaded, sink) as engine, FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        engine.run(batch)
    return {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}


def total(flops: dict[str, int]) -> int:
    return sum(flops.values())


@pytest.mark.parametrize("attributed", ATTRIBUTED)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "qwen2", "gpt_neox"])
def test_the_floor_is_that_of_all_matrices(name: str, attributed: str) -> None:
    encoder = make_encoder(prepare_model(tiny_model(name)), attributed=attributed, layout="weights")
    loaded = encoder.loaded
    shape = EncodingShape.of(loaded, encoder.spec)
    flops = counted(loaded, NoSink())
    products = flops.get("aten.mm", 0) + flops.get("aten.addmm", 0)
    head = loaded.model.get_output_embeddings().weight.numel()
    # The last token of an example predicts nothing, and the LM head does not see it.
    assert products == shape.floor_flops(TOKENS) - 4 * head * COUNT


@pytest.mark.parametrize("attributed", ATTRIBUTED)
def test_what_is_attributed_takes_the_rest(attributed: str) -> None:
    """Projections, squares and covariances of the attributed weights alone, on top of the floor."""
    loaded = prepare_model(
        tiny_model("llama", dtype=torch.bfloat16)
    )  # float32 products with few vectors are not torch's
    encoder = make_encoder(loaded, attributed=attributed, layout="weights")
    shape = EncodingShape.of(encoder.loaded, encoder.spec)
    floor = total(counted(encoder.loaded, NoSink()))
    projecting = total(counted(encoder.loaded, encoder.sink)) - floor
    assert projecting == shape.projection_flops(TOKENS, COUNT)
    squaring = total(counted(encoder.loaded, SquareSumSink(encoder.loaded.weights))) - floor
    # Squaring and adding up are no products: 2 an entry and example.
    assert squaring == shape.squares_flops(TOKENS, COUNT) - shape.floor_flops(TOKENS) - 2 * shape.attributed * COUNT
    parts = plan_parts(encoder.loaded.weights, shared_inputs(encoder.loaded), [])
    summing = total(counted(encoder.loaded, CovarianceSink(parts, {}))) - floor
    whitening = WhiteningShape.of([parts], "none")
    assert summing == whitening.sum_flops(TOKENS - COUNT, COUNT)  # without the last tokens, again


def test_exact_moments_take_the_attributed_gradients() -> None:
    loaded = attributing(prepare_model(tiny_model("llama")), "outputs")
    squares = {weight.name: torch.ones(weight.outputs, weight.inputs) for weight in loaded.weights}
    moments: SecondMoments = estimated(squares, 1)
    encoder = make_encoder(loaded, moments, attributed="outputs", layout="weights")
    shape = EncodingShape.of(encoder.loaded, encoder.spec)
    assert shape.moments == "exact"
    floor = total(counted(encoder.loaded, NoSink()))
    # Scaling is no product: one an entry and example.
    expected = shape.projection_flops(TOKENS, COUNT) - shape.attributed * COUNT
    assert total(counted(encoder.loaded, encoder.sink)) - floor == expected
    parts = plan_parts(loaded.weights, {}, set(moments.exact_weights))
    assert all(part.exact for part in parts)
    summing = total(counted(encoder.loaded, CovarianceSink(parts, encoder.inverse_roots))) - floor
    whitening = WhiteningShape.of([parts], "exact")
    assert summing == whitening.sum_flops(TOKENS, COUNT) - shape.attributed * COUNT


@pytest.mark.parametrize("attributed", ATTRIBUTED)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_shape_is_the_specs_whatever_the_model_was_restricted_to(
    name: str, attributed: str, tmp_path: Path
) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded = prepare_model(model)
    spec = make_encoder(loaded, attributed=attributed, layout="weights").spec
    shape = EncodingShape.of(loaded, spec)
    chosen = attributing(loaded, attributed)
    assert shape.matrices == tuple((weight.outputs, weight.inputs) for weight in chosen.weights)
    assert shape.num_blocks == len(shape.matrices)
    everything = sum(weight.outputs * weight.inputs for weight in loaded.weights)
    assert shape.parameters == everything + loaded.model.get_output_embeddings().weight.numel()
    assert EncodingShape.of(chosen, spec) == shape
    skeleton = load_skeleton(str(tmp_path))
    assert EncodingShape.of(skeleton, spec) == EncodingShape.of(attributing(skeleton, attributed), spec) == shape
