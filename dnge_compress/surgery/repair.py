"""The repair: after units are chosen, refit every matrix that read them, so that its output stays what it was.

`lstsq` refits the kept columns by ridge least squares on the signals' moments (centred where a bias, or the batch
norm behind a conv, can take up the mean); `bias` only moves the mean of what was removed there; `none` does neither.
Solved in float64 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dnge_compress.graph.counting import kept_rows
from dnge_compress.graph.types import Cut, ModelGraph


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
