"""Taylor: the size of the loss gradient of a mask on each unit, E |Σ a·g|, on real data (Molchanov et al. 2017)."""

from __future__ import annotations

from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext, obs

NEEDS_DATA = True


def score(context: ScoringContext) -> Scores:
    """First-order cost of removal, with labels sampled from the model; layers are measured."""
    units = {name: sum(s.taylor.cpu() for s in context.signals[name]) for name in context.signals}
    return Scores(units=units | obs.layer_costs(context), scorer="taylor", fingerprint=context.graph.fingerprint)
