"""The model itself, out of what it was wrapped in; what can't be unwrapped is refused with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.core.wording import kind


def unwrapped(model: Any) -> nn.Module:
    """The module that `torch.compile` or data parallelism was put around, or the module itself.

    Raises UnsupportedModelError for what is no module, has adapters, or holds its network inside.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"a {kind(model)} is no torch module; {_way_out(model)}")
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
    return model


def _way_out(value: Any) -> str:
    """The call that works, for somebody who passed this value as a model."""
    if isinstance(value, type):
        loads = hasattr(value, "from_pretrained")
        made = f'{value.__name__}.from_pretrained("…")' if loads else f"{value.__name__}(…)"
        return f"make one of it first: compress({made})"
    if isinstance(value, Mapping):
        return "weights alone have no forward; load them into their module: module.load_state_dict(…), compress(module)"
    if isinstance(getattr(value, "model", None), nn.Module):
        return "pass its .model: compress(….model)"
    return 'pass a module, or the path or hub id of one: compress(model), compress("folder")'
