"""Surgery: carry out cuts on a model in place, with torch-pruning's per-layer functions driven by our slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch_pruning as tp
from torch import nn
from transformers.pytorch_utils import Conv1D

from dnge_compress.core.errors import PlanError, UnsupportedModelError
from dnge_compress.graph.counting import dropped_spaces, paths_after
from dnge_compress.graph.masking import slot_rows, units_gone
from dnge_compress.graph.types import Cut, ModelGraph


def cut(model: nn.Module, graph: ModelGraph, cuts: Sequence[Cut]) -> None:
    """Remove everything `cuts` don't keep from `model`, in place, and bring its config and attributes up to date.

    Raises PlanError if a cut doesn't fit the graph (before anything is changed).
    """
    validate(graph, cuts)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for (module, side), rows in _rows_to_drop(graph, cuts).items():
        _drop_rows(model.get_submodule(module), module, side, rows)
    for name, p in model.named_parameters():
        p.requires_grad_(flags[name])
    for c in cuts:
        if graph.space(c.space).kind == "layer":
            _drop_layers(model, graph.space(c.space).modules, c.keep)
    _update_attributes(model, graph, cuts)
    _update_config(model, graph, cuts)


def validate(graph: ModelGraph, cuts: Iterable[Cut]) -> None:
    """Raise PlanError for a cut that doesn't fit the graph: unknown or uncuttable space, unit out of range, pinned."""
    for c in cuts:
        space = graph.space(c.space)
        if space.kind in ("fixed", "residual"):
            raise PlanError(f"space '{c.space}' is {space.kind} and can't be cut")
        if c.keep[-1] >= space.units:
            raise PlanError(f"the cut on '{c.space}' keeps unit {c.keep[-1]}, but the space has {space.units} units")
        lost = sorted(set(space.pinned) - set(c.keep))
        if lost:
            raise PlanError(f"unit {lost[0]} of '{c.space}' can't be removed")


def _rows_to_drop(graph: ModelGraph, cuts: Iterable[Cut]) -> dict[tuple[str, str], list[int]]:
    """(module, "in" or "out") → rows that go; the slots of a weight, its bias and its statistics are one entry."""
    rows: dict[tuple[str, str], set[int]] = {}
    for c in cuts:
        space = graph.space(c.space)
        gone = units_gone(space.units, c.keep)
        for slot in graph.slots_of(c.space):
            side = "in" if graph.consumes(slot) else "out"
            key = (slot.param.rpartition(".")[0], side)
            rows.setdefault(key, set()).update(slot_rows(slot, gone).tolist())
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
    for index, block in enumerate(kept):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index


def _update_attributes(model: nn.Module, graph: ModelGraph, cuts: Iterable[Cut]) -> None:
    """Counts that modules keep for themselves; where a block went, its attributes went with it."""
    kept = {c.space: len(c.keep) for c in cuts}
    paths = paths_after(graph, cuts)
    for space, module, name, factor in graph.attributes:
        path = paths(module)
        if space in kept and path is not None:
            setattr(model.get_submodule(path), name, factor * kept[space])


def _update_config(model: nn.Module, graph: ModelGraph, cuts: Iterable[Cut]) -> None:
    """Write the config keys whose spaces all agree; an uneven width can't be written and stays with the plan."""
    config = getattr(model, "config", None)
    if config is None:
        return
    for (key, index), value in config_values(graph, cuts).items():
        if index is None:
            setattr(config, key, value)
        else:
            values = list(getattr(config, key))
            values[index] = value
            setattr(config, key, values)
    for space in graph.of_kind("layer"):
        keep = next((c.keep for c in cuts if c.space == space.name), None)
        types = getattr(config, "layer_types", None)
        if keep is not None and types is not None and len(types) == space.units:
            config.layer_types = [types[i] for i in keep]


def config_values(graph: ModelGraph, cuts: Iterable[Cut]) -> dict[tuple[str, int | None], int]:
    """(config key, index) → its value under `cuts`, for every key that changes and whose spaces agree."""
    cuts = list(cuts)
    kept = {c.space: len(c.keep) for c in cuts}
    gone = dropped_spaces(graph, cuts)
    values: dict[tuple[str, int | None], set[int]] = {}
    touched: dict[tuple[str, int | None], int] = {}
    for field in graph.config_fields:
        spaces = [s for s in field.spaces if s not in gone]
        if field.fixed or not spaces:
            continue
        key = (field.key, field.index)
        values.setdefault(key, set()).update(field.factor * kept.get(s, graph.space(s).units) for s in spaces)
        if any(s in kept for s in spaces):
            touched[key] = 1
            for other, value in field.also:
                values.setdefault((other, None), set()).add(value)
                touched[other, None] = 1
    return {key: found.pop() for key, found in values.items() if key in touched and len(found) == 1}
