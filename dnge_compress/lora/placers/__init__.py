"""Placers, one file each: a file's name is its registration, baselines included.

A placer module offers `weigh(sites, context) -> {path: weight}` and `NEEDS_DATA`. A weight says what rank a site
should have relative to the others': equal weights are uniform ranks, 0 is no adapter. A site that a placer can't judge
is left out, and gets the mean. To add a placer, add a file (or an entry point of the group dnge_compress.placers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from dnge_compress.core.errors import PlanError, UnsupportedModelError
from dnge_compress.core.progress import Progress, silent
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import ModelGraph
from dnge_compress.lora.adapters import Site
from dnge_compress.recipes.methods import PLACERS
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import calibration_inputs
from dnge_compress.signals.inference import Inputs

Weights = Mapping[str, float]
DAMPING = 0.5  # exponent on a root mean square gradient, chosen on the zoo


@dataclass(frozen=True, kw_only=True)
class PlacingContext:
    """All a placer may look at: the model (read only), and calibration inputs: synthetic, unless `data` holds the
    user's own.

    Nothing is run before somebody asks for `batches`, and no family is needed before somebody asks for `graph`, which
    `read_graph` makes where the model alone doesn't tell it.
    `uniform_rank` is the rank that the budget pays for everywhere.
    """

    model: nn.Module
    calibration: Calibration = field(default_factory=Calibration)
    data: tuple[Inputs, ...] | None = None
    example_inputs: Inputs | None = None
    uniform_rank: float = 16.0
    read_graph: Callable[[], ModelGraph] | None = None
    progress: Progress = field(default=silent, compare=False)

    @property
    def seed(self) -> int:
        """Of calibration inputs and labels."""
        return self.calibration.seed

    @cached_property
    def graph(self) -> ModelGraph:
        """The model as a dynamic graph. Raises UnsupportedModelError for a family nobody knows."""
        return self.read_graph() if self.read_graph else build_graph(self.model, self.example_inputs)

    @cached_property
    def batches(self) -> tuple[Inputs, ...]:
        """The user's batches, or synthetic ones."""
        if self.data is not None:
            return self.data
        return tuple(calibration_inputs(self.model, self.calibration, self.example_inputs, self.progress))


def weigh_by(placer: str, sites: Sequence[Site], context: PlacingContext) -> dict[str, float]:
    """Weights of the sites that the placer called `placer` can judge, in the order of `sites`.

    Raises UnknownNameError, DataError if it needs data and has none, UnsupportedModelError if it can't judge any.
    """
    module = PLACERS.usable(placer, context.data is not None)
    with torch.no_grad():
        found = module.weigh(sites, context)
    weights = {site.path: float(found[site.path]) for site in sites if site.path in found}
    if not any(weights.values()):
        raise UnsupportedModelError(
            f"placer '{placer}' finds none of the {len(sites)} matrices worth an adapter; choose another"
        )
    wrong = next((path for path, w in weights.items() if not math.isfinite(w) or w < 0), None)
    if wrong is not None:
        raise PlanError(f"placer '{placer}' gave '{wrong}' the weight {weights[wrong]}; it must be finite and >= 0")
    return weights


def damped(energy: float) -> float:
    """The weight of a matrix whose gradient has this mean square."""
    return math.sqrt(energy) ** DAMPING
