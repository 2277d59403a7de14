"""Scorers, one file each: a file's name is its registration, baselines included.

A scorer module offers `score(context) -> Scores` and `NEEDS_DATA`. Scores are the predicted cost of removal, larger =
keep. To add one, add a file (or an entry point of the group dnge_compress.scorers).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from dnge_compress.core.memory import give_back
from dnge_compress.core.parts import NOTHING_KEPT, Parts
from dnge_compress.core.progress import Progress, silent
from dnge_compress.core.stopwatch import Stopwatch
from dnge_compress.graph.types import ModelGraph, Scores
from dnge_compress.recipes.methods import SCORERS
from dnge_compress.recipes.schema import Calibration, Repair
from dnge_compress.signals.batch_norms import own_statistics
from dnge_compress.signals.calibration import calibration_inputs
from dnge_compress.signals.experts import expert_costs
from dnge_compress.signals.inference import Inputs
from dnge_compress.signals.layers import layer_costs
from dnge_compress.signals.moments import gather_signals
from dnge_compress.signals.signal import Signals
from dnge_compress.signals.stored import kept_batches


@dataclass(frozen=True, kw_only=True)
class ScoringContext:
    """All a scorer may look at: the graph, the model (read only), and the signals of its inputs: synthetic ones, unless
    `data` holds others, such as the user's own, of which some are `held_out` from all fits to measure damage on.

    Nothing is run before somebody asks for `batches` or `signals`, so a scorer that reads weights alone costs little.
    `made` are synthetic inputs, and `gathered` signals, that are known from an earlier run; `parts` keep what is
    finished while the work lasts, and the `watch` counts the seconds of its stages.
    """

    graph: ModelGraph
    model: nn.Module
    calibration: Calibration = field(default_factory=Calibration)
    data: tuple[Inputs, ...] | None = None
    held_out: tuple[Inputs, ...] = ()
    example_inputs: Inputs | None = None
    repair: Repair = field(default_factory=Repair)
    kinds: frozenset[str] = frozenset({"layer"})  # that may go; costs of whole blocks and experts are measured if so
    progress: Progress = field(default=silent, compare=False)
    made: tuple[Inputs, ...] | None = None
    gathered: Signals | None = None
    parts: Parts = field(default=NOTHING_KEPT, compare=False)
    watch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    @property
    def seed(self) -> int:
        """Of calibration inputs and labels."""
        return self.calibration.seed

    @cached_property
    def batches(self) -> tuple[Inputs, ...]:
        """`data`, or synthetic inputs."""
        if self.data is not None:
            return self.data
        if self.made is not None:
            return self.made
        with self.watch.stage("inputs"):
            made = kept_batches(
                self.parts, lambda: calibration_inputs(self.model, self.calibration, self.example_inputs, self.progress)
            )
        give_back()
        return made

    @cached_property
    def signals(self) -> Signals:
        """Activation and gradient statistics, gathered on first use."""
        if self.gathered is not None:
            return self.gathered
        batches = self.batches
        with self.watch.stage("signals"), self.calibrated():
            found = gather_signals(self.model, self.graph, batches, self.seed, self.progress, self.parts)
        give_back()
        return found

    def calibrated(self) -> AbstractContextManager[None]:
        """While entered, batch norms make up for what synthetic inputs lack; nothing is changed for real data."""
        return own_statistics(self.model, self.batches if self.data is None else None)

    @cached_property
    def measured_costs(self) -> dict[str, Tensor]:
        """What no closed form gives, in nats per label: costs of blocks and of whole experts, `[units]` per space; ones
        where none of them may go, since nothing is run for those."""
        graph, spaces = self.graph, (*self.graph.of_kind("layer"), *self.graph.of_kind("expert"))
        costs = {s.name: torch.ones(s.units) for s in spaces}
        if "layer" in self.kinds and any(len(s.protected) < s.units for s in graph.of_kind("layer")):
            costs |= layer_costs(self.model, graph, self.batches, self.progress, self.parts)
        if "expert" in self.kinds:
            costs |= self.parts.tensors(
                "costs-of-experts", lambda: expert_costs(self.model, graph, self.batches, self.seed)
            )
        return costs

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name."""
        return {k: v.detach() for k, v in self.model.state_dict(keep_vars=True).items()}


def score(scorer: str, context: ScoringContext) -> Scores:
    """Run the scorer called `scorer`. Raises UnknownNameError, or DataError if it needs data and has none."""
    module = SCORERS.usable(scorer, context.data is not None)
    with torch.no_grad(), context.watch.stage("score"):
        found: Scores = module.score(context)
    give_back()
    return found
