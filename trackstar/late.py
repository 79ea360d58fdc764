"""Modules that are imported when a path first needs them: Google's client comes with them, and local paths do without it."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trackstar import object_reader, object_store

__all__ = ["object_reader", "object_store"]


def __getattr__(name: str) -> ModuleType:
    """Imports the module of this name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"trackstar.{name}")
