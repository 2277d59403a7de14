"""The network as a sequence of snapshots: at step t, the weight blocks `[dst, src]` that compute it. Made lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dnge_compress.encoder.messages import scales
from dnge_compress.graph.types import ModelGraph, Slot, Step, is_weight

ROLES = ("linear", "gate", "up", "query", "key", "value", "conv", "embed", "norm")


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One weight block of a snapshot: `[dst rows, src rows, kernel]`, or `[rows]` for the diagonal of a norm.

    `dst_width` and `src_width` rows belong to each unit.
    """

    role: int
    src: str
    dst: str
    weight: Tensor
    dst_width: int = 1
    src_width: int = 1

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """What the weights are multiplied by, and their log scale as a feature; see messages.scales."""
        return scales(self.weight)

    @property
    def is_diagonal(self) -> bool:
        """Whether the block is a norm's gain: one weight per unit, no mixing."""
        return self.weight.dim() == 1


@dataclass(frozen=True)
class Snapshot:
    """One step: its edges, and the bias of each written space `[rows]` where it has one."""

    step: Step
    edges: tuple[Edge, ...]
    biases: Mapping[str, Tensor]


def snapshots(
    graph: ModelGraph, weights: Mapping[str, Tensor], dtype: torch.dtype, backward: bool = False
) -> Iterator[Snapshot]:
    """The steps of inference in order (or reversed), each with its blocks cut out of `weights` in the given dtype."""
    slots: dict[str, list[Slot]] = {}
    for slot in graph.slots:
        slots.setdefault(slot.param, []).append(slot)
    for step in reversed(graph.steps) if backward else graph.steps:
        edges: list[Edge] = []
        biases: dict[str, Tensor] = {}
        for position, param in enumerate(p for p in step.params if p in weights):
            own, leaf = slots.get(param, []), param.rpartition(".")[2]
            if is_weight(param):
                edges += _edges(graph, step, position, own, weights[param].to(dtype))
            elif leaf.startswith("bias"):
                biases |= {s.space: _rows(weights[param], 0, s, graph).to(dtype) for s in own}
        yield Snapshot(step, tuple(edges), biases)


def _edges(graph: ModelGraph, step: Step, position: int, slots: list[Slot], weight: Tensor) -> Iterator[Edge]:
    if step.op in ("norm", "batchnorm"):
        for s in slots:
            rows = _rows(weight, 0, s, graph)
            yield Edge(
                role=ROLES.index("norm"),
                src=s.space,
                dst=s.space,
                weight=rows.reshape(graph.space(s.space).units, -1).mean(1),
            )
        return
    in_axis = 0 if step.op == "embed" else step.in_axis
    sources = [s for s in slots if s.axis == in_axis]
    targets = [s for s in slots if s.axis == 1 - in_axis]
    for src in sources:
        for i, dst in enumerate(targets):
            block = _rows(_rows(weight, in_axis, src, graph), 1 - in_axis, dst, graph)
            block = block.transpose(0, 1) if in_axis == 0 else block
            role = ROLES.index(_role(step, position, i, fused=len(targets) > 1))
            yield Edge(
                role=role,
                src=src.space,
                dst=dst.space,
                weight=block.flatten(2) if block.dim() > 2 else block[..., None],
                dst_width=dst.width,
                src_width=src.width,
            )


def _role(step: Step, position: int, target: int, fused: bool) -> str:
    """What a block does in its step; parameters come in the order weight, bias, weight, bias, …"""
    weights = [p for p in step.params if is_weight(p)]
    index = weights.index(step.params[position])
    if step.op.startswith("attention"):
        return ("query", "key", "value")[target if fused else index]
    if step.op == "gated":
        return ("gate", "up")[index]
    return {
        "linear": "linear",
        "router": "linear",
        "linear_t": "linear",
        "conv": "conv",
        "conv_t": "conv",
        "embed": "embed",
    }[step.op]


def _rows(tensor: Tensor, axis: int, slot: Slot, graph: ModelGraph) -> Tensor:
    return tensor.narrow(axis, slot.offset, graph.space(slot.space).units * slot.width)
