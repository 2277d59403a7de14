"""The cost of whole blocks: the divergence of the output when one is skipped, measured on a part of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.core.parts import NOTHING_KEPT, Parts
from dnge_compress.core.progress import Progress, silent
from dnge_compress.graph.masking import skipped
from dnge_compress.graph.types import ModelGraph
from dnge_compress.signals.comparison import Comparison
from dnge_compress.signals.inference import Inputs, inference_mode_of, share_of

LAYER_SHARE = 0.125  # of the inputs
LAYER_ROWS = 16  # examples at least


def layer_costs(
    model: nn.Module,
    graph: ModelGraph,
    batches: Sequence[Inputs],
    progress: Progress = silent,
    parts: Parts = NOTHING_KEPT,
) -> dict[str, Float[Tensor, " _"]]:
    """Nats per label of skipping each block, `[layers]` per layer space; of protected blocks, the largest plus 1.
    `parts` keep the cost of each block."""

    @cache
    def whole() -> Comparison:
        return Comparison(model, share_of(batches, LAYER_SHARE, LAYER_ROWS))

    def cost(block: str) -> dict[str, Tensor]:
        answers = whole()
        with skipped(model, [block]):
            return {"cost": torch.tensor(answers.damage(model).nats)}

    costs, done, total = {}, 0, sum(s.units for s in graph.of_kind("layer"))
    with inference_mode_of(model):
        for space in graph.of_kind("layer"):
            values = torch.zeros(space.units)
            for i in sorted(set(range(space.units)) - set(space.protected)):
                block = space.modules[i]
                values[i] = parts.tensors(f"cost-of.{block}", partial(cost, block))["cost"]
                progress("try without blocks", done + i, total)
            done += space.units
            progress("try without blocks", done, total)
            values[list(space.protected)] = values.max() + 1
            costs[space.name] = values
    return costs
