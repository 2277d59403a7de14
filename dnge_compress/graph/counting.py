"""Count what is kept: how many parameters or operations, at a price for an element of each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from dnge_compress.graph.types import ModelGraph, Shapes

Prices = Mapping[str, float]  # tensor name → what one of its elements costs


def parameter_prices(model: nn.Module) -> Prices:
    """Every parameter costs 1 (tied ones are counted once)."""
    return {name: 1.0 for name, _ in model.named_parameters()}


def non_embedding_prices(model: nn.Module, graph: ModelGraph) -> Prices:
    """Every parameter costs 1 but those of embedding tables and of the output head."""
    return {n: 1.0 for n, _ in model.named_parameters() if not is_embedding(graph, n)}


def price_left(
    graph: ModelGraph, prices: Prices, shapes: Shapes, kept: Mapping[str, int], dropped: tuple[str, ...] = ()
) -> float:
    """Price of what is left if spaces keep so many units each and the modules with these name prefixes go; of experts
    that are modules, none of which is among those, a share stays, since all are as large."""
    left = shapes_left(graph, {name: shapes[name] for name in prices if not name.startswith(dropped)}, kept)
    shares: dict[tuple[str, ...], float] = {}
    for space in (graph.space(name) for name in kept):
        inside = tuple(f"{module}." for module in space.modules)
        if space.kind == "expert" and not set(inside) & set(dropped):
            shares[inside] = kept[space.name] / space.units

    def share_of(name: str) -> float:
        return math.prod(share for inside, share in shares.items() if name.startswith(inside))

    return sum(prices[name] * math.prod(shape) * share_of(name) for name, shape in left.items())


def shapes_left(graph: ModelGraph, shapes: Shapes, kept: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors if spaces keep so many units each."""
    by_part: dict[tuple[str, int, int | None], int] = {}
    for space, count in kept.items():
        for slot in graph.slots_of(space):
            key = (slot.param, slot.axis, slot.part)
            by_part[key] = by_part.get(key, 0) + (graph.space(space).units - count) * slot.width
    lost: dict[tuple[str, int], int] = {}
    for (param, axis, _), rows in by_part.items():  # all experts of a stack lose as many
        lost[(param, axis)] = max(rows, lost.get((param, axis), 0))
    return {
        name: tuple(size - lost.get((name, axis), 0) for axis, size in enumerate(shape))
        for name, shape in shapes.items()
    }


def is_embedding(graph: ModelGraph, param: str) -> bool:
    """Whether `param` belongs to an embedding table or to the output head, which writes the vocabulary."""
    try:
        step = graph.step_of(param)
    except KeyError:  # a parameter of no step
        return False
    return step.op == "embed" or "vocabulary" in step.writes
