"""Data-free structured compression of PyTorch and Hugging Face models.

    from dnge_compress import compress
    small = compress(model)

Names are imported on first use, so that `import dnge_compress` and `dnge --help` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnge_compress.api import apply, compress, load, plan, preview, save, score
    from dnge_compress.checkpoint import open_model
    from dnge_compress.core.errors import DngeError
    from dnge_compress.graph.families import build_graph
    from dnge_compress.graph.types import Cut, ModelGraph, Scores
    from dnge_compress.lora.place import flatten_adapter, place_lora
    from dnge_compress.lora.plan import LoraPlan
    from dnge_compress.plans.prune_plan import PrunePlan
    from dnge_compress.recipes.schema import Recipe

__version__ = "0.1.0"

__all__ = [
    "Cut",
    "DngeError",
    "LoraPlan",
    "ModelGraph",
    "PrunePlan",
    "Recipe",
    "Scores",
    "__version__",
    "apply",
    "build_graph",
    "compress",
    "flatten_adapter",
    "load",
    "open_model",
    "place_lora",
    "plan",
    "preview",
    "save",
    "score",
]

_HOMES = {
    "api": ("apply", "compress", "load", "plan", "preview", "save", "score"),
    "checkpoint": ("open_model",),
    "core.errors": ("DngeError",),
    "graph.families": ("build_graph",),
    "graph.types": ("Cut", "ModelGraph", "Scores"),
    "lora.place": ("flatten_adapter", "place_lora"),
    "lora.plan": ("LoraPlan",),
    "plans.prune_plan": ("PrunePlan",),
    "recipes.schema": ("Recipe",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
