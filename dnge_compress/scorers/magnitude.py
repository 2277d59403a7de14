"""Group magnitude: the L2 norm over everything a unit owns, as torch-pruning's GroupMagnitudeImportance ranks it."""

from __future__ import annotations

import torch
from torch import Tensor

from dnge_compress.graph.types import PRUNABLE, Scores, Space, is_weight
from dnge_compress.scorers import ScoringContext

NEEDS_DATA = False


def score(context: ScoringContext) -> Scores:
    """Mean over a space's tensors of Σ w² per unit, relative to the space's mean; modules by their mean square."""
    units = {}
    for space in context.graph.of_kind(*PRUNABLE):
        units[space.name] = _layers(context, space) if space.modules else _units(context, space)
    return Scores(units=units, scorer="magnitude", fingerprint=context.graph.fingerprint)


def _units(context: ScoringContext, space: Space) -> Tensor:
    norms = []
    for slot in context.graph.slots_of(space.name):
        step = context.graph.step_of(slot.param)
        weight = context.weights[slot.param]
        # What torch-pruning's group norm counts: matrices and the gains of norms; no biases, running statistics,
        # embeddings or depthwise kernels.
        depthwise = step.op == "norm" and weight.dim() > 1
        stacked = step.op == "experts_flat" or (step.op.startswith("experts") and weight.dim() > 2)
        counts = is_weight(slot.param) or stacked
        if not counts or step.op == "embed" or depthwise:
            continue
        axis = slot.axis if slot.part is None else slot.axis - 1
        weight = (weight if slot.part is None else weight[slot.part]).float().transpose(0, axis)
        rows = weight[slot.offset : slot.offset + space.units * slot.width]
        norms.append(rows.reshape(space.units, -1).square().sum(1))
    total = torch.stack(norms).mean(0).cpu()
    return total / total.mean().clamp_min(1e-30)


def _layers(context: ScoringContext, space: Space) -> Tensor:
    squares = []
    for module in space.modules:
        own = [w.float() for n, w in context.weights.items() if n.startswith(f"{module}.") and w.dim() > 1]
        squares.append(sum(float(w.square().sum()) for w in own) / sum(w.numel() for w in own))
    values = torch.tensor(squares)
    return values / values.mean()
