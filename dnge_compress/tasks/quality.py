"""How good a model's answers are on inputs that it wasn't calibrated on, and how far two models' answers are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dnge_compress.signals.divergence import are_scores, attended, attended_outputs, divergence, next_token_nats
from dnge_compress.signals.inference import (
    Inputs,
    call,
    device_of,
    has_logits,
    inference_mode_of,
    to_device,
    writes_text,
)
from dnge_compress.signals.pieces import answered_in_pieces

PERPLEXITY, ACCURACY = "perplexity", "accuracy"


def measure_of(model: nn.Module, batches: Sequence[Inputs]) -> str:
    """What can be measured of a model on some inputs: "perplexity" of a causal language model, "accuracy" of a
    classifier whose inputs hold `labels`; "" for others, which can only be compared."""
    if writes_text(model):
        return PERPLEXITY
    return ACCURACY if all(_labels_of(batch) is not None for batch in batches) else ""


def quality_of(model: nn.Module, batches: Sequence[Inputs]) -> float | None:
    """The measure of a model on some inputs; None where there is none."""
    measure = measure_of(model, batches)
    if not measure:
        return None
    counted = _Counted()
    with torch.no_grad(), inference_mode_of(model):
        for batch in answered_in_pieces(model, batches):
            counted.add(measure, call(model, batch), batch)
    return counted.value(measure)


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How two models' answers differ: `agreement`, the share of answers (tokens, classes) that are the same, or the
    mean cosine where answers are no scores; and `damage`, the divergence of the second from the first in nats per
    label."""

    qualities: tuple[float | None, float | None]
    agreement: float
    is_cosine: bool
    damage: float


def apart(first: nn.Module, second: nn.Module, batches: Sequence[Inputs]) -> Apart:
    """Both models' measure, and how far the second's answers are from the first's. Both see every input once."""
    measure, logits = measure_of(first, batches), has_logits(first)
    counts, agreed, damage, positions, is_cosine = (_Counted(), _Counted()), 0.0, 0.0, 0, False
    with torch.no_grad(), inference_mode_of(first), inference_mode_of(second):
        for batch in answered_in_pieces(first, batches):
            outputs = [call(model, to_device(batch, device_of(model))) for model in (first, second)]
            if measure:
                for counted, output in zip(counts, outputs, strict=True):
                    counted.add(measure, output, to_device(batch, output.device))
            one, other = (attended_outputs(output.to(outputs[0].device), attended(batch)).float() for output in outputs)
            is_cosine = not are_scores(one, logits)
            same = (
                nnf.cosine_similarity(one, other, dim=-1) if is_cosine else (one.argmax(-1) == other.argmax(-1)).float()
            )
            agreed += float(same.double().sum())
            damage += same.numel() * float(divergence(other, one, logits))
            positions += same.numel()
    known = tuple(c.value(measure) if measure else None for c in counts)
    return Apart(
        qualities=(known[0], known[1]), agreement=agreed / positions, is_cosine=is_cosine, damage=damage / positions
    )


class _Counted:
    """Sums over what was answered."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, measure: str, output: Tensor, batch: Inputs) -> None:
        """Count one batch's answers."""
        if measure == ACCURACY:
            labels = _labels_of(batch)
            assert labels is not None
            self.total += float((output.argmax(-1) == labels).sum())
            self.count += labels.numel()
            return
        assert isinstance(batch, Mapping)
        ids, mask = batch["input_ids"], attended(batch)
        labels = ids if mask is None else ids.masked_fill(~mask, -100)
        total, count = next_token_nats(output, labels)
        self.total += total
        self.count += count

    def value(self, measure: str) -> float:
        """The mean, as perplexity or accuracy."""
        mean = self.total / self.count if self.count else math.nan
        return mean if measure == ACCURACY else math.exp(min(mean, 700.0))


def _labels_of(batch: Any) -> Tensor | None:
    """One class for each input, if a batch names them."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return labels if labels is not None and labels.dim() == 1 and not labels.is_floating_point() else None
