"""Cards that aren't there: tensors of the CPU that say they lie on "cuda:0" or "cuda:1", and refuse what real cards
refuse.

Which card a tensor lies on is written down for its memory, so that views, parameters and gradients need nothing of
their own. `device` is answered from there, `to` copies, factories take a `device`; an operation on tensors of two
cards, or of a card and the CPU, fails as it would in torch: but for indices and single numbers of the CPU, and copies.
Numbers come out as on the CPU, to the last bit; memory, streams and kernels of cards are not simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._copy_from.default}
TAKES_INDICES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
TAKES_NO_NUMBERS = {aten.cat.default, aten.stack.default}
CPU = torch.device("cpu")


@contextmanager
def simulated_cards() -> Iterator[None]:
    """While entered, "cuda:0", "cuda:1" and so on are devices, kept apart from each other and from the CPU."""
    register = _Register()
    with _Devices(register), _Apart(register):
        yield


class _Register:
    """The card of every piece of memory; what is in none is on the CPU."""

    def __init__(self) -> None:
        # A weak reference to memory keeps its address from being given to another.
        self.known: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.home = CPU  # where an operation makes tensors of nothing: on its first argument's device

    @contextmanager
    def at_home_of(self, values: Iterator[Any]) -> Iterator[None]:
        before, self.home = self.home, next((self.device(v) for v in values if isinstance(v, Tensor)), CPU)
        try:
            yield
        finally:
            self.home = before

    def device(self, tensor: Tensor) -> torch.device:
        found = self.known.get(_address(tensor))
        return CPU if found is None else found[1]

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        storage = _plain(tensor).untyped_storage()
        if device == CPU:
            self.known.pop(storage._cdata, None)
        else:
            self.known[storage._cdata] = (StorageWeakRef(storage), device)
        return tensor


def _address(tensor: Tensor) -> int:
    return 0 if tensor.is_sparse else int(_plain(tensor).untyped_storage()._cdata)


def _plain(tensor: Tensor) -> Tensor:
    """The tensor that holds memory, within `vmap`."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


class _Devices(TorchFunctionMode):
    """What a program sees of devices."""

    def __init__(self, register: _Register) -> None:
        super().__init__()
        self.register = register

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            real = func(*args)
            return self.register.device(args[0]) if real == CPU else real
        if func == Tensor.is_cuda.__get__:
            return self.register.device(args[0]) != CPU
        if func in (Tensor.numpy, Tensor.__array__) and self.register.device(args[0]) != CPU:
            raise TypeError("can't convert a tensor on a card to numpy; use Tensor.cpu() first")
        if func is torch.unravel_index:  # written in Python, where tensors are made that must be seen
            with self:
                return torch.functional._unravel_index(*args, **kwargs).unbind(-1)
        if func in (Tensor.__deepcopy__, Tensor.new_tensor) and kwargs.get("device") is None:
            return self.register.put(func(*args, **kwargs), self.register.device(args[0]))
        if func is Tensor.register_hook:  # torch leaves modes while gradients come back
            return func(args[0], partial(self._hooked, args[1]))
        if func is Tensor.cpu:
            return self._moved(args[0], CPU)
        if func is Tensor.cuda:
            return self._moved(args[0], torch.device("cuda", 0))
        if func is Tensor.to and args[0].device.type != "meta":
            return self._to(*args, **kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type not in ("cuda", "cpu"):
            with self.register.at_home_of(_flat((*args, *kwargs.values()))):
                return func(*args, **kwargs)
        made = func(*args, **{**kwargs, "device": CPU})
        return self.register.put(made, _named(device)) if isinstance(made, Tensor) else made

    def _hooked(self, hook: Callable[[Tensor], Any], gradient: Tensor) -> Any:
        with self:
            return hook(gradient)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (self.register.device(args[0]), args[0].dtype, *args[1:])
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "meta":
            return tensor.to("meta", dtype or tensor.dtype)
        moved = tensor if device is None else self._moved(tensor, _named(device))
        copy = {"copy": True} if kwargs.get("copy") and moved is tensor else {}
        return Tensor.to(moved, dtype or moved.dtype, **copy, **({"memory_format": layout} if layout else {}))

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        if self.register.device(tensor) == device:
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():
            return _Move.apply(tensor, device, self.register)
        return self.register.put(tensor.clone(), device)


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient comes back to the first."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device, register: _Register) -> Tensor:
        ctx.back, ctx.register = register.device(tensor), register
        return register.put(tensor.clone(), device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.register.put(gradients[0].clone(), ctx.back), None, None


class _Apart(TorchDispatchMode):
    """Operations, each on one device."""

    def __init__(self, register: _Register) -> None:
        super().__init__()
        self.register = register

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = [t for t in _flat((*args, *kwargs.values())) if isinstance(t, Tensor) and not t.is_meta]
        devices = [self.register.device(t) for t in given]
        home = devices[0] if devices else self.register.home
        if given and func not in COPIES:
            home = self._common(func, given, devices)
        if home != CPU and any(isinstance(v, torch.Generator) for v in (*args, *kwargs.values())):
            raise RuntimeError(f"{func} draws on {home} with a generator of the CPU")
        before = {_address(t) for t in given}
        out = func(*args, **kwargs)
        for t in _flat((out,)):
            if isinstance(t, Tensor) and not t.is_meta and home != CPU and _address(t) not in before:
                self.register.put(t, home)
        return out

    def _common(self, func: Any, given: list[Tensor], devices: list[torch.device]) -> torch.device:
        is_number: Callable[[Tensor], bool] = lambda t: t.dim() == 0 and func not in TAKES_NO_NUMBERS  # noqa: E731
        pairs = list(zip(given, devices, strict=True))
        if func in TAKES_INDICES and devices[0] != CPU:  # indices may lie on the CPU
            pairs = [(t, d) for t, d in pairs if d != CPU or t.is_floating_point()]
        found = {d for t, d in pairs if d != CPU or not is_number(t)}
        if len(found) > 1:
            names = ", ".join(sorted(map(str, found)))
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {names} ({func})")
        return next(iter(found), CPU)


def _named(device: Any) -> torch.device:
    """A device with its number."""
    found = torch.device(device)
    return torch.device("cuda", found.index or 0) if found.type == "cuda" else found


def _flat(values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(tuple(value))
        else:
            yield value
