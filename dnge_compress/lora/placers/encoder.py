"""The pretrained encoder: it predicts the loss gradient's mean square at every matrix, without data.

Under Adam every adapter weight moves about as far, so an adapter lowers the loss at first by what its gradient's root
mean square is. Ranks go with the root of that (DAMPING): an adapter of a constant scale moves its matrix further the
higher its rank is, so ranks as uneven as the gradients call for a lower learning rate everywhere else (dev/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.encoder import DNGEncoder
from dnge_compress.graph.types import Scores
from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights, damped
from dnge_compress.scorers import ScoringContext, obs
from dnge_compress.scorers.encoder import corrected

NEEDS_DATA = False


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """The damped root mean square of the predicted gradient, of the matrices that are in the graph."""
    return {path: damped(value) for path, value in predicted_energy(sites, context).items()}


def predicted_energy(sites: Sequence[Site], context: PlacingContext) -> dict[str, float]:
    """The encoder's mean square gradient per site of the graph. Raises UnsupportedModelError for an unknown family."""
    try:
        graph = context.graph
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{e}; or place with placer='fisher' or 'stable_rank', which need no family") from e
    scoring = ScoringContext(
        graph=graph,
        model=context.model,
        calibration=context.calibration,
        data=context.data,
        example_inputs=context.example_inputs,
        progress=context.progress,
    )
    units = {space: obs.unit_costs(scoring, space) for space in scoring.signals}
    units |= {s.name: torch.ones(s.units) for s in graph.of_kind("layer")}  # their costs don't reach the matrices
    costs = Scores(units=units, scorer="obs", fingerprint=graph.fingerprint)
    matrices = corrected(scoring, costs, DNGEncoder.from_pretrained("base")).matrices
    return {site.path: matrices[site.weight] for site in sites if site.weight in matrices}
