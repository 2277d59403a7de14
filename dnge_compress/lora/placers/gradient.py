"""The loss gradient on real data with real labels (as GoRA, FIM-LoRA and AdaLoRA's first steps measure it)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights
from dnge_compress.signals.gradients import mean_square_gradients, real_labels

NEEDS_DATA = True


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """Root of the mean square gradient; labels are the batches' own, or next tokens."""
    params = [site.weight for site in sites]
    loss = real_labels(context.seed)
    found = mean_square_gradients(context.model, params, context.batches, loss, context.progress)
    return {site.path: math.sqrt(found[site.weight]) for site in sites}
