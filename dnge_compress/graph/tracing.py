"""Run a module once and note which layers its inputs pass, in order: what a traced graph is made of.

Everything happens on a randomised copy and under a deadline; torch-pruning, which this prepares for, is not imported.
"""

from __future__ import annotations

import copy
import ctypes
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dnge_compress.core.errors import DataError, UnsupportedModelError
from dnge_compress.graph.types import Op

Side = Literal["out", "in"]

OUT, IN = (("weight", 0), ("bias", 0)), (("weight", 1),)
STATISTICS = (("running_mean", 0), ("running_var", 0))
COPY_SEED = 0
WATCH_EVERY = 0.05  # seconds


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that was executed: the tensors (suffix, axis) that run over its outputs and over its inputs.

    It `is_behind` if it got the very output of the layer executed before it.
    A layer without `reads` works on each channel alone (norms, depthwise convs) or looks rows up (embeddings).
    """

    path: str
    module: Any
    op: Op
    writes: tuple[tuple[str, int], ...]
    reads: tuple[tuple[str, int], ...] = ()
    activation: str = ""
    shared: bool = False
    is_behind: bool = False

    def tensors(self, side: Side) -> tuple[tuple[str, int], ...]:
        """Full name and axis of the tensors on one side, those the module really has."""
        owned = _own_tensors(self.module)
        ends = self.writes if side == "out" else self.reads
        return tuple((f"{self.path}.{name}", axis) for name, axis in ends if name in owned)

    def rows(self, side: Side) -> int:
        """How many outputs or inputs it has."""
        owned = _own_tensors(self.module)
        ends = self.writes if side == "out" else self.reads
        return next(owned[name].shape[axis] for name, axis in ends if name in owned)


class _OvertimeError(BaseException):
    """Not an Exception, so that no `except Exception` on the way keeps it."""


@contextmanager
def deadline(seconds: float, name: str) -> Iterator[None]:
    """End the block with UnsupportedModelError when the time is over.

    A watchdog raises in this thread, again and again until the block has ended, for a finaliser that happens to run
    swallows what is raised in it. That ends torch-pruning's endless loops, which are plain Python, on any thread;
    SIGALRM would serve the main thread only and belongs to others (pytest-timeout).
    """
    thread, has_ended = threading.get_ident(), threading.Event()

    def watch() -> None:
        if not has_ended.wait(seconds):
            while not has_ended.wait(WATCH_EVERY):
                _raise_in(thread, _OvertimeError)

    def end() -> None:
        has_ended.set()
        watchdog.join()
        _raise_in(thread, None)

    watchdog = threading.Thread(target=watch, daemon=True)
    watchdog.start()
    try:
        try:
            yield
        finally:
            while not has_ended.is_set() or watchdog.is_alive():  # what is raised in here must not keep it going
                end()
    except _OvertimeError:
        end()
        raise UnsupportedModelError(
            f"tracing {name} did not end within {seconds:g} s (torch-pruning can loop for ever, most often on "
            "attention with grouped heads); write a family file for it, or give families.traced.build a larger "
            "timeout_s"
        ) from None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise in another thread at its next step in Python; None takes back what it hasn't seen yet."""
    what = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


def randomised_copy(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode with random values: zeros, ones and equal rows would hide a wrong coupling."""
    net: Any = copy.deepcopy(model).float().eval()
    if getattr(getattr(net, "config", None), "use_cache", False):
        net.config.use_cache = False  # torch-pruning can't follow a key/value cache (its issues 461 and 516)
    generator = torch.Generator().manual_seed(COPY_SEED)
    statistics = [b for n, b in net.named_buffers() if n.endswith(("running_mean", "running_var"))]
    with torch.no_grad():
        for tensor in (*net.parameters(), *statistics):
            if not tensor.is_floating_point():
                continue
            if tensor.dim() < 2:
                values = torch.rand(tensor.shape, generator=generator) + 0.5
            else:  # He's scale: the signal neither dies nor explodes with depth
                values = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(values)
    for p in net.parameters():
        p.requires_grad_(p.is_floating_point())
    return net


def as_float32(inputs: Any) -> Any:
    """The inputs as the copy takes them; lists become tuples of arguments."""
    if isinstance(inputs, Tensor):
        return inputs.detach().float() if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {k: as_float32(v) for k, v in inputs.items()}
    return tuple(as_float32(v) for v in inputs) if isinstance(inputs, (tuple, list)) else inputs


def call_with(net: nn.Module, inputs: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """`net` on a tensor, a tuple or a dict of arguments, with `tensors` in place of its own if given."""
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    return net(*args, **kwargs) if tensors is None else functional_call(net, dict(tensors), args, kwargs)


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors in what a model returned, in order; other things (caches) are left out."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [t for item in output for t in tensors_in(item)] if isinstance(output, (tuple, list)) else []


def executed_layers(net: nn.Module, inputs: Any) -> list[Layer]:
    """The layers this package can describe, in the order in which `inputs` pass them. Raises DataError."""
    paths = {module: path for path, module in net.named_modules()}
    names: dict[int, int] = {}
    for _, p in net.named_parameters(remove_duplicate=False):
        names[id(p)] = names.get(id(p), 0) + 1
    found: dict[nn.Module, Layer] = {}
    maker: dict[int, nn.Module] = {}  # id of a tensor → the layer whose output it is, norms passed over
    alive: list[Any] = []  # ids are unique among living tensors only
    last: list[tuple[int, int]] = []  # id and version of the last layer's output: in-place changes raise the version

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        source = maker.get(id(args[0])) if args else None
        layer = _describe(paths[module], module)
        if layer is not None:
            is_behind = bool(args and last) and last[-1] == (id(args[0]), args[0]._version)
            last.append((id(output), output._version))
            passes_on = layer.op in ("batchnorm", "norm") and source is not None
            maker[id(output)] = source if passes_on and source is not None else module
            alive.append(output)
            tied = any(names[id(p)] > 1 for p in module.parameters())
            found[module] = replace(layer, shared=tied or module in found, is_behind=is_behind)
        elif source is not None and _is_activation(module) and not found[source].activation:
            found[source] = replace(found[source], activation=type(module).__name__.lower().removesuffix("activation"))

    with ExitStack() as hooks:
        for m in net.modules():
            if not list(m.children()):
                hooks.enter_context(m.register_forward_hook(record))
        try:
            call_with(net, inputs)
        except Exception as e:
            what = f"{type(net).__name__} can't be called with these example_inputs ({type(e).__name__}: {e})"
            raise DataError(f"{what}; give a tensor, a tuple or a dict of its arguments") from e
    return list(found.values())


def _describe(path: str, module: nn.Module) -> Layer | None:
    owned = _own_tensors(module)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)):
        if "weight" not in owned:
            return None  # weight_norm and other parametrizations: the weight is computed, it has no rows to take out
        if isinstance(module, nn.Linear):
            return Layer(path=path, module=module, op="linear", writes=OUT, reads=IN)
        if isinstance(module, nn.Embedding):
            return Layer(path=path, module=module, op="embed", writes=(("weight", 1),))
        if module.groups == 1:
            return Layer(path=path, module=module, op="conv", writes=OUT, reads=IN)
        if module.groups == module.in_channels == module.out_channels:  # one kernel per channel: nothing mixes
            return Layer(path=path, module=module, op="norm", writes=OUT)
    if not owned:
        return None
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return Layer(path=path, module=module, op="batchnorm", writes=OUT + STATISTICS)
    is_flat_norm = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    is_norm = is_flat_norm or isinstance(module, nn.GroupNorm)
    return Layer(path=path, module=module, op="norm", writes=OUT) if is_norm else None


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _is_activation(module: nn.Module) -> bool:
    named = type(module).__name__.endswith("Activation")  # transformers' own: GELUActivation, …
    return not list(module.parameters()) and (named or type(module).__module__ == "torch.nn.modules.activation")
