"""A model's answers on some inputs, and how far others' answers are from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnge_compress.core.paging import Shelf
from dnge_compress.core.processes import own_share, summed
from dnge_compress.signals.divergence import are_scores, attended, kl_divergences, outputs_of
from dnge_compress.signals.inference import Inputs, examples_in, has_logits, inference_mode_of
from dnge_compress.signals.pieces import answered_in_pieces

LEAST_WEIGHT = 1e-12  # of all examples together: answers that never differ have no variance


@dataclass(frozen=True, order=True)
class Damage:
    """A mean divergence in nats per label, infinite where it is no number; how far it would be off on other examples
    (the standard error); and on how many it was measured."""

    nats: float
    error: float = 0.0
    examples: int = 0


class Comparison:
    """Inputs with the whole model's answers, of which each process has its share. Answers over a large vocabulary lie
    in files, and come in pieces."""

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        shelf = Shelf("answers to measure damage by")
        self.batches = [batch for _, batch in own_share(answered_in_pieces(model, batches))]
        with torch.no_grad(), inference_mode_of(model):
            self.answers = [shelf.keep(outputs_of(model, batch)) for batch in self.batches]
        # Asked of all answers together, as the few of a small batch may look like something else.
        likely = any(are_scores(answer, has_logits(model)) for answer in self.answers)
        self.has_scores = bool(summed(torch.tensor(float(likely))) > 0)
        self.mean = 0.0 if self.has_scores else _mean(self.answers)

    def damage(self, model: nn.Module) -> Damage:
        """Mean divergence of another model's answers."""
        with torch.no_grad():
            found = [
                part for pair in zip(self.batches, self.answers, strict=True) for part in self._parts(model, *pair)
            ]
        each = torch.tensor(found, dtype=torch.float64).view(-1, 2)
        total, weight = summed(each.sum(0)).tolist()
        weight = max(weight, LEAST_WEIGHT)
        nats = total / weight
        if not math.isfinite(nats):
            return Damage(math.inf)
        # Of a ratio, both parts of which differ between examples.
        off = each[:, 0] - nats * each[:, 1]
        square, examples = summed(torch.stack([off.square().sum(), torch.tensor(len(each), dtype=off.dtype)])).tolist()
        error = math.sqrt(square * examples / max(1, examples - 1)) / weight
        return Damage(max(nats, 0.0), error, int(examples))  # rounding may leave less than nothing

    def _parts(self, model: nn.Module, batch: Inputs, answer: Tensor) -> Iterator[tuple[float, float]]:
        """The two sums of each example whose ratio is the damage: divergences and labels; or half the squared errors,
        and the squared distances from the mean that make up the variance."""
        output = outputs_of(model, batch)
        if self.has_scores:
            nats = kl_divergences(output, answer)
            weights = torch.ones_like(nats)
        else:
            output, answer = output.float(), answer.float()
            nats = 0.5 * (output - answer).square().sum(-1).flatten()
            weights = (answer - self.mean).square().mean(-1).flatten()
        examples, mask = examples_in(batch), attended(batch)
        if mask is not None and int(mask.sum()) == len(nats):
            labels = mask.sum(1).tolist()
        else:  # where nothing tells whose they are, a batch counts as one
            labels = [len(nats) // examples] * examples if len(nats) % examples == 0 else [len(nats)]
        sums = zip(*(part.cpu().double().split(labels) for part in (nats, weights)), strict=True)
        return ((float(ours.sum()), float(theirs.sum())) for ours, theirs in sums)


def _mean(answers: Sequence[Tensor]) -> float:
    """Of all numbers in the answers of all processes."""
    sums = torch.zeros(2, dtype=torch.float64)
    for answer in answers:
        sums += torch.tensor([float(answer.cpu().double().sum()), answer.numel()], dtype=torch.float64)
    total, count = summed(sums).tolist()
    return total / max(count, 1)
