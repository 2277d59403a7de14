"""Structured optimal brain surgeon (Hassibi & Stork 1993; signals/obs.py): the exact quadratic cost of removing each
unit and refitting its consumers, on the moments of the calibration inputs.

Layers are measured: the divergence of the output when the block is skipped, on a part of the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnge_compress.graph.masking import skipped
from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.consumers import shift_of
from dnge_compress.signals.divergence import attended, attended_outputs, divergence
from dnge_compress.signals.inference import call, examples_in, first_examples, has_logits, inference_mode_of
from dnge_compress.signals.moments import Signal
from dnge_compress.signals.obs import Consumer, removal_costs

NEEDS_DATA = False
LAYER_SHARE = 0.125  # of the calibration inputs, for the measured cost of each layer
LAYER_ROWS = 16  # examples at least


def score(context: ScoringContext) -> Scores:
    """Costs in nats per label, for every unit of every prunable space."""
    units = {}
    for i, space in enumerate(context.signals):
        units[space] = unit_costs(context, space)
        context.progress("scoring", i + 1, len(context.signals))
    units |= layer_costs(context)
    return Scores(units=units, scorer="obs", fingerprint=context.graph.fingerprint)


def unit_costs(context: ScoringContext, space: str) -> Tensor:
    """Costs of the units of one space `[U]`."""
    signals = context.signals[space]
    return removal_costs([consumer(context, s) for s in signals], signals[0].units, context.repair.ridge)


def consumer(context: ScoringContext, signal: Signal) -> Consumer:
    """A consumer's weight, moments and output importance."""
    moments = signal.gram[signal.own, signal.own]
    if shift_of(context.graph, signal.slot) is not None:
        mean = signal.mean[signal.own]
        moments = moments - torch.outer(mean, mean)
    return Consumer(signal.own_weight, moments, signal.out_fisher)


def layer_costs(context: ScoringContext) -> dict[str, Tensor]:
    """Measured divergence of skipping each block, `[layers]` per layer space; of protected ones, the largest plus 1."""
    spaces = context.graph.of_kind("layer")
    if not any(len(s.protected) < s.units for s in spaces):
        return {s.name: torch.ones(s.units) for s in spaces}
    total = sum(examples_in(b) for b in context.batches)
    batches = first_examples(context.batches, max(LAYER_ROWS, round(total * LAYER_SHARE)))
    logits = has_logits(context.model)
    costs = {}
    with inference_mode_of(context.model):
        reference = [attended_outputs(call(context.model, b), attended(b)) for b in batches]
        for space in spaces:
            values = torch.zeros(space.units)
            free = [i for i in range(space.units) if i not in space.protected]
            for i in free:
                with skipped(context.model, [space.modules[i]]):
                    outputs = [attended_outputs(call(context.model, b), attended(b)) for b in batches]
                found = [divergence(o, r, logits) for o, r in zip(outputs, reference, strict=True)]
                values[i] = torch.stack(found).mean().cpu()
            values[list(space.protected)] = values.max() + 1
            costs[space.name] = values
    return costs
