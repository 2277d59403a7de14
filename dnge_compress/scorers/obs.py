"""Structured optimal brain surgeon (Hassibi & Stork 1993; signals/obs.py): the exact quadratic cost of removing each
unit and refitting its consumers, on the moments of the calibration inputs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dnge_compress.core.memory import page_out
from dnge_compress.core.processes import own_share, summed
from dnge_compress.graph.types import Scores
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.consumers import shift_of
from dnge_compress.signals.obs import Consumer, removal_costs
from dnge_compress.signals.signal import Signal

NEEDS_DATA = False


def score(context: ScoringContext) -> Scores:
    """Costs in nats per label, for every unit of every prunable space; layers are measured."""
    units = {name: torch.zeros(found[0].units) for name, found in context.signals.items()}
    mine = own_share(list(units))
    for done, (_, space) in enumerate(mine, start=1):
        units |= context.parts.tensors(f"costs.{space}", partial(_costs, context, space))
        context.progress("score", done, len(mine))
    units = {name: summed(values) for name, values in units.items()}
    return Scores(units=units | context.measured_costs, scorer="obs", fingerprint=context.graph.fingerprint)


def _costs(context: ScoringContext, space: str) -> dict[str, Tensor]:
    found = {space: unit_costs(context, space)}
    for signal in context.signals[space]:
        page_out(signal.covariance)
    return found


def unit_costs(context: ScoringContext, space: str) -> Tensor:
    """Costs of the units of one space `[U]`."""
    signals = context.signals[space]
    return removal_costs((consumer(context, s) for s in signals), signals[0].units, context.repair.ridge)


def consumer(context: ScoringContext, signal: Signal) -> Consumer:
    """A consumer's weight, moments and output importance."""
    moments = signal.second_moments(shift_of(context.graph, signal.slot) is not None)[signal.own, signal.own]
    return Consumer(signal.own_weight, moments, signal.out_fisher)
