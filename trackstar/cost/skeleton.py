"""A model's shapes without its weights: what a dry run for another machine needs, however large the model."""

import dataclasses

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from trackstar import local_copies
from trackstar.errors import TrackStarError
from trackstar.models import LoadedModel, find_weights, load_tokenizer, measure_coverage


def load_skeleton(path: str, dtype: str = "float32") -> LoadedModel:
    """The model of a checkpoint folder on torch's "meta" device, made from its configuration alone; it cannot run.

    Its fingerprints are empty: weights and tokenizer are not compared with anything.

    Raises:
        TrackStarError: no such checkpoint, or nothing in it to attribute.
    """
    local = local_copies.checkpoint(path, weights=False)
    try:
        found = skeleton(AutoConfig.from_pretrained(local), dtype)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrackStarError(f"{path}: cannot load a causal language model from here: {reason}") from error
    return dataclasses.replace(found, tokenizer=load_tokenizer(local))


def skeleton(config: PretrainedConfig, dtype: str = "float32") -> LoadedModel:
    """The same of a configuration that is in memory, without a tokenizer.

    Raises:
        TrackStarError: nothing in the model to attribute.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    weights = find_weights(model)
    if not weights:
        raise TrackStarError(f"{type(model).__name__}: no Linear or Conv1D matrix found inside numbered layers")
    return LoadedModel(model, None, weights, measure_coverage(model, weights), "", "")
