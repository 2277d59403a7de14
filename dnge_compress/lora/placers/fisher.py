"""The empirical Fisher information of each matrix on calibration inputs, with labels drawn from the model itself:
data-free, for any model.

The squared gradient of such labels is the Fisher information of the matrix's weights. Ranks go with its damped root, as
those of the encoder do.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights, damped
from dnge_compress.signals.gradients import mean_square_gradients, sampled_labels

NEEDS_DATA = False


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """The damped root mean square gradient."""
    params = [site.weight for site in sites]
    loss = sampled_labels(context.seed)
    found = mean_square_gradients(context.model, params, context.batches, loss, context.progress)
    return {site.path: damped(found[site.weight]) for site in sites}
