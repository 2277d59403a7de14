"""Products with a weight, watched or changed where no module could be hooked: experts whose matrices lie in one tensor,
and routers that multiply a bare parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Watch = Callable[[Tensor, Tensor], None]  # told what a matrix is multiplied with, and the product
PRODUCTS = {torch.nn.functional.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
EAGER = "eager"


class StackedProducts(TorchFunctionMode):
    """While entered, tells the watchers of (parameter, expert) about every product with that expert's matrix."""

    def __init__(self, weights: Mapping[str, Tensor], watchers: Mapping[tuple[str, int], Sequence[Watch]]) -> None:
        super().__init__()
        self.watchers = watchers
        self.stacks = {_storage(weights[name]): (name, weights[name]) for name, _ in watchers}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        known = self.stacks.get(_factor(func, args))
        if known is not None:
            self._tell(known, args[0], args[1], out)
        return out

    def _tell(self, known: tuple[str, Tensor], x: Tensor, matrix: Tensor, out: Tensor) -> None:
        name, stack = known
        if matrix.dim() == 2:
            size = stack.stride(0) if stack.dim() > 2 else matrix.numel()  # of one expert's
            part = (matrix.storage_offset() - stack.storage_offset()) // size
            for watch in self.watchers.get((name, part), ()):
                watch(x, out)
            return
        for part in range(len(stack)):
            for watch in self.watchers.get((name, part), ()):
                watch(x[part], out[part])


class MaskedRouters(TorchFunctionMode):
    """While entered, routers give some of their experts the smallest logit there is, so that no token goes there."""

    def __init__(self, routers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.gone: dict[int, Tensor] = {}
        for weight, experts in routers:  # of groups of experts, each has rows of the same weight
            known = self.gone.get(_storage(weight))
            self.gone[_storage(weight)] = experts if known is None else torch.cat([known, experts])
        self._casts: list[Tensor] = []  # kept alive, so that no other tensor takes their place in memory

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        experts = self.gone.get(_factor(func, args))
        if experts is not None:
            return out.index_fill(-1, experts.to(out.device), torch.finfo(out.dtype).min)
        if isinstance(out, Tensor) and args and isinstance(args[0], Tensor) and out.shape == args[0].shape:
            cast = self.gone.get(_storage(args[0])) if args[0].device.type != "meta" else None
            if cast is not None and _storage(out) != _storage(args[0]):
                self.gone[_storage(out)] = cast
                self._casts.append(out)
        return out


def _factor(func: Any, args: tuple[Any, ...]) -> int:
    """Where the weight of a product lies; 0 for anything else."""
    return _storage(args[1]) if func in PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor) else 0


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def products_watched(model: nn.Module, watchers: Mapping[tuple[str, int], Sequence[Watch]]) -> Iterator[None]:
    """Experts are multiplied one by one for a while, and the watchers of (parameter, expert) told; none, and nothing is
    done."""
    if not watchers:
        yield
        return
    weights = {name: model.get_parameter(name) for name, _ in watchers}
    with eager_experts(model), StackedProducts(weights, watchers):
        yield


@contextmanager
def eager_experts(model: nn.Module) -> Iterator[None]:
    """Experts multiplied one by one for a while, whatever kernel the model would use."""
    configs: dict[int, Any] = {
        id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "to_dict")
    }
    before = [(c, getattr(c, "_experts_implementation", None)) for c in configs.values()]
    for config, _ in before:
        config._experts_implementation = EAGER
    try:
        yield
    finally:
        for config, old in before:
            config._experts_implementation = old
