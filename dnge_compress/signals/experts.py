"""The cost of whole experts: the Fisher information of a mask on what each adds, on a part of the inputs.

An expert's product before the router weighs it, times the gradient that comes back to it, is what the loss would feel
if a little of the expert were taken away for one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.graph.products import Watch, products_watched
from dnge_compress.graph.types import ModelGraph, Space
from dnge_compress.signals.divergence import attended, attended_outputs, label_loss
from dnge_compress.signals.inference import Inputs, call, has_logits, inference_mode_of, share_of
from dnge_compress.signals.moments import GRAPH_NUMBERS, gradients_started
from dnge_compress.signals.pieces import in_pieces, numbers_per_position

EXPERT_SHARE = 0.25  # of the inputs
EXPERT_ROWS = 32  # examples at least


def expert_costs(
    model: nn.Module, graph: ModelGraph, batches: Sequence[Inputs], seed: int = 0
) -> dict[str, Float[Tensor, " _"]]:
    """Nats per label of removing each expert alone, `[experts]` per space of experts. An expert that no token reaches
    costs nothing."""
    costs = {s.name: torch.zeros(s.units) for s in graph.of_kind("expert")}
    if not costs:
        return {}
    modules = {s.name: s.modules for s in graph.of_kind("expert") if s.modules}
    products = {s.name: _last_product(graph, s) for s in graph.of_kind("expert") if not s.modules}
    watchers: dict[tuple[str, int], list[Watch]] = {
        (product, part): [_adding(costs[name], part)]
        for name, product in products.items()
        for part in range(len(costs[name]))
    }
    generator, labels = torch.Generator().manual_seed(seed), 0
    few = share_of(batches, EXPERT_SHARE, EXPERT_ROWS)
    inside, answered = numbers_per_position(model, few[0])
    with ExitStack() as hooks, torch.enable_grad(), inference_mode_of(model), gradients_started(model, graph):
        for name, paths in modules.items():
            for part, path in enumerate(paths):
                hooks.enter_context(model.get_submodule(path).register_forward_hook(_hook(costs[name], part)))
        for batch in in_pieces(few, inside + answered, GRAPH_NUMBERS):
            with products_watched(model, watchers):
                output = attended_outputs(call(model, batch), attended(batch))
            label_loss(output, has_logits(model), generator).backward()
            labels += output.numel() // output.shape[-1]
    return {name: 0.5 * own / max(1, labels) for name, own in costs.items()}


def _last_product(graph: ModelGraph, space: Space) -> str:
    """The weight of all experts whose products are what they add."""
    steps = {graph.step_of(s.param).index: s.param for s in graph.slots_of(space.name)}
    return next(steps[i] for i in sorted(steps, reverse=True) if graph.step_of(steps[i]).op.startswith("experts"))


def _hook(costs: Tensor, part: int) -> Callable[[nn.Module, Any, Tensor], None]:
    watch = _adding(costs, part)
    return lambda module, args, out: watch(args[0], out)


def _adding(costs: Tensor, part: int) -> Callable[[Tensor, Tensor], None]:
    def watch(x: Tensor, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(partial(add, out.detach()))

    def add(out: Tensor, g: Tensor) -> None:
        costs[part] += (out.float() * g.float()).sum(-1).square().sum().cpu()

    return watch
