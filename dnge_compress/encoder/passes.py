"""A message-passing pass over the dynamic graph: forward as inference runs, or backward through the transposed blocks.

Every space has one state per unit, its memory. It is empty until the space is first written and persists afterwards:
the residual stream remembers what all earlier blocks wrote. An update is the paper's, with the memory added to the
message: h ← LayerNorm(GRU(input = node features, hidden = h + m)), m the sum over a snapshot's blocks that inform
the same space.

Letters: U units, H hidden size, F node features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.encoder.messages import MAGNITUDE, RAW, Basis, Message
from dnge_compress.encoder.pooling import pool_rows, spread
from dnge_compress.encoder.snapshots import ROLES, Edge, Snapshot, snapshots
from dnge_compress.graph.types import ModelGraph

States = dict[str, Tensor]
KINDS = ("neuron", "head", "channel", "residual", "expert", "layer", "fixed")


def run_passes(
    passes: Iterable[MessagePass], graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Tensor]
) -> States:
    """The states of several passes side by side, space → `[U, passes · H]`. Each reads the node features `[U, F]`, and
    the states of the one before."""
    found: list[States] = []
    for one in passes:
        read = _joined(features, found[-1], one.features.in_features) if found else features
        found.append(one(graph, weights, read))
    return {name: torch.cat([states[name] for states in found], -1) for name in found[0]}


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) written out, since torch's own can't be batched over encoders."""

    def __init__(self, size: int, candidate: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.candidate = candidate
        self.from_input = nn.Linear(size, 3 * size)
        self.from_hidden = nn.Linear(size, 3 * size)

    def forward(self, inputs: Float[Tensor, "U H"], hidden: Float[Tensor, "U H"]) -> Float[Tensor, "U H"]:
        """New hidden states `[U, H]` from inputs and hidden states `[U, H]`."""
        reset, keep, new = self.from_input(inputs).chunk(3, -1)
        reset_too, keep_too, old = self.from_hidden(hidden).chunk(3, -1)
        candidate = self.candidate(new + torch.sigmoid(reset + reset_too) * old)
        return torch.lerp(candidate, hidden, torch.sigmoid(keep + keep_too))


class MessagePass(nn.Module):
    """One direction of message passing. Parameters are shared over all steps; roles and kinds only choose embeddings.

    Inputs and outputs of the network (kind "fixed") have no memory, and all their units are alike, except in the
    spaces of `nodes` (space → units): there each unit has a learned vector of its own, as the paper's input nodes.

    - `is_relative`: blocks of weights are taken relative to their root mean square, whose log the update is given.
    - `is_rooted`: messages over raw weights are sums over the root of the number of sources instead of means, which
      doesn't shrink with width where weights are independent.
    - `update` and `norm`: modules of the same shapes in place of a GRU and a LayerNorm.
    """

    def __init__(
        self,
        hidden: int,
        features: int,
        streams: Iterable[Sequence[Basis]] = (RAW, MAGNITUDE),
        *,
        backward: bool = False,
        nodes: Mapping[str, int] | None = None,
        is_relative: bool = True,
        is_rooted: bool = False,
        update: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backward_in_time, self.is_relative, self.is_rooted = backward, is_relative, is_rooted
        self.streams: Sequence[Message] = nn.ModuleList(Message(hidden, basis) for basis in streams)  # type: ignore[assignment]
        self.mix = nn.Linear(len(self.streams) * hidden, hidden)
        self.role = nn.Embedding(len(ROLES), hidden)
        self.gain = nn.Parameter(torch.ones(len(ROLES), hidden))  # of a message, by the role of its block
        self.kind = nn.Embedding(len(KINDS), hidden)
        self.scale = nn.Linear(2, hidden)  # log scale of the block, bias
        self.features = nn.Linear(features, hidden)
        self.update = update or GRU(hidden)
        self.norm = norm or nn.LayerNorm(hidden)
        self.nodes = nn.ParameterDict({name: torch.randn(units, hidden) for name, units in (nodes or {}).items()})

    def forward(self, graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> States:
        """The state of every unit of every space after the pass, space → `[U, H]`, from node features `[U, F]`."""
        memory: States = {}
        for together in self.ordered(graph, weights):
            memory |= self._updated(graph, together, memory, features)
        return {s.name: self._state(graph, s.name, memory, features) for s in graph.spaces}

    def ordered(self, graph: ModelGraph, weights: Mapping[str, Tensor]) -> Iterable[Sequence[Snapshot]]:
        """The snapshots in the order of inference, or backward; those given together act on the same memory."""
        dtype = self.mix.weight.dtype
        return ([snapshot] for snapshot in snapshots(graph, weights, dtype, backward=self.backward_in_time))

    def _updated(
        self, graph: ModelGraph, together: Iterable[Snapshot], memory: States, features: Mapping[str, Tensor]
    ) -> States:
        """New states of the spaces that some snapshots inform, all computed from the same memory."""
        inputs: dict[str, list[Tensor]] = {}
        messages: dict[str, list[Tensor]] = {}
        for snapshot in together:
            for edge in snapshot.edges:
                target = self._target(edge)
                if self._has_memory(graph, target):
                    inputs.setdefault(target, []).append(self._block_input(graph, snapshot, edge))
                    messages.setdefault(target, []).append(self._messages(graph, edge, memory, features))
        updated = {}
        for name, found in messages.items():
            given = self._own(graph, name, features) + sum(inputs[name]) / len(inputs[name])
            updated[name] = self.norm(self.update(given, self._state(graph, name, memory, features) + sum(found)))
        return updated

    def _target(self, edge: Edge) -> str:
        return edge.src if self.backward_in_time and not edge.is_diagonal else edge.dst

    def _messages(self, graph: ModelGraph, edge: Edge, memory: States, features: Mapping[str, Tensor]) -> Tensor:
        """The messages along an edge to the units that it informs in this direction `[U, H]`."""
        scale = edge.scales[0] if self.is_relative else 1.0
        if edge.is_diagonal:
            states = self._state(graph, edge.src, memory, features)
            return self._mixed(edge, [m.diagonal(edge.weight * scale, states) for m in self.streams])
        back = self.backward_in_time
        source, source_width = (edge.dst, edge.dst_width) if back else (edge.src, edge.src_width)
        width = edge.src_width if back else edge.dst_width
        states = self._state(graph, source, memory, features)
        if not self._has_memory(graph, source):
            rows = [m.from_equals(edge.weight, states[:1], back, scale=scale) for m in self.streams]
        else:
            states = spread(states, source_width)
            rows = [m(edge.weight, states, back, scale=scale) for m in self.streams]
        if self.is_rooted:
            root = edge.weight.shape[0 if back else 1] ** 0.5
            rows = [r * root if m.basis == RAW else r for m, r in zip(self.streams, rows, strict=True)]
        return self._mixed(edge, [pool_rows(r, width) for r in rows])

    def _mixed(self, edge: Edge, streams: list[Tensor]) -> Tensor:
        return self.mix(torch.cat(streams, -1)) * self.gain[edge.role]

    def _state(self, graph: ModelGraph, name: str, memory: States, features: Mapping[str, Tensor]) -> Tensor:
        """The memory of a space; before anything was written, its own features."""
        return memory[name] if name in memory else self._own(graph, name, features)

    def _own(self, graph: ModelGraph, name: str, features: Mapping[str, Tensor]) -> Tensor:
        space = graph.space(name)
        kind = self.kind.weight[KINDS.index(space.kind)]
        own = self.nodes[name] + kind if name in self.nodes else kind.expand(space.units, -1)
        if name in features and self._has_memory(graph, name):
            return self.features(features[name]) + own
        return own

    def _has_memory(self, graph: ModelGraph, name: str) -> bool:
        return graph.space(name).kind != "fixed" or name in self.nodes

    def _block_input(self, graph: ModelGraph, snapshot: Snapshot, edge: Edge) -> Tensor:
        """What an update is given about a block besides its messages: role, scale, and the bias where one is added."""
        target = self._target(edge)
        log_scale = edge.scales[1] if self.is_relative else edge.weight.new_zeros(())
        units = graph.space(target).units
        bias = snapshot.biases.get(target)
        if bias is None or self.backward_in_time:
            shift = edge.weight.new_zeros(units)
        else:
            shift = pool_rows(bias[:, None], len(bias) // units).squeeze(1)
        return self.scale(torch.stack([log_scale.expand(units), shift], -1)) + self.role.weight[edge.role]


def _joined(features: Mapping[str, Tensor], states: States, size: int) -> dict[str, Tensor]:
    """Features and the states before them, `size` numbers a unit; zeros where a space has no features."""
    return {
        name: torch.cat(
            [features[name] if name in features else state.new_zeros(len(state), size - state.shape[1]), state], -1
        )
        for name, state in states.items()
    }
