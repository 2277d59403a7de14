"""Inputs as shapes, dtypes and ranges: enough to trace a module again, without anybody's values."""

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

MOST_NUMBER = 1 << 62
MOST_VALUES = 1 << 28  # of all inputs; a gigabyte in float32
FLOATING, WHOLE = ("float64", "float32", "float16", "bfloat16"), ("int64", "int32", "int16", "int8", "uint8", "bool")
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in (*FLOATING, *WHOLE, "complex64", "complex128")}


@dataclass(frozen=True)
class _Outline:
    """One tensor without its values; of whole numbers the range is told, since 0 may be what no model looks at."""

    shape: tuple[int, ...]
    dtype: str
    least: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise CheckpointError(f"'{self.dtype}' is no type of inputs; there are {', '.join(DTYPES)}")
        if any(size < 0 for size in self.shape) or self.values > MOST_VALUES:
            raise CheckpointError(f"{list(self.shape)} is no shape of inputs to trace with")
        if not -MOST_NUMBER <= self.least <= self.most < MOST_NUMBER:
            raise CheckpointError(f"{self.least} to {self.most} is no range of numbers to trace with")

    @property
    def values(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Numbers, always the same."""
        dtype = DTYPES[self.dtype]
        if dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator).to(dtype)
        return torch.randint(self.least, self.most + 1, self.shape, generator=generator).to(dtype)


# Inputs by name, in turn, or a single one.
FORMS: dict[str, Any] = {"dict": Mapping[str, _Outline], "tuple": tuple[_Outline, ...], "tensor": _Outline}


def outline(inputs: Inputs) -> str:
    """JSON of the shapes and dtypes of inputs, and the range of whole numbers, enough to trace a module again; the
    values stay private."""
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
    parts = [found] if isinstance(found, _Outline) else list(found.values() if isinstance(found, Mapping) else found)
    if sum(one.values for one in parts) > MOST_VALUES:
        raise CheckpointError(f"{where} are more than {MOST_VALUES:,} values to trace with; save the model again")
    if isinstance(found, Mapping):
        return {name: one.tensor(generator) for name, one in found.items()}
    return tuple(one.tensor(generator) for one in found) if isinstance(found, tuple) else found.tensor(generator)


def _outline(tensor: Tensor) -> dict[str, Any]:
    found = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.is_floating_point() or tensor.is_complex() or not tensor.numel():
        return found
    return found | {"least": int(tensor.min()), "most": int(tensor.max())}
