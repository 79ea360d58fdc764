"""Which device a worker computes on."""

import torch

from trackstar.errors import TrackStarError


def choose_device(name: str) -> torch.device:
    """Turns "auto", "cpu" or "cuda[:i]" into a device; a GPU that is asked for and missing is an error, never a fallback.

    Raises:
        TrackStarError: CUDA is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrackStarError(
            f"--device {name}: no CUDA device is visible here; use --device cpu, or a machine with a GPU"
        )
    return torch.device(name)
