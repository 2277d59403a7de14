"""How dearly each part of a network would pay for the ratio: what scores say of spaces that stay whole, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dnge_compress.core.errors import PlanError
from dnge_compress.graph.types import PRUNABLE, ModelGraph, Scores, Space
from dnge_compress.plans.legal_widths import droppable, width_groups
from dnge_compress.recipes.schema import Prune

BLOCKS = re.compile(r"(?:(?P<stack>.+)\.)?layers(?:\.(?P<stage>[0-9]+))?")  # names of spaces of blocks


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The predicted cost of taking the cheapest `gone` of the `total` units from one space, and nothing elsewhere.

    A block that may be dropped is one of its own: the space is that of the blocks, `layer` its number. `stack` names
    the part of the model that numbers its layers, where there are several (encoder and decoder). `cost` is in the
    scorer's unit, nats of divergence per label for most, unrepaired.
    """

    space: str
    kind: str
    layer: int | None
    gone: int
    total: int
    cost: float
    stack: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.gone <= self.total:
            raise PlanError(f"{self.gone} of {self.total} units can't be taken from space '{self.space}'")


def sensitivities(graph: ModelGraph, scores: Scores, prune: Prune) -> tuple[Sensitivity, ...]:
    """What it costs to take the ratio from each space alone that may shrink, one unit at least, and each block alone
    that may go; in the order of the graph. To which widths the ratio would be rounded isn't asked."""
    blocks = droppable(graph, prune)
    free = {name: [i for of, i in blocks if of == name] for name, _ in blocks}
    for group in width_groups(graph, prune)[0]:
        free |= {name: _unprotected(graph.space(name)) for name in group.spaces}
    return tuple(
        found
        for space in graph.of_kind(*PRUNABLE)
        if space.name in scores.units and free.get(space.name)
        for found in _of_space(graph, space, scores.units[space.name], free[space.name], prune.ratio)
    )


def _unprotected(space: Space) -> list[int]:
    return [i for i in range(space.units) if i not in space.protected]


def _of_space(graph: ModelGraph, space: Space, scores: Tensor, free: list[int], share: float) -> Iterator[Sensitivity]:
    costs, stack = scores.to(torch.float64), _stack_of(graph, space)
    if space.kind == "layer":
        named = BLOCKS.fullmatch(space.name)
        stage = named["stage"] if named else None  # blocks of a numbered stage stand in one place
        for i in free:
            yield Sensitivity(
                space=space.name,
                kind=space.kind,
                layer=i if stage is None else int(stage),
                gone=1,
                total=space.units,
                cost=float(costs[i]),
                stack=stack,
            )
        return
    gone = max(1, round(share * len(free)))
    yield Sensitivity(
        space=space.name,
        kind=space.kind,
        layer=space.layer,
        gone=gone,
        total=space.units,
        cost=float(costs[free].sort().values[:gone].sum()),
        stack=stack,
    )


def _stack_of(graph: ModelGraph, space: Space) -> str:
    """What the space's layers are numbered in: "encoder" for "encoder.ffn.0" where blocks are "encoder.layers"."""
    stacks = (match["stack"] for s in graph.of_kind("layer") if (match := BLOCKS.fullmatch(s.name)) and match["stack"])
    return max((stack for stack in stacks if space.name.startswith(f"{stack}.")), key=len, default="")
