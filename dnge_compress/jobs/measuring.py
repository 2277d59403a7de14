"""Loss on held-out rows, and speed: the same measures for the model before, between and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dnge_compress.jobs.data.rows import Examples
from dnge_compress.signals.inference import device_of, inference_mode_of

Batch = Mapping[str, Tensor]
Shape = tuple[Hashable, ...]
ROUNDS = (8, 64)  # of a measurement of speed, at least and at most
LEAST_SECONDS = 4.0  # that it takes, unless that were too many rounds
LEAST_NOISE = 0.01  # two runs of one program differ by as much


def summed_loss(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
    """Cross-entropy in nats, summed over the tokens that count (label ≥ 0), and how many those are."""
    total, count = 0.0, 0
    with torch.inference_mode(), inference_mode_of(model):
        for batch in batches:
            labels = batch["labels"][:, 1:].to(device_of(model))
            logits = logits_of(model, batch)[:, :-1].float()
            counts = labels >= 0
            total += float(nnf.cross_entropy(logits[counts], labels[counts], reduction="sum"))
            count += int(counts.sum())
    return total, count


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Logits `[rows, tokens, vocabulary]` of a batch, moved to the model's device."""
    device = device_of(model)
    inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
    return model(**inputs, use_cache=False).logits


def batches_of(rows: Examples, collate: Callable[[list[Any]], Batch], size: int) -> Iterable[Batch]:
    """Rows in order, `size` at a time."""
    for first in range(0, len(rows), size):
        yield collate([rows[i] for i in range(first, min(first + size, len(rows)))])


def shape_of(model: nn.Module) -> Shape:
    """What decides how fast a model is: its class, and names, shapes and types of its parameters."""
    return (type(model).__name__, *((name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of a forward pass; `speed_noise` is the share by which two measurements of it may differ."""

    tokens_per_second: float
    speed_noise: float


def speeds_of(models: Sequence[nn.Module], batch: Batch) -> list[Speed]:
    """Speeds of several models over one batch, in turn, so that whatever else the machine does meets all of them alike;
    the best of many rounds counts. The noise is how much longer the median round took, and the same for all."""
    rounds: list[list[float]] = [[_seconds(model, batch) for model in models]]  # the first warms up
    while len(rounds) <= ROUNDS[0] or (len(rounds) <= ROUNDS[1] and sum(map(sum, rounds)) < LEAST_SECONDS):
        order = [*enumerate(models)][:: 1 if len(rounds) % 2 else -1]
        rounds.append([seconds for _, seconds in sorted((i, _seconds(model, batch)) for i, model in order)])
    times = torch.tensor(rounds[1:], dtype=torch.float64)  # [rounds, models]
    best = times.amin(0)
    noise = max(LEAST_NOISE, float((times.median(0).values / best).max()) - 1)
    tokens = batch["input_ids"].numel()
    return [Speed(tokens_per_second=tokens / seconds, speed_noise=noise) for seconds in best.tolist()]


def _seconds(model: nn.Module, batch: Batch) -> float:
    with torch.inference_mode(), inference_mode_of(model):
        started = time.perf_counter()
        logits_of(model, batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started
