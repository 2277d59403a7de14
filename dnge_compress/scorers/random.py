"""Random: the gate that every other scorer must pass."""

from __future__ import annotations

import torch

from dnge_compress.graph.types import PRUNABLE, Scores
from dnge_compress.scorers import ScoringContext

NEEDS_DATA = False


def score(context: ScoringContext) -> Scores:
    """Uniform in 0..1 per unit, seeded."""
    generator = torch.Generator().manual_seed(context.seed)
    units = {s.name: torch.rand(s.units, generator=generator) for s in context.graph.of_kind(*PRUNABLE)}
    return Scores(units=units, scorer="random", fingerprint=context.graph.fingerprint)
