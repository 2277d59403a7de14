"""The pretrained encoder: it predicts the loss gradient's mean square at every matrix, without data.

Ranks go with the size of the predicted gradient: under Adam every adapter weight moves about as far, so an adapter
lowers the loss at first by what its gradient's root mean square is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dnge_compress import scorers
from dnge_compress.errors import UnsupportedModelError
from dnge_compress.lora_plan import Site
from dnge_compress.placers import Context, Weights

NEEDS_DATA = False


def weigh(sites: Sequence[Site], context: Context) -> Weights:
    """Root of the predicted mean square gradient, of the matrices that are in the graph."""
    energy = predicted_energy(sites, context)
    return {path: math.sqrt(value) for path, value in energy.items()}


def predicted_energy(sites: Sequence[Site], context: Context) -> dict[str, float]:
    """The encoder's mean square gradient per site of the graph. Raises UnsupportedModelError for an unknown family."""
    try:
        graph = context.graph
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{e}; or place with placer='probe' or 'stable_rank', which need no family") from e
    scoring = scorers.Context(
        graph, context.model, context.batches, context.data is not None, seed=context.seed, progress=context.progress
    )
    matrices = scorers.score("encoder", scoring).matrices
    return {site.path: matrices[site.weight] for site in sites if site.weight in matrices}
