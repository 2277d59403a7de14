"""Inputs as shapes and dtypes: enough to trace a module again, without anybody's values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnge_compress.signals.inference import Inputs


def outline(inputs: Inputs) -> str:
    """JSON of the shapes and dtypes of inputs, enough to trace a module again; the values stay private."""
    if isinstance(inputs, Mapping):
        return json.dumps({"dict": {name: _outline(t) for name, t in inputs.items()}}, indent=1)
    return json.dumps(
        {"tuple": [_outline(t) for t in inputs]} if isinstance(inputs, tuple) else {"tensor": _outline(inputs)}
    )


def inputs_of(raw: Mapping[str, Any]) -> Inputs:
    """Inputs, always the same, of the shapes that an outline holds."""
    generator = torch.Generator().manual_seed(0)

    def tensor(one: Mapping[str, Any]) -> Tensor:
        dtype = getattr(torch, one["dtype"])
        if dtype.is_floating_point:
            return torch.randn(one["shape"], generator=generator).to(dtype)
        return torch.zeros(one["shape"], dtype=dtype)

    if "dict" in raw:
        return {name: tensor(one) for name, one in raw["dict"].items()}
    return tuple(tensor(one) for one in raw["tuple"]) if "tuple" in raw else tensor(raw["tensor"])


def _outline(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
