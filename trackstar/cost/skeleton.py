"""A model's shapes without its weights: what a dry run for another machine needs, however large the model."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

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
        config = AutoConfig.from_pretrained(local)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrackStarError(f"{path}: cannot load a causal language model from here: {reason}") from error
    weights = find_weights(model)
    if not weights:
        raise TrackStarError(f"{type(model).__name__}: no Linear or Conv1D matrix found inside numbered layers")
    return LoadedModel(model, load_tokenizer(local), weights, measure_coverage(model, weights), "", "")
