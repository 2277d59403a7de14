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
    from dnge_compress.errors import DngeError
    from dnge_compress.families import build_graph
    from dnge_compress.lora_plan import LoraPlan
    from dnge_compress.placing import flatten_adapter, place_lora
    from dnge_compress.recipes.schema import Recipe
    from dnge_compress.types import Cut, ModelGraph, PrunePlan, Scores

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
    "errors": ("DngeError",),
    "families": ("build_graph",),
    "lora_plan": ("LoraPlan",),
    "placing": ("flatten_adapter", "place_lora"),
    "recipes.schema": ("Recipe",),
    "types": ("Cut", "ModelGraph", "PrunePlan", "Scores"),
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
