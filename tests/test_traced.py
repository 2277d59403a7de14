"""Tracing: which spaces it finds, which it refuses to cut, and that it leaves the model alone."""

from __future__ import annotations

import contextlib
import copy
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from dnge_compress.core import deadline as watchdog
from dnge_compress.core.deadline import deadline
from dnge_compress.core.errors import DataError, UnsupportedModelError
from dnge_compress.graph.families import build_graph, traced
from dnge_compress.graph.tracing import heads
from dnge_compress.graph.types import ModelGraph

LATE = UnsupportedModelError("too late")


class Net(nn.Module):
    """Given modules under given names, wired by a function."""

    def __init__(self, wiring: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.wiring = wiring
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        """Whatever the wiring says."""
        return self.wiring(self, x)


def conv(src: int, dst: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(src, dst, 3, padding=1, **options)


def read(graph: ModelGraph) -> dict[str, int]:
    return {s.name: s.units for s in graph.of_kind("neuron", "channel")}


def trace(net: nn.Module, inputs: Any = None) -> ModelGraph:
    return traced.build(net, models.pixels(8) if inputs is None else inputs, timeout_s=20)


def slots(graph: ModelGraph, space: str) -> set[tuple[str, int, int, int]]:
    return {(s.param, s.axis, s.width, s.offset) for s in graph.slots_of(space)}


def test_a_plain_module_is_traced_when_inputs_are_given() -> None:
    graph = build_graph(models.make("mlp"), models.example_inputs("mlp"))
    assert graph.family == "traced"
    assert read(graph) == {"0": 13, "2": 11}
    assert graph.space("4").kind == "fixed"
    assert graph.space("0:in").kind == "fixed"


def test_steps_follow_execution_and_carry_the_activation() -> None:
    steps = trace(models.make("cnn_residual")).steps
    assert [s.params[0] for s in steps] == [
        *("stem.weight", "stem_bn.weight", "conv1.weight", "bn1.weight", "conv2.weight", "bn2.weight"),
        *("expand.weight", "depthwise.weight", "shrink.weight", "head.weight"),
    ]
    assert [s.op for s in steps] == [*("conv", "batchnorm") * 3, "conv", "norm", "conv", "linear"]
    assert [s.activation for s in steps if s.activation] == ["relu"]
    assert steps[2].activation == "relu"  # through the batch norm; the functional ones can't be seen


def test_a_depthwise_conv_belongs_to_its_channels_and_does_not_read_them() -> None:
    graph = trace(models.make("cnn_residual"))
    assert ("depthwise.weight", 0, 1, 0) in slots(graph, "expand")
    assert [s.param for s in graph.consumers("expand")] == ["shrink.weight"]


def test_a_flattened_image_gives_every_channel_a_run_of_columns() -> None:
    graph = build_graph(models.make("cnn_plain"), models.example_inputs("cnn_plain"))
    assert ("6.weight", 1, 16, 0) in slots(graph, "3")


def test_a_concatenation_is_one_slot_for_each_source() -> None:
    net = Net(
        lambda s, x: s.c(nnf.relu(s.bn(torch.cat([s.a(x), s.b(x)], 1)))).mean((2, 3)),
        a=conv(3, 8),
        b=conv(3, 6),
        bn=nn.BatchNorm2d(14),
        c=conv(14, 5),
    )
    graph = trace(net)
    assert read(graph) == {"a": 8, "b": 6}
    assert {("c.weight", 1, 1, 8), ("bn.running_var", 0, 1, 8)} <= slots(graph, "b")


def test_the_halves_of_a_gated_layer_are_one_space() -> None:
    net = Net(lambda s, x: s.b(torch.mul(*s.a(x).tanh().chunk(2, -1))), a=nn.Linear(7, 20), b=nn.Linear(10, 4))
    graph = trace(net, torch.randn(5, 7))
    assert read(graph) == {"a": 10}
    assert {("a.weight", 0, 1, 0), ("a.weight", 0, 1, 10), ("b.weight", 1, 1, 0)} <= slots(graph, "a")


def between(middle: Callable[..., Any], width: int = 8, **parts: nn.Module | nn.Parameter) -> Net:
    """Two convs and something between them that no cut of channels can pass."""
    parts = {"a": conv(3, 8), "b": conv(width, 6), **parts}
    return Net(lambda s, x: s.b(middle(s, s.a(x), x)).mean((2, 3)), **parts)


def before_linear(flatten: Callable[[Tensor], Tensor]) -> Net:
    """A conv whose 8 x 8 positions are flattened for a linear layer."""
    return Net(lambda s, x: s.b(flatten(s.a(x))), a=conv(3, 8), b=nn.Linear(512, 6))


UNCUTTABLE: dict[str, Net] = {
    "channel shuffle": between(lambda s, y, x: nnf.channel_shuffle(y, 2)),
    "pixel shuffle": between(lambda s, y, x: nnf.pixel_shuffle(y, 2), width=2),
    "a conv that makes one of two channels": between(lambda s, y, x: s.g(y), width=4, g=conv(8, 4, groups=4)),
    "a group norm over all channels": between(lambda s, y, x: s.n(y), n=nn.GroupNorm(1, 8)),
    "a mean over channels": between(lambda s, y, x: y - y.mean(1, keepdim=True)),
    "inputs in a concatenation": between(lambda s, y, x: torch.cat([x, y], 1), width=11),
    "inputs in a sum": between(lambda s, y, x: y + x, width=3, a=conv(3, 3)),
    "a loose parameter": between(lambda s, y, x: y * s.gain, gain=nn.Parameter(torch.ones(8, 1, 1))),
    "a module used twice": between(lambda s, y, x: s.t(s.t(y)), t=conv(8, 8)),
    "a computed weight": between(lambda s, y, x: y, a=nn.utils.parametrizations.weight_norm(conv(3, 8))),
    "channels-last flatten": before_linear(lambda y: y.permute(0, 2, 3, 1).flatten(1)),
    "a size written into the code": before_linear(lambda y: y.view(-1, 512)),
    "outputs only": Net(lambda s, x: s.a(x), a=conv(3, 8)),
    "an inner layer that is also returned": Net(lambda s, x: (s.a(x), s.b(s.a(x))), a=conv(3, 8), b=conv(8, 6)),
    "an inner layer that is returned on the way": Net(
        lambda s, x: (lambda y: {"features": y, "logits": s.b(y)})(s.a(x).relu()), a=conv(3, 8), b=conv(8, 6)
    ),
}


@pytest.mark.parametrize("what", UNCUTTABLE)
def test_what_cannot_be_cut_is_refused_where_nothing_else_is_left(what: str) -> None:
    with pytest.raises(UnsupportedModelError, match="Net has nothing to prune"):
        trace(UNCUTTABLE[what])


@pytest.mark.parametrize("what", UNCUTTABLE)
def test_what_cannot_be_cut_stays_fixed_beside_what_can(what: str) -> None:
    net = Net(
        lambda s, x: (s.hard(x), s.out(s.inner(x).relu())), hard=UNCUTTABLE[what], inner=conv(3, 9), out=conv(9, 2)
    )
    assert read(trace(net)) == {"inner": 9}


def test_attention_is_cut_by_whole_heads() -> None:
    model = models.make("vit")
    graph = traced.build(model, models.example_inputs("vit"))
    assert read(graph) == {"vit.layers.0.mlp.fc1": 28, "vit.layers.1.mlp.fc1": 28}
    heads = {s.name: s.units for s in graph.of_kind("head")}
    assert heads == {"vit.layers.0.attention.q_proj": 3, "vit.layers.1.attention.q_proj": 3}
    assert ("vit.layers.1.attention.v_proj.weight", 0, 8, 0) in slots(graph, "vit.layers.1.attention.q_proj")
    assert graph.of_kind("residual")[0].units == 24


def test_the_model_stays_as_it_was() -> None:
    model = models.make("cnn_residual").train()
    model.stem.weight.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        trace(model)
    assert model.training
    assert not model.stem.weight.requires_grad
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_parameters_that_no_input_reaches_are_left_alone() -> None:
    net = Net(lambda s, x: s.b(s.a(x)), a=conv(3, 8), b=conv(8, 2), spare=nn.Linear(3, 3))
    graph = trace(net)
    assert read(graph) == {"a": 8}
    assert not any(s.param.startswith("spare") for s in graph.slots)


def test_zero_weights_and_half_precision_do_not_hide_the_structure() -> None:
    net = nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 4)).half()
    for p in net.parameters():
        nn.init.zeros_(p)
    assert read(trace(net, torch.zeros(5, 7).half())) == {"0": 12}


@pytest.mark.parametrize("wrap", [tuple, list, lambda pair: dict(zip("ab", pair, strict=True))])
def test_inputs_may_be_a_tuple_a_list_or_a_dict(wrap: Callable[[Any], Any]) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(7, 12), nn.Linear(12, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.down(self.up(a + b).relu())

    assert read(trace(Sum(), wrap((torch.randn(5, 7), torch.randn(5, 7))))) == {"up": 12}


def test_inputs_that_do_not_fit_are_a_data_error() -> None:
    with pytest.raises(DataError, match="Sequential can't be called with these example_inputs"):
        trace(models.make("mlp"), torch.randn(5, 8))


def test_a_model_on_the_meta_device_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="meta device"):
        trace(models.make("mlp").to("meta"))


def test_an_endless_trace_ends_and_names_the_model_on_any_thread() -> None:
    """This one makes torch-pruning 1.6.1 loop for ever."""
    net = Net(
        lambda s, x: s.c(torch.cat([s.a(x).flatten(1), s.b(x).flatten(1)], 1)),
        a=conv(3, 8),
        b=conv(3, 5),
        c=nn.Linear(13 * 64, 4),
    )
    errors = []

    def attempt() -> None:
        try:
            traced.build(net, models.pixels(8), timeout_s=0.5)
        except UnsupportedModelError as e:
            errors.append(str(e))

    thread = threading.Thread(target=attempt, daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(10)
    attempt()
    assert time.monotonic() - start < 10
    assert len(errors) == 2
    assert "tracing Net did not end within 0.5 s" in errors[0]
    assert "family file" in errors[0]


def test_a_deadline_that_is_kept_changes_nothing() -> None:
    with deadline(5, LATE):
        value = sum(range(10))
    assert value == 45


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the system tells no thread's time")
def test_waiting_takes_no_time_from_a_deadline() -> None:
    with deadline(0.2, LATE):
        time.sleep(0.6)


def test_a_thread_that_waits_near_its_deadline_is_not_watched_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(watchdog, "_clock_of", lambda thread: lambda: float(looks.append(thread) or 0))
    with deadline(1e-6, LATE):
        time.sleep(0.3)
    assert len(looks) < 200


def test_a_deadline_ends_a_loop_whose_finalisers_swallow_what_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in a finaliser is lost, and most of this loop is one."""
    lost: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lost.append)

    class Slow:
        def __del__(self) -> None:
            sum(i for i in range(400))

    with pytest.raises(UnsupportedModelError, match="too late"), deadline(0.2, LATE):
        while True:
            Slow()
            sum(i for i in range(100))


def test_a_deadline_leaves_nothing_behind_however_near_the_end_it_comes() -> None:
    for i in range(40):
        with contextlib.suppress(UnsupportedModelError), deadline(0.02, LATE):
            until = time.monotonic() + 0.015 + 0.0005 * i
            while time.monotonic() < until:
                pass
        sum(range(100_000))  # would meet what came too late


def test_a_deadline_ends_under_a_profiler(tmp_path: Path) -> None:
    """Python 3.11 looks for ever for an exception that is taken back."""
    script = tmp_path / "script.py"
    script.write_text(
        "from dnge_compress.core.deadline import deadline\n"
        "from dnge_compress.core.errors import DataError\n"
        "with deadline(20, DataError('too late')):\n    sum(range(10))\n"
        "try:\n    with deadline(0.1, DataError('too late')):\n        while True:\n            pass\n"
        "except DataError as e:\n    print(e)\n"
    )
    command = [sys.executable, "-m", "cProfile", "-o", str(tmp_path / "profile"), str(script)]
    assert subprocess.check_output(command, text=True, timeout=120) == "too late\n"


class Silenced(nn.Module):
    """What the branch computes is multiplied by nothing: no cut of it can be proved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 9), nn.Linear(6, 10), nn.Linear(9, 4)
        self.other = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu()) + 0.0 * self.other(self.second(x).relu())


def test_a_mask_that_changes_nothing_proves_nothing() -> None:
    graph = build_graph(Silenced(), torch.randn(5, 6))
    assert [s.name for s in graph.of_kind("neuron")] == ["first"]


def test_what_a_call_left_on_a_module_does_not_keep_it_from_being_traced() -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    net.left = net[0](torch.randn(5, 6))  # with a history, which can't be copied
    assert [s.units for s in build_graph(net, torch.randn(5, 6)).of_kind("neuron")] == [9]


def test_which_heads_are_proved_depends_on_how_many_are_tried_and_not_on_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "LEAST_TRIED", 0)
    monkeypatch.setattr(heads, "NUMBERS_TRIED", 0)
    net, inputs = models.make("vit"), models.example_inputs("vit")
    assert not traced.build(net, inputs).of_kind("head")
    monkeypatch.undo()
    found = traced.build(net, inputs).of_kind("head")
    hours = itertools.count(0, 3600)
    for clock in ("time", "monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, clock, lambda: float(next(hours)))
    assert found and traced.build(net, inputs).of_kind("head") == found
