"""What a cut costs, tried out: the model masked and repaired, run on some inputs, its answers against the whole's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.recipes.schema import Repair
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.divergence import attended, attended_outputs, divergence
from dnge_compress.signals.inference import Inputs, call, has_logits
from dnge_compress.signals.refit import least_squares_repair


def dense_outputs(context: ScoringContext, batches: Sequence[Inputs]) -> list[Tensor]:
    """The model's own answers on each batch; call it in inference mode."""
    return [attended_outputs(call(context.model, b), attended(b)) for b in batches]


def measured_divergence(
    context: ScoringContext,
    applied: AppliedCuts,
    batches: Sequence[Inputs],
    reference: Sequence[Tensor],
    repair: Repair,
) -> Tensor:
    """Mean divergence from `reference` in nats per label under the cuts, repaired on the context's signals: a scalar.

    The model is left as it is; call it in inference mode.
    """
    masked = MaskedModel(context.model, applied, repair_values(context, applied, repair))
    logits = has_logits(context.model)
    pairs = zip(batches, reference, strict=True)
    return torch.stack([divergence(attended_outputs(call(masked, b), attended(b)), r, logits) for b, r in pairs]).mean()


def repair_values(context: ScoringContext, applied: AppliedCuts, repair: Repair) -> dict[str, Tensor]:
    """New values of the consumers under the cuts; the signals are gathered only if something is repaired."""
    if repair.compensate == "none" or not applied.cuts:
        return {}
    return least_squares_repair(context.model, context.signals, applied, repair)
