"""Recurrent modules while they are watched: they compute what torch's own kernels do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from dnge_compress.signals.recurrence import recurrences_watched

KINDS = {
    "lstm": nn.LSTM(5, 7, 2),
    "gru": nn.GRU(5, 7, 2, batch_first=True),
    "tanh": nn.RNN(5, 7),
    "relu": nn.RNN(5, 7, nonlinearity="relu", bias=False),
    "both ways": nn.LSTM(5, 7, 2, batch_first=True, bidirectional=True),
}


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, PackedSequence):
        return [output.data]
    return [output] if isinstance(output, Tensor) else [t for part in output for t in tensors(part)]


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def state(module: nn.RNNBase, *rows: int) -> Any:
    h, c = (
        inputs(module.num_layers * (1 + module.bidirectional), *rows, 7),
        -inputs(4, *rows, 7)[: module.num_layers * 2],
    )
    return (h, c[: len(h)]) if module.mode == "LSTM" else h


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["batch", "one", "packed", "states"])
@torch.no_grad()
def test_a_watched_module_computes_what_torch_does(kind: str, given: str) -> None:
    net = nn.Sequential(KINDS[kind])
    module = KINDS[kind]
    x: Any = {"one": inputs(6, 5), "packed": pack_sequence([inputs(n, 5) for n in (6, 4, 1)])}.get(
        given, inputs(3, 6, 5)
    )
    first = state(module, 3 if module.batch_first else 6) if given == "states" else None
    expected = tensors(module(x, first))
    heard: list[tuple[Tensor, Tensor]] = []
    with recurrences_watched(net, {"0.weight_hh_l0": [lambda values, out: heard.append((values, out))]}):
        actual = tensors(module(x, first))
    assert len(expected) == len(actual)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, actual, strict=True))
    assert heard and all(values.shape[-1] == 7 and len(out) == len(values) for values, out in heard)
    assert "forward" not in vars(module)


@torch.no_grad()
def test_a_forward_that_was_put_on_the_module_itself_comes_back() -> None:
    module = nn.LSTM(5, 7)
    forward = module.forward = lambda *args: nn.LSTM.forward(module, *args)
    with recurrences_watched(nn.Sequential(module), {"0.weight_hh_l0": [lambda values, out: None]}):
        assert module.forward is not forward
    assert module.forward is forward
