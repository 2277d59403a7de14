"""FLAP: Var(a) · ‖w_out‖² on real data (An et al. 2023), standardised inside each space so that spaces compare."""

from __future__ import annotations

import torch

from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext

NEEDS_DATA = True


def score(context: ScoringContext) -> Scores:
    """Fluctuation times consumer norm, as a z-score per space; layers are measured."""
    units = {}
    for name, signals in context.signals.items():
        total = torch.zeros(signals[0].units)
        for s in signals:
            norms = s.own_weight.float().square().sum(0)
            total += (s.variance * norms).view(s.units, -1).sum(1).cpu()
        units[name] = (total - total.mean()) / total.std().clamp_min(1e-30) if len(total) > 1 else total
    return Scores(units=units | context.measured_costs, scorer="flap", fingerprint=context.graph.fingerprint)
