"""How long models take for the same inputs, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from dnge_compress.signals.inference import call, device_of, inference_mode_of, to_device

Shape: TypeAlias = tuple[Hashable, ...]
ROUNDS = (8, 64)  # of a measurement, at least and at most
LEAST_SECONDS = 4.0  # that it takes, unless that were too many rounds
LEAST_NOISE = 0.01  # two runs of one program differ by as much


def shape_of(model: nn.Module) -> Shape:
    """What decides how fast a model is: its class, and names, shapes and types of its parameters."""
    return (type(model).__name__, *((name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()))


def seconds_of(
    models: Sequence[nn.Module], batch: Any, least_seconds: float = LEAST_SECONDS
) -> tuple[list[float], float]:
    """Seconds of a forward pass of each model over one batch, and the noise: the share by which two measurements of one
    may differ.

    They run in turn, so that whatever else the machine does meets all of them alike; the best of many rounds counts.
    The noise is how much longer the median round took, and the same for all.
    """
    rounds: list[list[float]] = [[_seconds(model, batch) for model in models]]  # the first warms up
    while len(rounds) <= ROUNDS[0] or (len(rounds) <= ROUNDS[1] and sum(map(sum, rounds)) < least_seconds):
        order = [*enumerate(models)][:: 1 if len(rounds) % 2 else -1]
        rounds.append([seconds for _, seconds in sorted((i, _seconds(model, batch)) for i, model in order)])
    times = torch.tensor(rounds[1:], dtype=torch.float64)  # [rounds, models]
    best = times.amin(0)
    noise = max(LEAST_NOISE, float((times.median(0).values / best).max()) - 1)
    return best.tolist(), noise


def _seconds(model: nn.Module, batch: Any) -> float:
    inputs = to_device(batch, device_of(model))
    with torch.inference_mode(), inference_mode_of(model):
        started = time.perf_counter()
        call(model, inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started
