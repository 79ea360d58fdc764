"""Encoders for models in memory."""

from trackstar.encoder import Encoder
from trackstar.fitting import make_spec
from trackstar.models import LoadedModel
from trackstar.second_moments import SecondMoments


def make_encoder(loaded: LoadedModel, moments: SecondMoments | None = None, **settings: object) -> Encoder:
    """An encoder without preconditioner for a model in memory, blocks of 6 × 5."""
    defaults = {
        "max_length": None,
        "long_documents": "truncate",
        "append_eos": False,
        "batch_tokens": 256,
        "attributed": "all",
        "layout": "blocks",
        "layer_groups": 8,
        "block_rows": 6,
        "block_columns": 5,
        "projection": "gaussian",
        "projection_seed": 0,
        "whitening_damping": 0.1,
        "moments": moments,
        "moments_pending": False,
        "factored": False,
        "precondition": False,
        "damping": 0.1,
        "normalisation": "vector",
        "storage": "float32",
        "stores_text": True,
    }
    return Encoder(loaded, make_spec(loaded, **{**defaults, **settings}), moments, None)
