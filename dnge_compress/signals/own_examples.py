"""The examples that a process fits on, where several work on one model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dnge_compress.core.processes import rank, world
from dnge_compress.signals.fits import JUDGED
from dnge_compress.signals.inference import Inputs, examples_in, has_parts, part_of
from dnge_compress.signals.joined import joined


@dataclass(frozen=True)
class OwnExamples:
    """A process's examples as one batch, and their numbers `[N]` among the `total` of all processes."""

    batch: Inputs
    numbers: Int[Tensor, " N"]
    total: int

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def are_shared(self) -> bool:
        """Whether other processes have the rest of them."""
        return len(self) < self.total

    def are_measured(self, examples: Int[Tensor, " P"]) -> Bool[Tensor, " P"]:
        """Which of some examples' numbers are among the first of all, on which a trial measures the repair as well
        (plans/trial.py) where none are held out: a joint fit is judged by those."""
        return examples < self.total // JUDGED


def own_examples(batch: Inputs, *, can_share: bool) -> OwnExamples:
    """This process's share of a batch: groups of examples in turn, so that each has about as many of the first ones and
    of every fourth one, by which fits are judged. All of them, where there are too few or they can't be shared."""
    total = examples_in(batch)
    groups = torch.arange(total).split(JUDGED)
    if world() == 1 or len(groups) < JUDGED * world() or not can_share or not has_parts(batch):
        return OwnExamples(batch, torch.arange(total), total)
    own = groups[rank() :: world()]
    return OwnExamples(joined([part_of(batch, int(g[0]), len(g)) for g in own]), torch.cat(own), total)
