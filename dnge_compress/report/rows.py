"""Units, parameters, work and bytes of a model, before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dnge_compress.graph.builder import Shapes, is_embedding
from dnge_compress.graph.counting import shapes_left
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import PRUNABLE, ModelGraph, Space
from dnge_compress.signals.running import Inputs, call, inference_mode_of, take

if TYPE_CHECKING:
    pass

Change = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """One prunable space: units and parameters before and after, and the predicted cost of what went.

    Parameters are those of the rows and columns that belong to the space; spaces overlap (a block contains its
    neurons), so they don't add up over kinds. `kept` is 0 where the whole block was dropped.
    """

    space: str
    kind: str
    layer: int | None
    kept: int
    total: int
    params_before: int
    params_after: int
    cost: float


@dataclass(frozen=True)
class Totals:
    """(before, after) over the whole model; `macs` counts one example input and is 0 where none was run."""

    params: Change
    non_embedding_params: Change
    macs: Change
    bytes: Change


@dataclass(frozen=True)
class Size:
    """How big a model is: unique parameters, multiply-accumulates on one example, bytes of its tensors."""

    params: int
    non_embedding_params: int
    macs: int
    bytes: int
    shapes: Shapes


def measure(model: nn.Module, graph: ModelGraph, inputs: Inputs | None = None) -> Size:
    """Size of a model before or after surgery; `graph` is that of the model before."""
    params = dict(model.named_parameters())
    tensors = {id(t): t for t in (*params.values(), *model.buffers())}
    return Size(
        params=sum(p.numel() for p in params.values()),
        non_embedding_params=sum(p.numel() for n, p in params.items() if not is_embedding(graph, n)),
        macs=0 if inputs is None else macs_of(model, inputs),
        bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
        shapes={name: tuple(p.shape) for name, p in params.items()},
    )


def macs_of(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one forward pass over the first example of `inputs`."""
    example = take([inputs], 1)[0]
    # Fused attention kernels for the CPU have no entry in torch's counter; the plain ones do.
    counter = FlopCounterMode(display=False)
    with inference_mode_of(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call(model, example)
    return int(counter.get_total_flops()) // 2


def rows_of(applied: AppliedCuts, costs: Mapping[str, float], shapes: Shapes) -> tuple[Row, ...]:
    """One row per prunable space; `costs` are the plan's per space, `shapes` those of the parameters before."""
    after = applied.shapes(shapes)
    rows = []
    for space in applied.graph.of_kind(*PRUNABLE):
        shares = _blocks(space, shapes, after) if space.modules else _shares(applied, space, shapes, after)
        left = {name: share for name, share in shares.items() if not name.startswith(applied.dropped_prefixes)}
        rows.append(
            Row(
                space=space.name,
                kind=space.kind,
                layer=space.layer,
                kept=0 if shares and not left else applied.kept(space.name),
                total=space.units,
                params_before=sum(old for old, _ in shares.values()),
                params_after=sum(new for _, new in left.values()),
                cost=float(costs.get(space.name, 0.0)),
            )
        )
    return tuple(rows)


def _blocks(space: Space, shapes: Shapes, after: Shapes) -> dict[str, Change]:
    """Parameter → its elements before and after, for all that stands in the blocks of a layer space."""
    inside = tuple(f"{module}." for module in space.modules)
    return {n: (math.prod(shape), math.prod(after[n])) for n, shape in shapes.items() if n.startswith(inside)}


def _shares(applied: AppliedCuts, space: Space, shapes: Shapes, after: Shapes) -> dict[str, Change]:
    """Parameter → its elements that belong to the space, before and after; an element counts once."""
    own = {slot.param for slot in applied.graph.slots_of(space.name)} & shapes.keys()
    told = {name: shapes[name] for name in shapes if name in own}
    rest_before = shapes_left(applied.graph, told, {space.name: 0})
    rest_after = shapes_left(applied.graph, told, {**applied.counts, space.name: 0})
    return {
        name: (
            math.prod(shapes[name]) - math.prod(rest_before[name]),
            math.prod(after[name]) - math.prod(rest_after[name]),
        )
        for name in told
    }
