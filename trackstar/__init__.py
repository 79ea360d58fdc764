"""TrackStar: training-data attribution for language models at the scale of their pretraining.

    tracer = trackstar.open_index("INDEX", model="CKPT")
    tracer.trace("The capital of France is", "Paris")

The command line is `trackstar`, in the package `pipelines`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trackstar.tracing import Tracer, open_index

__all__ = ["Tracer", "open_index"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads torch and transformers when `open_index` is asked for, and not for every command of the command line."""
    if name in __all__:
        from trackstar import tracing

        return getattr(tracing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
