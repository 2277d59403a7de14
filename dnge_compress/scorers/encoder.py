"""The pretrained encoder: OBS costs, corrected by what was learned on networks whose true costs are known.

Its corrections move whole spaces and layers. Inside a space the order stays that of OBS: corrections of single units
rank better and prune worse, since greedy elimination is jointly optimal on the calibration inputs
(benchmarks/results/encoder_pruning.md).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FLOOR, node_features
from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext, obs

NEEDS_DATA = False


def score(context: ScoringContext) -> Scores:
    """Costs in nats per label, for units, heads, channels and layers."""
    return corrected(context, obs.score(context), DNGEncoder.from_pretrained("base"))


def corrected(context: ScoringContext, scores: Scores, encoder: DNGEncoder) -> Scores:
    """OBS costs under an encoder's corrections; as they are where only blocks can go, of which no unit is known."""
    if not context.signals:
        return replace(scores, scorer="encoder")
    features = node_features(context.signals, scores.units)
    layers = {s.name: scores.units[s.name].clamp_min(FLOOR).log() for s in context.graph.of_kind("layer")}
    weights = {k: v.cpu() for k, v in context.weights.items()}
    found = encoder(context.graph, weights, features, layers)
    logs = {**found.spaces, **found.layers}
    # Whole experts are nothing that the encoder has seen: their costs stay as they were measured.
    known = {name: logs[name].exp() if name in logs else torch.ones(()) for name in scores.units}
    units = {name: values.clamp_min(FLOOR) * known[name] for name, values in scores.units.items()}
    matrices = {name: float(torch.exp(value)) for name, value in found.matrices.items()}
    return Scores(
        units=units,
        scorer="encoder",
        fingerprint=context.graph.fingerprint,
        matrices=matrices,
        uncorrected=scores.units,
    )
