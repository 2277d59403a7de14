"""Fisher: the squared loss gradient of a mask on each unit, E (Σ a·g)², on real data (Molchanov et al. 2019)."""

from __future__ import annotations

import torch

from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext

NEEDS_DATA = True


def score(context: ScoringContext) -> Scores:
    """Half the mask's Fisher information: the second-order cost of removal without repair; layers are measured."""
    units = {name: 0.5 * torch.stack([s.fisher.cpu() for s in found]).sum(0) for name, found in context.signals.items()}
    return Scores(units=units | context.measured_costs, scorer="fisher", fingerprint=context.graph.fingerprint)
