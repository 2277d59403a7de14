"""Networks that once went wrong silently: norms that are not right behind a conv, branches, other layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dnge_compress import compress
from dnge_compress.graph.families import build_graph
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.consumers import shift_of
from dnge_compress.signals.moments import gather_signals
from dnge_compress.signals.work import macs_per_element


def seeded(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("between", "expected"), [((), "1.running_mean"), ((nn.ReLU(),), None), ((nn.ReLU(True),), None)]
)
def test_a_batch_norm_takes_up_a_shift_only_right_behind_the_conv(between: tuple, expected: str | None) -> None:
    norm = nn.BatchNorm2d(6)
    first = seeded(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3, bias=False), *between, norm, nn.ReLU())
    model = nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    graph = build_graph(model, torch.randn(2, 3, 12, 12))
    slot = next(s for s in graph.slots if s.param == "0.2.weight" and graph.consumes(s))
    found = shift_of(graph, slot)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found[0].endswith("running_mean") and found[1] == -1


class TwoTowers(nn.Module):
    """Two branches that share nothing but their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a = seeded(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
        self.b = seeded(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(-x)


def test_every_branch_gets_gradients() -> None:
    model = TwoTowers().eval()
    graph = build_graph(model, torch.randn(2, 6))
    signals = gather_signals(model, graph, synthesize(model, Calibration(tokens=256), torch.randn(2, 6)))
    assert len(signals) == 2
    assert all(float(s.out_fisher.min()) > 0 for name in signals for s in signals[name])


class ChannelsLast(nn.Module):
    """A linear feed-forward layer on images laid out [N, H, W, C], as ConvNeXt's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.up, self.down, self.head = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head((x + self.down(torch.relu(self.up(x)))).mean((1, 2)))


def conv1d() -> nn.Sequential:
    convs = (nn.Conv1d(3, 12, 3), nn.ReLU(), nn.Conv1d(12, 16, 3), nn.ReLU())
    return seeded(*convs, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5))


def conv3d() -> nn.Sequential:
    convs = (
        nn.Conv3d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(8, 10, (1, 3, 2), stride=(2, 1, 1), dilation=(1, 2, 1)),
    )
    return seeded(*convs, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(10, 5))


def grouped() -> nn.Sequential:
    convs = (nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3, groups=2), nn.ReLU())
    return seeded(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def transposed() -> nn.Sequential:
    first = (nn.ConvTranspose2d(3, 12, 4, 2, 1), nn.ReLU())
    return seeded(*first, nn.ConvTranspose2d(12, 10, 3), nn.ReLU(), nn.Conv2d(10, 2, 1))


class Recurrent(nn.Module):
    """Two levels, whose hidden units are read by themselves, by those above and by a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(6, 16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (conv1d, (4, 3, 20)),
        (conv3d, (4, 2, 5, 9, 6)),
        (ChannelsLast, (4, 3, 8, 8)),
        (grouped, (4, 3, 12, 12)),
        (transposed, (4, 3, 6, 6)),
        (Recurrent, (4, 9, 6)),
    ],
)
@torch.no_grad()
def test_other_layouts_are_compressed_and_repaired(make: Callable[[], nn.Module], shape: tuple) -> None:
    model, example = make().eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    dense = model(example)
    errors = {}
    for repair in ("none", "lstsq"):
        small = compress(model, ratio=0.2, example_inputs=example, tokens=1024, compensate=repair, scorer="obs")
        errors[repair] = float((small(example) - dense).norm() / dense.norm())
    assert errors["lstsq"] <= errors["none"]


def test_moments_with_a_mean_far_above_the_deviation_still_factor() -> None:
    from dnge_compress.signals.obs import factor

    x = 1e3 + torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    gram, mean = x.T @ x / 500, x.mean(0)
    moments = gram - torch.outer(mean, mean)
    moments.diagonal().add_(1e-3)
    assert torch.isfinite(factor(moments)).all()


@torch.no_grad()
def test_each_group_of_a_conv_is_a_consumer_of_its_own() -> None:
    model, example = grouped(), torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    signals = gather_signals(model, build_graph(model, example), [example])["0"]
    inputs, conv = model[1](model[0](example)), model[2]
    outputs = conv(inputs).transpose(0, 1).flatten(1).mean(1) - conv.bias
    assert [s.rows for s in signals] == [slice(0, 8), slice(8, 16)]
    for s in signals:
        assert torch.allclose(s.weight @ s.mean, outputs[s.rows], atol=1e-5)


@torch.no_grad()
def test_a_transposed_conv_is_its_products_before_they_are_summed_up() -> None:
    model, example = transposed(), torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    (signal,) = gather_signals(model, build_graph(model, example), [example])["0"]
    conv, inputs = model[2], model[1](model[0](example))
    products = torch.einsum("nchw,cdkl->dkl", inputs, conv.weight) / (len(inputs) * inputs[0, 0].numel())
    assert torch.allclose(signal.weight @ signal.mean, products.flatten(), atol=1e-5)


def test_work_is_counted_where_weights_are_multiplied() -> None:
    example = torch.randn(4, 3, 5, 5)
    work = macs_per_element(transposed(), build_graph(transposed(), example), example)
    assert work == {"0.weight": 5 * 5, "2.weight": 10 * 10, "4.weight": 12 * 12}
    steps = torch.randn(4, 9, 6)
    work = macs_per_element(Recurrent(), build_graph(Recurrent(), steps), steps)
    assert work["rnn.weight_hh_l1"] == work["rnn.weight_ih_l0"] == work["head.weight"] == 9


@torch.no_grad()
def test_an_lstm_reads_its_own_states_of_the_moment_before() -> None:
    model, example = Recurrent().eval(), torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0))
    signals = gather_signals(model, build_graph(model, example), [example])
    states = model.rnn(example)[0]
    before = torch.cat([torch.zeros(4, 1, 16), states[:, :-1]], 1)
    found = {s.slot.param: s.mean for s in signals["rnn.ih_l1"]}
    assert torch.allclose(found["rnn.weight_hh_l1"], before.mean((0, 1)), atol=1e-5)
    assert torch.allclose(found["head.weight"], states.mean((0, 1)), atol=1e-5)
    assert all(float(s.out_fisher.min()) > 0 for own in signals.values() for s in own)


@pytest.mark.parametrize(("make", "shape"), [(conv1d, (4, 3, 20)), (conv3d, (4, 2, 5, 9, 6))])
@torch.no_grad()
def test_a_conv_is_its_weight_times_the_rows_that_are_recorded(make: Callable[[], nn.Module], shape: tuple) -> None:
    model, example = make().eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    graph = build_graph(model, example)
    conv, inputs = model[2], model[1](model[0](example))
    found = [s for signals in gather_signals(model, graph, [example]).values() for s in signals]
    signal = next(s for s in found if s.slot.param == "2.weight")
    outputs = conv(inputs).transpose(0, 1).flatten(1)  # [D, positions]
    expected = outputs.mean(1) - conv.bias
    assert torch.allclose(signal.weight @ signal.mean, expected, atol=1e-5)
