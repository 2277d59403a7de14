"""The repair: after units are chosen, refit every matrix that read them, so that its output stays what it was.

`lstsq` refits the kept columns by ridge least squares on the signals' moments (centred where a bias, or the batch
norm behind a conv, can take up the mean); `bias` only moves the mean of what was removed there; `none` does neither.
Solved in float64 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dnge_compress.elimination import refit
from dnge_compress.signals import Signal, Signals, as_matrix, from_matrix, shift_of
from dnge_compress.sizes import dropped_modules, dropped_spaces, kept_rows
from dnge_compress.types import Cut, ModelGraph


def refitted(
    model: nn.Module, signals: Signals, cuts: Iterable[Cut], mode: str = "lstsq", ridge: float = 0.003
) -> dict[str, Tensor]:
    """New values of the dense model's readers under `cuts`: weights with zeros in the removed columns, and shifts.

    The model is not touched; use `install` after surgery, or give the values to MaskedModel to look at the result.
    """
    graph = signals.graph
    values: dict[str, Tensor] = {}
    if mode == "none":
        return values
    cuts = list(cuts)
    gone, dropped = dropped_spaces(graph, cuts), dropped_modules(graph, cuts)
    weights = model.state_dict(keep_vars=True)
    for cut in cuts:
        if cut.space not in signals or cut.space in gone:
            continue
        for signal in signals[cut.space]:
            if signal.slot.param not in values and not signal.slot.param.startswith(dropped):
                values |= _refit_reader(weights, graph, signal, cuts, mode, ridge)
    return values


def install(model: nn.Module, graph: ModelGraph, cuts: Iterable[Cut], values: Mapping[str, Tensor]) -> None:
    """Write refitted values into a model after surgery; its shapes decide nothing, the cuts do."""
    cuts = list(cuts)
    tensors = _tensors_after(model, graph, cuts)
    with torch.no_grad():
        for name, value in values.items():
            for axis in range(value.dim()):
                rows = kept_rows(graph, cuts, name, axis, value.shape[axis])
                value = value.index_select(axis, rows.to(value.device))
            tensors[name].copy_(value.to(tensors[name].dtype))


def _refit_reader(
    weights: Mapping[str, Tensor], graph: ModelGraph, signal: Signal, cuts: list[Cut], mode: str, ridge: float
) -> dict[str, Tensor]:
    param = signal.slot.param
    original = weights[param].detach()
    dense = as_matrix(original, graph, signal.slot).double()
    rows = kept_rows(graph, cuts, param, signal.slot.axis, original.shape[signal.slot.axis])
    per_row = dense.shape[1] // original.shape[signal.slot.axis]
    keep = (rows[:, None] * per_row + torch.arange(per_row)).flatten().to(dense.device)
    mean = signal.mean.double()
    shift = shift_of(graph, signal.slot)
    if mode == "lstsq":
        moments = signal.gram.double()
        if shift is not None:
            moments = moments - torch.outer(mean, mean)
        kept = refit(dense, moments, keep, ridge)
    else:
        kept = dense[:, keep]
    new = torch.zeros_like(dense)
    new[:, keep] = kept
    values = {param: from_matrix(new, original, graph, signal.slot).to(original.dtype)}
    if shift is not None:
        name, sign = shift
        values[name] = (weights[name].detach().double() + sign * (dense @ mean - kept @ mean[keep])).to(original.dtype)
    return values


def _tensors_after(model: nn.Module, graph: ModelGraph, cuts: list[Cut]) -> dict[str, Tensor]:
    """The pruned model's tensors under the names they had before layers were dropped."""
    state = model.state_dict(keep_vars=True)
    names: dict[str, Tensor] = dict(state)
    for cut in cuts:
        modules = graph.space(cut.space).modules
        for new, old in enumerate(cut.keep if modules else ()):
            prefix, target = f"{modules[new]}.", f"{modules[old]}."
            for name, tensor in state.items():
                if name.startswith(prefix):
                    names[target + name[len(prefix) :]] = tensor
    return names
