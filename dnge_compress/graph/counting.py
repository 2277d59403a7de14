"""Count what a plan keeps: exactly which rows of which tensors, and how many parameters or operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from dnge_compress.graph.builder import is_embedding
from dnge_compress.graph.masking import slot_rows, units_gone
from dnge_compress.graph.types import Cut, ModelGraph

Prices = Mapping[str, float]  # tensor name → what one of its elements costs


def parameter_prices(model: nn.Module) -> Prices:
    """Every parameter costs 1 (tied ones are counted once)."""
    return {name: 1.0 for name, _ in model.named_parameters()}


def non_embedding_prices(model: nn.Module, graph: ModelGraph) -> Prices:
    """Every parameter costs 1 but those of embedding tables and of the output head."""
    return {n: 1.0 for n, _ in model.named_parameters() if not is_embedding(graph, n)}


def total(prices: Prices, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Price of the whole model."""
    return sum(price * _numel(shapes[n]) for n, price in prices.items())


def kept_total(graph: ModelGraph, prices: Prices, shapes: Mapping[str, tuple[int, ...]], cuts: Iterable[Cut]) -> float:
    """Price of what is left after `cuts`."""
    cuts = list(cuts)
    return kept_price(graph, prices, shapes, {c.space: len(c.keep) for c in cuts}, dropped_modules(graph, cuts))


def kept_price(
    graph: ModelGraph,
    prices: Prices,
    shapes: Mapping[str, tuple[int, ...]],
    kept: Mapping[str, int],
    dropped: tuple[str, ...],
) -> float:
    """Price of what is left if spaces keep so many units each and the blocks with these name prefixes go."""
    lost: dict[tuple[str, int], int] = {}
    for space, count in kept.items():
        for slot in graph.slots_of(space):
            key = (slot.param, slot.axis)
            lost[key] = lost.get(key, 0) + (graph.space(space).units - count) * slot.width
    left = 0.0
    for name, price in prices.items():
        if name.startswith(dropped):
            continue
        shape = list(shapes[name])
        for axis in range(len(shape)):
            shape[axis] -= lost.get((name, axis), 0)
        left += price * _numel(shape)
    return left


def dropped_modules(graph: ModelGraph, cuts: Iterable[Cut]) -> tuple[str, ...]:
    """Name prefixes ("model.layers.3.") of all blocks that the cuts drop."""
    return tuple(
        f"{module}." for cut in cuts for i, module in enumerate(graph.space(cut.space).modules) if i not in cut.keep
    )


def dropped_spaces(graph: ModelGraph, cuts: Iterable[Cut]) -> set[str]:
    """Spaces that disappear with their dropped block."""
    prefixes = dropped_modules(graph, cuts)
    if not prefixes:
        return set()
    return {
        s.name
        for s in graph.spaces
        if graph.consumers(s.name) and all(slot.param.startswith(prefixes) for slot in graph.slots_of(s.name))
    }


def paths_after(graph: ModelGraph, cuts: Iterable[Cut]) -> Callable[[str], str | None]:
    """A function from a module path before layers were dropped to its path afterwards, or None if it is gone."""
    renamed: dict[str, str | None] = {}
    for c in cuts:
        modules = graph.space(c.space).modules
        for i, module in enumerate(modules):
            renamed[module] = modules[c.keep.index(i)] if i in c.keep else None

    def path(module: str) -> str | None:
        for old, new in renamed.items():
            if module == old or module.startswith(f"{old}."):
                return None if new is None else new + module[len(old) :]
        return module

    return path


def kept_rows(graph: ModelGraph, cuts: Iterable[Cut], param: str, axis: int, rows: int) -> Tensor:
    """Indices of the rows of `param` along `axis` that stay under `cuts`."""
    keep = torch.ones(rows, dtype=torch.bool)
    for cut in cuts:
        for slot in graph.slots_of(cut.space):
            if (slot.param, slot.axis) == (param, axis):
                keep[slot_rows(slot, units_gone(graph.space(cut.space).units, cut.keep))] = False
    return keep.nonzero().squeeze(1)


def _numel(shape: Iterable[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
