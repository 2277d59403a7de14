"""Inputs as shapes and dtypes: enough to trace a module again, without anybody's values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.strict_json import read_strictly
from dnge_compress.signals.inference import Inputs

MOST_VALUES = 1 << 28  # of one input; a gigabyte in float32
DTYPES = {str(t).removeprefix("torch."): t for t in vars(torch).values() if isinstance(t, torch.dtype)}


@dataclass(frozen=True)
class _Outline:
    """One tensor without its values."""

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise CheckpointError(f"'{self.dtype}' is no type of numbers that torch has")
        if any(size < 0 for size in self.shape) or math.prod(self.shape) > MOST_VALUES:
            raise CheckpointError(f"{list(self.shape)} is no shape of inputs to trace with")

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Numbers, always the same."""
        dtype = DTYPES[self.dtype]
        if dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator).to(dtype)
        return torch.zeros(self.shape, dtype=dtype)


# Inputs by name, in turn, or a single one.
FORMS: dict[str, Any] = {"dict": Mapping[str, _Outline], "tuple": tuple[_Outline, ...], "tensor": _Outline}


def outline(inputs: Inputs) -> str:
    """JSON of the shapes and dtypes of inputs, enough to trace a module again; the values stay private."""
    if isinstance(inputs, Mapping):
        return json.dumps({"dict": {name: _outline(t) for name, t in inputs.items()}}, indent=1)
    return json.dumps(
        {"tuple": [_outline(t) for t in inputs]} if isinstance(inputs, tuple) else {"tensor": _outline(inputs)}
    )


def inputs_of(raw: Any, where: str) -> Inputs:
    """Inputs, always the same, of the shapes that an outline holds. Raises CheckpointError that says `where`."""
    form = next(iter(raw), None) if isinstance(raw, dict) and len(raw) == 1 else None
    if form not in FORMS:
        raise CheckpointError(f"{where} should hold inputs under one of {', '.join(FORMS)}; save the model again")
    found, generator = read_strictly(FORMS[form], raw[form], where), torch.Generator().manual_seed(0)
    if isinstance(found, Mapping):
        return {name: one.tensor(generator) for name, one in found.items()}
    return tuple(one.tensor(generator) for one in found) if isinstance(found, tuple) else found.tensor(generator)


def _outline(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
