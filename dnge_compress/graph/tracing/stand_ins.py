"""What torch-pruning can't follow, exchanged for what it can: recurrent modules stand as linear layers while it looks.

A hidden unit of a recurrent module is to its neighbours what an output of a linear layer is: that is all the stand-in
says. It proposes only; the proof runs the module itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dnge_compress.graph.tracing.layers import Layer


class RecurrentStandIn(nn.Module):
    """A linear layer in place of every direction of every level of a recurrent module; it returns what that returns.

    First states add to its outputs, so that it shares its units with what made them.
    """

    def __init__(self, module: nn.RNNBase, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.has_cells = module.mode == "LSTM"
        self.directions = 2 if module.bidirectional else 1
        self.parts = nn.ModuleList(nn.Linear(layer.rows("in"), module.hidden_size) for layer in layers)

    def forward(self, x: Any, state: Any = None) -> Any:
        """The outputs, and one vector per direction and level as the last state."""
        rows = x.data if isinstance(x, PackedSequence) else x
        states = [] if state is None else list(state) if isinstance(state, tuple) else [state]
        last: list[Tensor] = []
        for first in range(0, len(self.parts), self.directions):
            outputs = [part(rows) for part in self.parts[first : first + self.directions]]
            outputs = [out + sum(t[first + i].mean(0) for t in states) for i, out in enumerate(outputs)]
            last += outputs
            rows = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        hidden = torch.stack([t.flatten(0, -2).mean(0, keepdim=True) if t.dim() < 3 else t.mean(1) for t in last])
        out = PackedSequence(rows, *x[1:]) if isinstance(x, PackedSequence) else rows
        return out, (hidden, hidden * 1.0) if self.has_cells else hidden


@contextmanager
def stand_ins(net: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[nn.Module, list[Layer]]]:
    """For a while, recurrent modules are exchanged. Gives the layers that each module which torch-pruning meets is."""
    met: dict[nn.Module, list[Layer]] = {}
    recurrent: dict[nn.RNNBase, list[Layer]] = {}
    for layer in layers:
        if isinstance(layer.module, nn.RNNBase):
            recurrent.setdefault(layer.module, []).append(layer)
        else:
            met.setdefault(layer.module, []).append(layer)
    for module, own in recurrent.items():
        stand_in = RecurrentStandIn(module, own[::2])
        for part, first, second in zip(stand_in.parts, own[::2], own[1::2], strict=True):
            met[part] = [first, second]
        _exchange(net, own[0].path, stand_in)
    try:
        yield met
    finally:
        for module, own in recurrent.items():
            _exchange(net, own[0].path, module)


def _exchange(net: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(net.get_submodule(owner), leaf, module)
