"""Tiny random models of every supported architecture, and a tiny byte-level BPE tokenizer."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 97

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_WIDE = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "gpt2": ("gpt2", {**_COMMON, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gpt2-untied": (
        "gpt2",
        {**_COMMON, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "tie_word_embeddings": False},
    ),
    "llama": ("llama", _WIDE),
    "llama-tied": ("llama", {**_WIDE, "tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {**_WIDE, "rotary_pct": 0.5}),
    "qwen2": ("qwen2", _WIDE),
    "qwen3": ("qwen3", {**_WIDE, "head_dim": 8}),
    "gemma": ("gemma", {**_WIDE, "head_dim": 8}),
    "gemma2": ("gemma2", {**_WIDE, "head_dim": 8, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
    "olmo": ("olmo", _WIDE),
    "olmo2": ("olmo2", _WIDE),
    "opt": (
        "opt",
        {
            **_COMMON,
            "hidden_size": 32,
            "ffn_dim": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 24,
        },
    ),
    "mistral": ("mistral", {**_WIDE, "sliding_window": 8}),
    "phi": ("phi", _WIDE),
}


def tiny_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of an architecture, with weights large enough that gradients are not all alike."""
    model_type, settings = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim >= 2 else 0.05
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


@cache
def tiny_tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences; any text has an encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = ["The capital of France is Paris.", "The capital of Italy is Rome.", "Rome is a city in Italy."] * 10
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")
