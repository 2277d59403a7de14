"""Loss on held-out rows, and speed: the same measures for the model before, between and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.data.rows import Examples
from dnge_compress.jobs.report.measures import Milestone
from dnge_compress.report.speeds import seconds_of
from dnge_compress.signals.divergence import next_token_nats
from dnge_compress.signals.inference import device_of, inference_mode_of

Batch = Mapping[str, Tensor]


def summed_loss(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[Tensor, Batch], tuple[float, int]] | None = None
) -> tuple[float, int]:
    """A loss in nats, summed over the tokens that count (label ≥ 0), and how many those are: cross-entropy, or what
    `loss` gives of the logits of a batch and the batch."""
    total, count = 0.0, 0
    with torch.inference_mode(), inference_mode_of(model):
        for batch in batches:
            here = {k: v.to(device_of(model)) for k, v in batch.items()}
            logits = logits_of(model, here)
            nats, counted = next_token_nats(logits, here["labels"]) if loss is None else loss(logits, here)
            total += nats
            count += counted
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


def milestone_of(name: str, model: nn.Module, loss: float | None) -> Milestone:
    """A model's size beside its loss in nats per token, which may be unknown."""
    parameters = list(model.parameters())
    return Milestone(
        name=name,
        params=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        loss=loss,
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of a forward pass; `speed_noise` is the share by which two measurements of it may differ."""

    tokens_per_second: float
    speed_noise: float


def speeds_of(models: Sequence[nn.Module], batch: Batch) -> list[Speed]:
    """Speeds of several models over one batch."""
    seconds, noise = seconds_of(models, batch)
    return [Speed(tokens_per_second=batch["input_ids"].numel() / s, speed_noise=noise) for s in seconds]
