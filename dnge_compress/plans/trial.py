"""The measured cost of a cut: the divergence of the masked and repaired model from the whole one on some inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.recipes.schema import Repair
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.divergence import mean_divergence
from dnge_compress.signals.inference import Inputs, has_logits
from dnge_compress.signals.refit import least_squares_repair


def measured_divergence(
    context: ScoringContext, applied: AppliedCuts, batches: Sequence[Inputs], wanted: Sequence[Tensor], repair: Repair
) -> Tensor:
    """Mean divergence from the outputs `wanted`, in nats per label, under cuts repaired on the context's signals.

    The model is left as it is; call it in inference mode.
    """
    masked = MaskedModel(context.model, applied, repair_values(context, applied, repair))
    return mean_divergence(masked, batches, wanted, has_logits(context.model))


def repair_values(context: ScoringContext, applied: AppliedCuts, repair: Repair) -> dict[str, Tensor]:
    """New values of the consumers under the cuts; the signals are gathered only if something is repaired."""
    if repair.compensate == "none" or not applied.cuts:
        return {}
    return least_squares_repair(context.model, context.signals, applied, repair)
