"""Matrix products in the precision in which this machine is fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What torch offers under several names is one function in each.
_PRODUCTS = {
    nnf.linear, nnf.bilinear, nnf.scaled_dot_product_attention, nnf.conv1d, nnf.conv2d, nnf.conv3d,
    nnf.conv_transpose1d, nnf.conv_transpose2d, nnf.conv_transpose3d, torch.matmul, torch.mm, torch.bmm, torch.addmm,
    torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm,
    Tensor.addmm, Tensor.baddbmm,
}  # fmt: skip
UNSET = "none"  # of torch's settings
_HALVES = {torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16"), torch.float16: ("amx_fp16", "avx512_fp16", "fp16")}


def fast_products(training: bool) -> torch.autocast:
    """While training, matrix products in bfloat16 where the CPU has instructions for them: several times as fast there,
    and on others twenty times as slow."""
    return torch.autocast("cpu", torch.bfloat16, enabled=training and has_bfloat16())


@contextmanager
def fast_float32_products() -> Iterator[None]:
    """While entered, products of float32 matrices take their factors in bfloat16 where the CPU has instructions for it,
    and in TF32 on cards, and are summed in float32: two to five times as fast, their factors right to three digits.
    What the user has chosen for such products stays."""
    owners: list[tuple[Any, str]] = [(torch.backends.cuda.matmul, "tf32")]
    if has_bfloat16() and hasattr(torch.backends.mkldnn, "matmul"):  # torch 2.9 and later, as the attribute below
        owners.append((torch.backends.mkldnn.matmul, "bf16"))
    free = [(owner, fast) for owner, fast in owners if getattr(owner, "fp32_precision", None) == UNSET]
    try:
        for owner, fast in free:
            owner.fp32_precision = fast
        yield
    finally:
        for owner, _ in free:
            owner.fp32_precision = UNSET


def has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 by instructions of its own."""
    return has_products_of(torch.bfloat16)


@cache
def has_products_of(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of this precision by instructions of its own."""
    if dtype not in _HALVES:
        return True
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name) for name in _HALVES[dtype])


def widened_products(model: nn.Module) -> AbstractContextManager[Any]:
    """While entered, products of a half-precision model on a CPU without instructions for them are taken in float32,
    and rounded: the same to rounding, and several times as fast."""
    halves = {p.dtype for p in model.parameters() if p.device.type == "cpu"} & _HALVES.keys()
    slow = {dtype for dtype in halves if not has_products_of(dtype)}
    return _Widened(slow) if slow else nullcontext()


class _Widened(TorchFunctionMode):
    """Products of tensors of some precisions, in float32."""

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        super().__init__()
        self.dtypes = dtypes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        found = [a for a in (*args, *kwargs.values()) if self._is_slow(a)]
        if not found:
            return func(*args, **kwargs)
        out = func(*(self._wide(a) for a in args), **{k: self._wide(v) for k, v in kwargs.items()})
        return out.to(found[0].dtype)

    def _is_slow(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype in self.dtypes and value.device.type == "cpu"

    def _wide(self, value: Any) -> Any:
        return value.float() if self._is_slow(value) else value
