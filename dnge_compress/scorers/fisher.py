"""Fisher: the squared loss gradient of a mask on each unit, E (Σ a·g)², on real data (Molchanov et al. 2019)."""

from __future__ import annotations

from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext, obs

NEEDS_DATA = True


def score(context: ScoringContext) -> Scores:
    """Half the mask's Fisher information: the second-order cost of removal without repair; layers are measured."""
    units = {name: 0.5 * sum(s.fisher.cpu() for s in context.signals[name]) for name in context.signals}
    return Scores(units=units | obs.layer_costs(context), scorer="fisher", fingerprint=context.graph.fingerprint)
