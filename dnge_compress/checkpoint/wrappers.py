"""The model itself, out of what it was wrapped in; what can't be unwrapped is refused with the way out."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dnge_compress.checkpoint.compression import Compression
from dnge_compress.core.errors import UnsupportedModelError


def unwrapped(model: Any) -> nn.Module:
    """The module that `torch.compile` or data parallelism was put around, or the module itself.

    Raises UnsupportedModelError for what is no module, has adapters, or holds its network inside.
    """
    if not isinstance(model, nn.Module):
        inside = " its .model" if isinstance(getattr(model, "model", None), nn.Module) else " a module, or its path"
        raise UnsupportedModelError(f"a {_kind(model)} is no torch module; pass{inside}")
    if hasattr(model, "_orig_mod"):
        return unwrapped(model._orig_mod)
    if isinstance(model, DataParallel | DistributedDataParallel):
        return unwrapped(model.module)
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise UnsupportedModelError(
            f"this {type(model).__name__} has LoRA adapters; merge them first (merge_and_unload)"
        )
    if type(model).__name__ == "SentenceTransformer":
        raise UnsupportedModelError(
            "a SentenceTransformer holds its network inside; compress that: "
            "st[0].auto_model = compress(st[0].auto_model)"
        )
    attached = getattr(model, "dnge", None)
    if isinstance(attached, Compression) and attached.tokenizer is not None:
        raise UnsupportedModelError(
            f"the smaller tokenizer of this {type(model).__name__} is in memory only; save it, and pass the folder"
        )
    return model


def _kind(value: Any) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
