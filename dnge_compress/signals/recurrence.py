"""Recurrent modules run one product at a time, so that what their matrices read and write can be watched.

torch computes a whole LSTM or GRU in one call; while watched, modules compute the same by the formulas in torch's own
documentation. Their weights and results are not changed.

Letters: N examples, T positions, F features below, G gates, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from dnge_compress.graph.products import Watch

Watchers = Mapping[str, Sequence[Watch]]  # by the name of a parameter


@contextmanager
def recurrences_watched(model: nn.Module, watchers: Watchers) -> Iterator[None]:
    """For a while, recurrent modules tell the watchers of their matrices what these read, `[N, …, F]`, and give."""
    modules = {path: m for path, m in model.named_modules() if isinstance(m, nn.RNNBase)}
    watched = {path: m for path, m in modules.items() if any(name.rpartition(".")[0] == path for name in watchers)}
    own = {module: vars(module)["forward"] for module in watched.values() if "forward" in vars(module)}
    for path, module in watched.items():
        module.forward = partial(_forward, module, path, watchers)
    try:
        yield
    finally:
        for module in watched.values():
            del module.forward
        for module, forward in own.items():  # others put theirs in the same place, for weights that lie elsewhere
            module.forward = forward


def _forward(module: Any, path: str, watchers: Watchers, x: Any, state: Any = None) -> Any:
    if isinstance(x, PackedSequence):
        return _packed(module, path, watchers, x, state)
    batched = x.dim() == 3
    x = x if batched else x.unsqueeze(int(not module.batch_first))
    x = x if module.batch_first else x.transpose(0, 1)  # [N, T, F]
    states = _initial(module, x, state)
    out, hidden, cells = x, [], []
    directions = 2 if module.bidirectional else 1
    for level in range(module.num_layers):
        sides = []
        for back in range(directions):
            first = states[level * directions + back]
            side, (h, c) = _direction(module, path, watchers, f"l{level}{'_reverse' * back}", out, first)
            sides.append(side)
            hidden.append(h)
            cells.append(c)
        out = torch.cat(sides, -1)
    out = out if module.batch_first else out.transpose(0, 1)
    last = [torch.stack(hidden), torch.stack(cells)]
    if not batched:
        out, last = out.squeeze(int(not module.batch_first)), [t.squeeze(1) for t in last]
    return out, tuple(last) if module.mode == "LSTM" else last[0]


def _packed(module: Any, path: str, watchers: Watchers, x: PackedSequence, state: Any) -> Any:
    """Sequences of several lengths, one by one."""
    results = []
    for i, one in enumerate(unpack_sequence(x)):
        own = None if state is None else tuple(t[:, i] for t in state) if isinstance(state, tuple) else state[:, i]
        results.append(_forward(module, path, watchers, one, own))
    out = pack_sequence([out for out, _ in results], enforce_sorted=False)
    if module.mode != "LSTM":
        return out, torch.stack([h for _, h in results], 1)
    return out, tuple(torch.stack(parts, 1) for parts in zip(*(last for _, last in results), strict=True))


def _initial(module: Any, x: Tensor, state: Any) -> list[tuple[Tensor, Tensor]]:
    count = module.num_layers * (2 if module.bidirectional else 1)
    zeros = x.new_zeros(count, len(x), module.hidden_size)
    h, c = (zeros, zeros) if state is None else state if isinstance(state, tuple) else (state, zeros)
    h, c = (t if t.dim() == 3 else t.unsqueeze(1) for t in (h, c))
    return list(zip(h, c, strict=True))


def _direction(
    module: Any, path: str, watchers: Watchers, suffix: str, x: Float[Tensor, "N T F"], state: tuple[Tensor, Tensor]
) -> tuple[Float[Tensor, "N T H"], tuple[Tensor, Tensor]]:
    def product(part: str, values: Tensor) -> Tensor:
        bias = getattr(module, f"bias_{part}_{suffix}", None)
        out = nnf.linear(values, getattr(module, f"weight_{part}_{suffix}"), bias)
        if part == "ih" and torch.is_grad_enabled() and not out.requires_grad:
            out = out.detach().requires_grad_()  # gradients start here where nothing below has any
        for watch in watchers.get(f"{path}.weight_{part}_{suffix}", ()):
            watch(values, out)
        return out

    given = product("ih", x)  # [N, T, G H]
    h, c = state
    outputs = [h] * x.shape[1]
    for t in reversed(range(x.shape[1])) if suffix.endswith("_reverse") else range(x.shape[1]):
        h, c = _cell(module.mode, given[:, t], product("hh", h), h, c)
        outputs[t] = h
    return torch.stack(outputs, 1), (h, c)


def _cell(mode: str, given: Tensor, again: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden state and cell from what the gates get from below and from before."""
    if mode == "LSTM":
        enter, forget, new, leave = (given + again).chunk(4, -1)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * c.tanh(), c
    if mode == "GRU":
        (reset, keep, new), (reset_too, keep_too, old) = given.chunk(3, -1), again.chunk(3, -1)
        candidate = (new + (reset + reset_too).sigmoid() * old).tanh()
        return candidate.lerp(h, (keep + keep_too).sigmoid()), c
    total = given + again
    return total.tanh() if mode == "RNN_TANH" else total.relu(), c
