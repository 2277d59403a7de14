"""Surgery: carry out cuts on a model in place, with torch-pruning's per-layer functions driven by our slots."""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from transformers.pytorch_utils import Conv1D

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph.cuts import AppliedCuts


def cut(model: nn.Module, applied: AppliedCuts) -> None:
    """Remove everything that the cuts don't keep from `model`, in place, and bring its config and attributes up to
    date."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for (module, side), rows in _rows_to_drop(applied).items():
        _drop_rows(model.get_submodule(module), module, side, rows)
    for name, p in model.named_parameters():
        p.requires_grad_(flags[name])
    for c in applied.layer_cuts:
        _drop_layers(model, applied.graph.space(c.space).modules, c.keep)
    _update_attributes(model, applied)
    _update_config(model, applied)


def _rows_to_drop(applied: AppliedCuts) -> dict[tuple[str, str], list[int]]:
    """(module, "in" or "out") → rows that go; the slots of a weight, its bias and its statistics are one entry."""
    graph = applied.graph
    rows: dict[tuple[str, str], set[int]] = {}
    for c in applied.cuts:
        gone = c.gone(graph.space(c.space).units)
        for slot in graph.slots_of(c.space):
            side = "in" if graph.consumes(slot) else "out"
            key = (slot.param.rpartition(".")[0], side)
            rows.setdefault(key, set()).update(slot.rows(gone).tolist())
    return {key: sorted(r) for key, r in rows.items() if r}


def _drop_rows(module: nn.Module, name: str, side: str, rows: list[int]) -> None:
    if isinstance(module, Conv1D):
        _drop_conv1d_rows(module, side, rows)
    elif isinstance(module, nn.Linear):
        (tp.prune_linear_in_channels if side == "in" else tp.prune_linear_out_channels)(module, rows)
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:
            tp.prune_depthwise_conv_out_channels(module, rows)
        else:
            (tp.prune_conv_in_channels if side == "in" else tp.prune_conv_out_channels)(module, rows)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        tp.prune_batchnorm_out_channels(module, rows)
    elif isinstance(module, nn.LayerNorm):
        tp.prune_layernorm_out_channels(module, rows)
    else:
        raise UnsupportedModelError(f"no surgery is known for module '{name}' of type {type(module).__name__}")


def _drop_conv1d_rows(module: Conv1D, side: str, rows: list[int]) -> None:
    """Transformers' `Conv1D` keeps weights `[in, out]`; torch-pruning doesn't know the type."""
    axis = 0 if side == "in" else 1
    gone = torch.zeros(module.weight.shape[axis], dtype=torch.bool)
    gone[rows] = True
    stay = (~gone).nonzero().squeeze(1).to(module.weight.device)
    module.weight = nn.Parameter(module.weight.data.index_select(axis, stay).contiguous())
    if side == "out":
        module.bias = nn.Parameter(module.bias.data.index_select(0, stay).contiguous())
        module.nf = len(stay)
    else:
        module.nx = len(stay)


def _drop_layers(model: nn.Module, modules: tuple[str, ...], keep: tuple[int, ...]) -> None:
    parent, _, _ = modules[0].rpartition(".")
    owner, _, leaf = parent.rpartition(".")
    blocks = model.get_submodule(parent)
    kept = [model.get_submodule(modules[i]) for i in keep]
    setattr(
        model.get_submodule(owner),
        leaf,
        type(blocks)(*kept) if isinstance(blocks, nn.Sequential) else nn.ModuleList(kept),
    )
    module: Any
    for index, block in enumerate(kept):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index


def _update_attributes(model: nn.Module, applied: AppliedCuts) -> None:
    """Counts that modules keep for themselves; where a block went, its attributes went with it."""
    for space, module, name, factor in applied.graph.attributes:
        path = applied.path_after(module)
        if space in applied.counts and path is not None:
            setattr(model.get_submodule(path), name, factor * applied.kept(space))


def _update_config(model: nn.Module, applied: AppliedCuts) -> None:
    """Write the config keys whose spaces all agree; an uneven width can't be written and stays with the plan."""
    config = getattr(model, "config", None)
    if config is None:
        return
    for (key, index), value in applied.config_values.items():
        if index is None:
            setattr(config, key, value)
        else:
            values = list(getattr(config, key))
            values[index] = value
            setattr(config, key, values)
    for c in applied.layer_cuts:
        types = getattr(config, "layer_types", None)
        if types is not None and len(types) == applied.graph.space(c.space).units:
            config.layer_types = [types[i] for i in c.keep]
