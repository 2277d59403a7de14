"""The walk over the dynamic graph: forward as inference runs, then backward through the transposed blocks.

Every space has one state per unit, its memory. It is empty until the space is first written and persists afterwards:
the residual stream remembers what all earlier blocks wrote. An update is the paper's, with the memory added to the
message: h ← LayerNorm(GRU(input = node features, hidden = h + m)).

Letters: U units, H hidden size, F node features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dnge_compress.encoder.messages import CHUNK_ELEMENTS, MAGNITUDE, RAW, Message, scaled
from dnge_compress.encoder.pooling import pool_rows, spread
from dnge_compress.encoder.snapshots import ROLES, Edge, Snapshot
from dnge_compress.types import ModelGraph

States = dict[str, Tensor]
KINDS = ("neuron", "head", "channel", "residual", "expert", "layer", "fixed")


class Sweep(nn.Module):
    """One direction of the walk. Parameters are shared over all steps; roles and kinds only choose embeddings."""

    def __init__(self, hidden: int, features: int, backward: bool = False) -> None:
        super().__init__()
        self.backward_in_time = backward
        self.raw = Message(hidden, RAW)
        self.magnitude = Message(hidden, MAGNITUDE)
        self.mix = nn.Linear(2 * hidden, hidden)
        self.role = nn.Embedding(len(ROLES), hidden)
        self.kind = nn.Embedding(len(KINDS), hidden)
        self.scale = nn.Linear(2, hidden)  # log scale of the block, bias
        self.features = nn.Linear(features, hidden)
        self.update = nn.GRUCell(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(
        self,
        graph: ModelGraph,
        steps: Iterable[Snapshot],
        features: Mapping[str, Tensor],
        chunk: int = CHUNK_ELEMENTS,
    ) -> States:
        """The state of every unit of every space after the walk: space → `[U, H]`."""
        memory: States = {}
        for snapshot in steps:
            for edge in snapshot.edges:
                target, messages = self._message(graph, edge, memory, features, chunk)
                own = self._own(graph, target, features)
                own = own + self.role.weight[edge.role] + self._scale(graph, snapshot, edge, target)
                hidden = self._state(graph, target, memory, features) + messages
                memory[target] = self.norm(self.update(own, hidden))
        return {s.name: self._state(graph, s.name, memory, features) for s in graph.spaces}

    def _message(
        self, graph: ModelGraph, edge: Edge, memory: States, features: Mapping[str, Tensor], chunk: int
    ) -> tuple[str, Tensor]:
        """The space that an edge informs in this direction, and the messages to its units `[U, H]`."""
        block, _ = scaled(edge.weight)
        if edge.is_diagonal:
            states = self._state(graph, edge.src, memory, features)
            return edge.dst, self.mix(
                torch.cat([self.raw.diagonal(block, states), self.magnitude.diagonal(block, states)], -1)
            )
        source, target = (edge.dst, edge.src) if self.backward_in_time else (edge.src, edge.dst)
        source_width, width = (
            (edge.dst_width, edge.src_width) if self.backward_in_time else (edge.src_width, edge.dst_width)
        )
        states = spread(self._state(graph, source, memory, features), source_width)
        rows = [m(block, states, self.backward_in_time, chunk) for m in (self.raw, self.magnitude)]
        return target, self.mix(torch.cat([pool_rows(r, width) for r in rows], -1))

    def _state(self, graph: ModelGraph, name: str, memory: States, features: Mapping[str, Tensor]) -> Tensor:
        """The memory of a space; before anything was written, its own features."""
        if name in memory:
            return memory[name]
        return self._own(graph, name, features)

    def _own(self, graph: ModelGraph, name: str, features: Mapping[str, Tensor]) -> Tensor:
        space = graph.space(name)
        kind = self.kind.weight[KINDS.index(space.kind)]
        if name in features:
            return self.features(features[name]) + kind
        return kind.expand(space.units, -1)

    def _scale(self, graph: ModelGraph, snapshot: Snapshot, edge: Edge, target: str) -> Tensor:
        _, log_scale = scaled(edge.weight)
        units = graph.space(target).units
        bias = snapshot.biases.get(target)
        if bias is None or self.backward_in_time:
            shift = edge.weight.new_zeros(units)
        else:
            shift = pool_rows(bias[:, None], len(bias) // units).squeeze(1)
        return self.scale(torch.stack([log_scale.expand(units), shift], -1))
