"""A model's answers on some inputs, and how far others' answers are from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.core.paging import Shelf
from dnge_compress.core.processes import own_share, summed
from dnge_compress.signals.divergence import are_scores, attended, divergences, outputs_of
from dnge_compress.signals.inference import Inputs, examples_in, has_logits, inference_mode_of
from dnge_compress.signals.pieces import answered_in_pieces


@dataclass(frozen=True, order=True)
class Damage:
    """A mean divergence in nats per label, how far it would be off on other examples (the standard error), and on how
    many it was measured. Infinite where it is no number."""

    nats: float
    error: float = 0.0
    examples: int = 0


class Comparison:
    """Inputs with the whole model's answers, of which each process has its share. Answers over a large vocabulary lie
    in files, and come in pieces."""

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        shelf = Shelf("answers on calibration inputs")
        self.batches = [batch for _, batch in own_share(answered_in_pieces(model, batches))]
        self.logits = has_logits(model)
        with torch.no_grad(), inference_mode_of(model):
            self.answers = [shelf.keep(outputs_of(model, batch)) for batch in self.batches]
        self.spread = _Spread.of([answer for answer in self.answers if not are_scores(answer, self.logits)])

    def damage(self, model: nn.Module) -> Damage:
        """Mean divergence of another model's answers."""
        with torch.no_grad():
            found = [
                part for pair in zip(self.batches, self.answers, strict=True) for part in self._parts(model, *pair)
            ]
        each = torch.tensor(found, dtype=torch.float64).view(-1, 2)
        total, labels = summed(each.sum(0)).tolist()
        nats = total / labels
        if not math.isfinite(nats):
            return Damage(math.inf)
        # Of a ratio, both parts of which differ between examples.
        off = each[:, 0] - nats * each[:, 1]
        square, examples = summed(torch.stack([off.square().sum(), torch.tensor(len(each), dtype=off.dtype)])).tolist()
        error = math.sqrt(square * examples / max(1, examples - 1)) / labels
        return Damage(max(nats, 0.0), error, int(examples))  # rounding may leave less than nothing

    def _parts(self, model: nn.Module, batch: Inputs, answer: Tensor) -> Iterator[tuple[float, float]]:
        """The summed divergence of each example, and what it is divided by: the number of its labels, or as many times
        its own share of the variance."""
        found = divergences(outputs_of(model, batch), answer, self.logits, self.spread.variance)
        weights = torch.ones_like(found) if are_scores(answer, self.logits) else self.spread.shares(answer)
        examples, mask = examples_in(batch), attended(batch)
        if mask is not None and int(mask.sum()) == len(found):
            labels = mask.sum(1).tolist()
        else:  # where nothing tells whose they are, a batch counts as one
            labels = [len(found) // examples] * examples if len(found) % examples == 0 else [len(found)]
        sums = (part.double().cpu().split(labels) for part in (found, weights))
        return ((float(nats.sum()), float(share.sum())) for nats, share in zip(*sums, strict=True))


@dataclass(frozen=True)
class _Spread:
    """Mean and variance of all numbers in answers that are no scores: of a few they would be a matter of chance."""

    mean: Float[Tensor, ""]
    variance: Float[Tensor, ""]

    @classmethod
    def of(cls, answers: Sequence[Tensor]) -> _Spread:
        """Of the answers of all processes."""
        sums = torch.zeros(3, dtype=torch.float64)
        for answer in answers:
            values = answer.float()
            found = [values.numel(), float(values.sum()), float(values.square().sum())]
            sums += torch.tensor(found, dtype=torch.float64)
        count, total, square = summed(sums)
        mean = total / count.clamp_min(1)
        return cls(mean.float(), (square / count.clamp_min(1) - mean**2).clamp_min(1e-12).float())

    def shares(self, answer: Float[Tensor, "*rows C"]) -> Float[Tensor, " labels"]:
        """The variance at every position over the whole one; 1 on average."""
        off = answer.float() - self.mean.to(answer.device)
        return off.square().mean(-1).flatten() / self.variance.to(answer.device)
