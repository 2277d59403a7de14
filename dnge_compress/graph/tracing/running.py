"""A randomised copy of a module, run on example inputs. Everything that is tried on a model is tried on such a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

COPY_SEED = 0


def randomised_copy(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode with random values: zeros, ones and equal rows would hide a wrong coupling."""
    net: Any = copied(model).float().eval()
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


def copied(model: nn.Module, shares: bool = False) -> nn.Module:
    """A copy of the model; what calls left on its modules (states of a recurrence) is copied without its history.

    A copy that `shares` has modules of its own and the model's own memory: for a model of which only one is used on.
    """
    left = [t for module in model.modules() for t in tensors_in(vars(module)) if not t.is_leaf]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in left}
    if shares:
        memo |= {id(p): type(p)(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def trainable(model: nn.Module) -> nn.Module:
    """The model, or a copy if it was built under `torch.inference_mode`: through such tensors no gradient flows."""
    is_inference = any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
    return copied(model) if is_inference else model


def as_float32(inputs: Any) -> Any:
    """The inputs as the copy takes them; lists become tuples of arguments."""
    if isinstance(inputs, Tensor):
        own = inputs.clone() if inputs.is_inference() else inputs  # no gradient passes through those
        return own.detach().float() if own.is_floating_point() else own
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
