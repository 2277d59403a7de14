"""A model's answers on some inputs, and how far others' answers are from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from dnge_compress.core.paging import Shelf
from dnge_compress.core.processes import own_share, summed
from dnge_compress.signals.divergence import mean_divergence, outputs_of
from dnge_compress.signals.inference import Inputs, has_logits, inference_mode_of
from dnge_compress.signals.pieces import answered_in_pieces


class Comparison:
    """Inputs with the whole model's answers, of which each process has its share. Answers over a large vocabulary lie
    in files, and come in pieces."""

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        shelf = Shelf("answers on calibration inputs")
        self.batches = [batch for _, batch in own_share(answered_in_pieces(model, batches))]
        self.logits = has_logits(model)
        with torch.no_grad(), inference_mode_of(model):
            self.answers = [shelf.keep(outputs_of(model, batch)) for batch in self.batches]

    def damage(self, model: nn.Module) -> float:
        """Mean divergence of another model's answers, in nats per label; infinite where it is no number."""
        total, count = torch.zeros((), dtype=torch.float64), len(self.batches)
        if count:
            with torch.no_grad():
                total += count * mean_divergence(model, self.batches, self.answers, self.logits).double().cpu()
        found = float(summed(total)) / int(summed(torch.tensor(count)))
        return max(found, 0.0) if math.isfinite(found) else math.inf  # rounding may leave less than nothing
