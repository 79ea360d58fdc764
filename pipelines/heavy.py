"""Modules that are imported when a command first needs them: torch, transformers and Beam come with them.

Importing these takes several seconds of processor time, and a command that finds nothing to do, as `trackstar reindex` does on
most nights, ends in a third of one. So it imports this module, and `heavy.build_index` where there is something to encode. In
worker processes nothing is late: they import the modules of their DoFns before their threads begin.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines import build_index, costs, repair, standing_scans
    from trackstar import drift
    from trackstar.cost import verifying

_PACKAGES = {
    "build_index": "pipelines",
    "costs": "pipelines",
    "drift": "trackstar",
    "repair": "pipelines",
    "standing_scans": "pipelines",
    "verifying": "trackstar.cost",
}

__all__ = ["build_index", "costs", "drift", "repair", "standing_scans", "verifying"]


def __getattr__(name: str) -> ModuleType:
    """Imports the module of this name (PEP 562)."""
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{_PACKAGES[name]}.{name}")
