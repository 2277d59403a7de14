"""The pretrained encoder: the closed form, corrected by what was learned on networks whose true costs are known.

Its corrections move whole spaces and layers. Inside a space the order stays that of the closed form: the encoder ranks
single units better, but pruned networks come out worse, since greedy elimination is jointly optimal on the probes
(benchmarks/results/encoder_pruning.md). `corrected` gives its opinion on single units all the same.
"""

from __future__ import annotations

import torch

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FLOOR, node_features
from dnge_compress.graph.types import Scores
from dnge_compress.scorers import Context, probe

NEEDS_DATA = False


def score(context: Context) -> Scores:
    """Costs in nats per label, for units, heads, channels and layers."""
    return corrected(context, probe.score(context), inside_spaces=False)


def corrected(
    context: Context, closed: Scores, encoder: DNGEncoder | None = None, *, inside_spaces: bool = True
) -> Scores:
    """The closed form under an encoder's corrections (the shipped one's, unless another is given).

    Inside a space they act while units are eliminated, so that the others still make up for each that leaves; and they
    move whole spaces and layers against each other. Without `inside_spaces` they do the latter alone.
    """
    encoder = encoder or DNGEncoder.from_pretrained("base")
    features = node_features(context.signals, closed.units)
    layers = {s.name: closed.units[s.name].clamp_min(FLOOR).log() for s in context.graph.of_kind("layer")}
    weights = {k: v.cpu() for k, v in context.weights.items()}
    found = encoder(context.graph, weights, features, layers)
    units = {}
    for name, values in closed.units.items():
        if name in found.layers:
            units[name] = values.clamp_min(FLOOR) * found.layers[name].exp()
        elif inside_spaces:
            units[name] = probe.unit_costs(context, name, found.units[name]).clamp_min(FLOOR)
        else:
            units[name] = values.clamp_min(FLOOR) * found.levels[name].exp()
    matrices = {name: float(torch.exp(value)) for name, value in found.matrices.items()}
    return Scores(units, "encoder", context.graph.fingerprint, matrices, closed=closed.units)
