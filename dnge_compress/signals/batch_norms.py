"""What batch norms know of the data that a network was trained on: the mean and variance of every channel they read.

Synthetic images are moved until their own statistics are nearly those (as DeepInversion does from noise, Yin et al.
2020; from painted images a few steps suffice). What is left of the difference is taken out of each layer on its own:
while the network is calibrated, its batch norms divide by the statistics of the calibration images, so that behind
every one of them mean and variance are those of real data, which the checkpoint holds as its shift and gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.core.progress import Progress, silent
from dnge_compress.graph.layer_types import BATCH_NORMS
from dnge_compress.signals.inference import Inputs, call, first_examples, inference_mode_of
from dnge_compress.signals.joined import joined

STEPS = 8  # of Adam, on the pixels
RATE = 0.1
SMOOTHNESS = 0.05  # weight of the squared differences of neighbouring pixels
AT_ONCE, NUMBERS_AT_ONCE = 128, 2_500_000  # images, and their numbers: gradients of all layers are kept for them
MOST_POSITIONS = 200_000  # small patches, of which the statistics are measured
SMALLEST = 1e-8  # variance


def batch_norms(model: nn.Module) -> list[Any]:
    """The batch norms that hold statistics of what they read."""
    return [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]


def matched(model: nn.Module, images: Tensor, named: str = "", progress: Progress = silent) -> Tensor:
    """The images `[N, C, H, W]` after some steps towards what the model's batch norms have seen; as they are if none
    reads anything. `named` is the argument that takes them."""
    norms = batch_norms(model)
    if not norms:
        return images
    step = max(1, min(AT_ONCE, NUMBERS_AT_ONCE // images[0].numel()))
    parts, found = images.split(step), []
    for i, part in enumerate(parts):
        progress("match images", i, len(parts))
        found.append(_matched(model, norms, part, named))
    progress("match images", len(parts), len(parts))
    return torch.cat(found)


def _matched(model: nn.Module, norms: Sequence[Any], images: Tensor, named: str) -> Tensor:
    pixels = images.detach().float().clone().requires_grad_()
    optimiser = torch.optim.Adam([pixels], RATE)
    distances: list[Tensor] = []
    with torch.enable_grad(), inference_mode_of(model), _told(norms, lambda m, x: distances.append(_distance(m, x))):
        for _ in range(STEPS):
            distances.clear()
            given = pixels.to(images.dtype)
            call(model, {named: given} if named else given)
            if not distances:
                return images
            rough = sum((pixels.diff(dim=axis).square().mean() for axis in (-1, -2)), torch.zeros(()))
            (torch.stack(distances).mean() + SMOOTHNESS * rough).backward()
            optimiser.step()
            optimiser.zero_grad()
    return pixels.detach().to(images.dtype)


def distance(model: nn.Module, batches: Sequence[Inputs]) -> float:
    """How far what the batch norms read of these inputs is from what they have seen; 0 without batch norms."""
    norms = batch_norms(model)
    if not norms:
        return 0.0
    found: list[Tensor] = []
    with torch.no_grad(), inference_mode_of(model), _told(norms, lambda m, x: found.append(_distance(m, x))):
        call(model, joined(first_examples(batches, AT_ONCE)))
    return float(torch.stack(found).mean()) if found else 0.0


def _distance(norm: Any, read: Tensor) -> Tensor:
    """How far mean and variance of the channels are from the running ones, in units of the latter."""
    (mean, variance), usual = _statistics(read.float()), norm.running_var.float().clamp_min(SMALLEST)
    off = (mean - norm.running_mean.float()).square() / usual
    ratio = (variance / usual).clamp_min(SMALLEST)
    return off.mean() + ratio.log().square().mean()


@contextmanager
def own_statistics(model: nn.Module, batches: Sequence[Inputs] | None) -> Iterator[None]:
    """While entered, the model's batch norms divide by the statistics of these inputs instead of the running ones."""
    norms = batch_norms(model) if batches else []
    before = [(n, n.running_mean.clone(), n.running_var.clone()) for n in norms]
    try:
        if norms and batches:
            _measure(model, norms, joined(batches, MOST_POSITIONS))
        yield
    finally:
        for norm, mean, variance in before:
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _measure(model: nn.Module, norms: Sequence[Any], batch: Inputs) -> None:
    """Replace running statistics by those of one batch; each layer already reads what the new ones before it give."""

    def replace(norm: Any, read: Tensor) -> None:
        mean, variance = _statistics(read)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    with torch.no_grad(), inference_mode_of(model), _told(norms, replace):
        call(model, batch)


def _statistics(read: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel."""
    axes = [0, *range(2, read.dim())]
    return read.mean(axes), read.var(axes, unbiased=False)


@contextmanager
def _told(norms: Sequence[Any], listener: Callable[[Any, Tensor], None]) -> Iterator[None]:
    """While entered, a listener is told of every batch norm and what it is about to read."""
    with ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_pre_hook(lambda m, args: listener(m, args[0])))
        yield
