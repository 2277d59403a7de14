"""What batch norms remember: images are moved towards it, and while a network is calibrated they forget it."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals import batch_norms
from dnge_compress.signals.batch_norms import matched, own_statistics
from dnge_compress.signals.calibration import calibration_inputs, synthesize

NAMES = {"resnet_basic": "pixel_values", "cnn": "", "cnn_residual": ""}


def images(rows: int = 24, size: int = 32) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(3))


def as_inputs(pixels: Tensor, named: str) -> Any:
    return {named: pixels} if named else pixels


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def read_by_norms(model: nn.Module, inputs: Any) -> list[tuple[Any, Tensor, Tensor]]:
    """Every batch norm with what it reads and what it writes."""
    found: list[tuple[Any, Tensor, Tensor]] = []
    hooks = [
        norm.register_forward_hook(lambda m, args, out: found.append((m, args[0].clone(), out.clone())))
        for norm in model.modules()
        if isinstance(norm, nn.BatchNorm2d)
    ]
    models.outputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return found


def distance(model: nn.Module, inputs: Any) -> float:
    """How far what the batch norms read is from what they have seen, in deviations and in nats."""
    found = 0.0
    for norm, read, _ in read_by_norms(model, inputs):
        mean, variance = read.mean((0, 2, 3)), read.var((0, 2, 3), unbiased=False)
        found += float(((mean - norm.running_mean).square() / norm.running_var).mean())
        found += float((variance / norm.running_var).log().square().mean())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_images_come_nearer_to_what_the_model_has_seen(name: str) -> None:
    model, before, named = models.make(name), images(), NAMES[name]
    given = before.clone()
    with torch.no_grad():  # as a compression calls it
        after = matched(model, before, named)
    assert after.shape == before.shape and after.dtype == before.dtype and not after.requires_grad
    assert torch.equal(before, given)
    assert distance(model, as_inputs(after, named)) < 0.7 * distance(model, as_inputs(before, named))
    assert torch.equal(after, matched(model, before, named))


def test_moving_images_leaves_the_model_as_it_was() -> None:
    model = models.make("resnet_basic").train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)

    def state() -> list[Any]:
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        return [*modules, *((p.requires_grad, p.grad is None) for p in model.parameters())]

    before, tensors = state(), {k: v.clone() for k, v in model.state_dict().items()}
    matched(model, images(), "pixel_values")
    assert state() == before
    assert all(torch.equal(tensors[k], v) for k, v in model.state_dict().items())


class Unused(nn.Module):
    """A conv beside a batch norm of which only the tensors are used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var)


@pytest.mark.parametrize(
    "model",
    [
        models.make("cnn_plain"),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        Unused(),
    ],
)
def test_without_batch_norms_that_remember_images_stay_as_they_are(model: nn.Module) -> None:
    given = images(4, 16)
    assert torch.equal(matched(model, given), given)


def test_many_images_are_moved_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norms, "AT_ONCE", 8)
    model, given = models.make("cnn"), images(20, 16)
    found = matched(model, given)
    parts = torch.cat([matched(model, given[at]) for at in (slice(0, 8), slice(8, 16), slice(16, 20))])
    assert torch.equal(found, parts)


@pytest.mark.parametrize("name", NAMES)
def test_calibration_images_are_those_that_were_moved(name: str) -> None:
    model, named = models.make(name), NAMES[name]
    example = None if named else models.example_inputs(name)
    settings = Calibration(tokens=256)
    painted, found = synthesize(model, settings, example), calibration_inputs(model, settings, example)

    def pixels(batches: list[Any]) -> Tensor:
        return torch.cat([b[named] if named else b[0] if isinstance(b, tuple) else b for b in batches])

    assert [type(b) for b in found] == [type(b) for b in painted] and len(found) == len(painted)
    before, after = (as_inputs(pixels(batches), named) for batches in (painted, found))
    assert distance(model, after) < 0.8 * distance(model, before)


def test_calibration_inputs_of_a_model_without_batch_norms_are_what_is_painted() -> None:
    model, settings = models.make("vit"), Calibration(tokens=64)
    painted, found = synthesize(model, settings), calibration_inputs(model, settings)
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(painted, found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_with_their_own_statistics_batch_norms_write_their_bias_and_gain(name: str) -> None:
    model, named = models.make(name), NAMES[name]
    batches = [as_inputs(part, named) for part in images().split(10)]
    before = buffers_of(model)
    with own_statistics(model, batches):
        found = read_by_norms(model, as_inputs(images(), named))
        for norm, _, out in found:
            torch.testing.assert_close(out.mean((0, 2, 3)), norm.bias.detach(), atol=2e-4, rtol=1e-3)
            variance = out.var((0, 2, 3), unbiased=False)
            torch.testing.assert_close(variance, norm.weight.detach().square(), atol=1e-4, rtol=1e-2)
    assert found
    after = buffers_of(model)
    assert all(torch.equal(before[n], after[n]) for n in before)


class InsideError(Exception):
    pass


@pytest.mark.parametrize("inputs", [images(4, 16), torch.zeros(4, 5, 16, 16)])
def test_an_exception_gives_the_statistics_back(inputs: Tensor) -> None:
    """One behind them, and one while they are taken, for images of five colours."""
    model = models.make("cnn")
    before, places = buffers_of(model), [b.data_ptr() for b in model.buffers()]
    with pytest.raises((InsideError, RuntimeError)), own_statistics(model, [inputs]):
        assert not all(torch.equal(before[n], b) for n, b in model.named_buffers())
        raise InsideError
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
    assert places == [b.data_ptr() for b in model.buffers()]
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_real_data_are_believed() -> None:
    model, example = models.make("cnn"), models.example_inputs("cnn")
    graph = models.graph_of("cnn", model)
    real = ScoringContext(graph=graph, model=model, data=(images(8, 16),))
    made = ScoringContext(graph=graph, model=model, calibration=Calibration(tokens=64), example_inputs=example)
    before = buffers_of(model)
    with real.calibrated():
        assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
    with made.calibrated():
        assert not any(torch.equal(before[n], b) for n, b in model.named_buffers() if n.endswith(("mean", "var")))
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
