"""Taylor: the size of the loss gradient of a mask on each unit, E |Σ a·g|, on real data (Molchanov et al. 2017)."""

from __future__ import annotations

import torch

from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext

NEEDS_DATA = True


def score(context: ScoringContext) -> Scores:
    """First-order cost of removal, with labels sampled from the model; layers are measured."""
    units = {name: torch.stack([s.taylor.cpu() for s in found]).sum(0) for name, found in context.signals.items()}
    return Scores(units=units | context.measured_costs, scorer="taylor", fingerprint=context.graph.fingerprint)
