"""Which weights are attributed, how they lie in blocks, and what is said of the rest."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer
from trackstar.devices import choose_device
from trackstar.errors import TrackStarError
from trackstar.models import block_layout, find_weights, load_model, measure_coverage, prepare_model


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_matrix_of_every_layer_is_found(name: str) -> None:
    model = tiny_model(name)
    weights = find_weights(model)
    parameters = dict(model.named_parameters())
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    expected = {
        parameter_name
        for parameter_name, parameter in parameters.items()
        if parameter.ndim == 2
        and id(parameter) not in embeddings
        and ".0." in parameter_name.replace("layers.1.", ".0.")
    }
    assert expected <= {weight.name for weight in weights}
    assert {weight.layer for weight in weights} == {0, 1, 2}
    assert {weight.kind for weight in weights} == {"attention", "mlp"}
    for weight in weights:
        shape = (weight.inputs, weight.outputs) if weight.transposed else (weight.outputs, weight.inputs)
        assert tuple(parameters[weight.name].shape) == shape
        assert (weight.kind == "attention") == ("attn" in weight.name or "attention" in weight.name)
    coverage = measure_coverage(model, weights)
    assert coverage.share > 0.8
    assert "non-embedding parameters" in coverage.describe()


def test_blocks_pool_neighbouring_layers_attention_and_mlp_apart() -> None:
    weights = prepare_model(tiny_model("llama")).weights
    layout = block_layout(weights, "blocks", 2)
    assert layout.names == ("layers 0-1 attention", "layers 0-1 mlp", "layers 2-2 attention", "layers 2-2 mlp")
    assert layout.block_of["model.layers.1.self_attn.q_proj.weight"] == 0
    assert layout.block_of["model.layers.2.mlp.down_proj.weight"] == 3
    assert len(block_layout(weights, "blocks", 8).names) == 6  # three layers make three groups
    assert len(block_layout(weights, "weights", 8).names) == 21


def test_the_papers_layout_has_sixteen_blocks() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=32, num_attention_heads=2
    )
    layout = block_layout(find_weights(AutoModelForCausalLM.from_config(config)), "blocks", 8)
    assert len(layout.names) == 16
    assert layout.names[2] == "layers 4-7 attention"


def test_a_weight_used_twice_is_attributed_once() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    names = [weight.name for weight in find_weights(model)]
    assert names.count("model.layers.0.mlp.up_proj.weight") == 1
    assert "model.layers.1.mlp.up_proj.weight" not in names


def test_parametrised_layers_are_left_out_aloud_and_enforced() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            parametrizations.weight_norm(getattr(layer.mlp, name))
    with pytest.raises(
        TrackStarError,
        match=r"(?s)only attributed: .*left out: model.layers.0.mlp.gate_proj.param.*--allow_low_coverage",
    ) as error:
        prepare_model(model)
    assert "and" in str(error.value)
    assert prepare_model(model, allow_low_coverage=True).coverage.share < 0.5


def test_fused_experts_are_left_out_aloud() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    with pytest.raises(TrackStarError, match="experts"):
        prepare_model(AutoModelForCausalLM.from_config(config))


def test_a_model_without_layers_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

    with pytest.raises(TrackStarError, match="no Linear or Conv1D matrix"):
        prepare_model(Flat())


def test_saved_and_loaded(tmp_path) -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "model")
    assert load_model(str(tmp_path / "model")).tokenizer is None
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert loaded.fingerprint == prepare_model(model).fingerprint
    assert loaded.tokenizer_fingerprint == prepare_model(model, tiny_tokenizer()).tokenizer_fingerprint != "none"
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.context_length == 128
    half = load_model(str(tmp_path / "model"), "bfloat16")
    assert (half.dtype_name, loaded.dtype_name) == ("bfloat16", "float32")


def test_a_fingerprint_sees_one_changed_value() -> None:
    model = tiny_model("llama")
    before = prepare_model(model).fingerprint
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert prepare_model(model).fingerprint != before


def test_loading_errors_say_where_and_what(tmp_path) -> None:
    with pytest.raises(TrackStarError, match="nowhere: cannot load a causal language model"):
        load_model(str(tmp_path / "nowhere"))
    tiny_model("llama").save_pretrained(tmp_path / "model")  # embeds 97 tokens
    tiny_tokenizer().save_pretrained(tmp_path / "model")  # has 294
    with pytest.raises(TrackStarError, match="its tokenizer has 294 tokens and its model embeds only 97"):
        load_model(str(tmp_path / "model"))
    if not torch.cuda.is_available():
        with pytest.raises(TrackStarError, match="no CUDA device"):
            choose_device("cuda")
        assert choose_device("auto") == torch.device("cpu")
