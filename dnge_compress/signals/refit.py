"""The closed-form repair: consumers refitted so that their outputs stay what they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dnge_compress.graph.counting import dropped_modules, dropped_spaces, kept_rows
from dnge_compress.graph.types import Cut, ModelGraph
from dnge_compress.signals.consumers import as_matrix, from_matrix, shift_of
from dnge_compress.signals.moments import Signal, Signals
from dnge_compress.signals.obs import refit


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
