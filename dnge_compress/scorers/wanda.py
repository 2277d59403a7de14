"""Wanda for structures: Σ |w_out| · ‖a‖ over a unit's consumers, on real data (Sun et al. 2023, An et al. 2023)."""

from __future__ import annotations

import torch

from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext

NEEDS_DATA = True


def score(context: ScoringContext) -> Scores:
    """Magnitude times activation norm, averaged over a consumer's outputs, relative to the space's mean; layers are
    measured."""
    units = {}
    for name, signals in context.signals.items():
        total = torch.zeros(signals[0].units)
        for s in signals:
            weight = s.own_weight.float().abs()
            norm = s.square.sqrt()
            total += (weight.mean(0) * norm).view(s.units, -1).sum(1).cpu()
        units[name] = total / total.mean().clamp_min(1e-30)
    return Scores(units=units | context.measured_costs, scorer="wanda", fingerprint=context.graph.fingerprint)
