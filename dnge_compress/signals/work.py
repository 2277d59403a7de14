"""How much every weight works: the positions of one example at which it is multiplied."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.counting import Prices
from dnge_compress.graph.layer_types import TRANSPOSED
from dnge_compress.graph.products import products_watched
from dnge_compress.graph.types import ModelGraph, is_weight
from dnge_compress.signals.consumers import feature_axis
from dnge_compress.signals.inference import Inputs, call, first_examples, inference_mode_of


def macs_per_element(model: nn.Module, graph: ModelGraph, inputs: Inputs) -> Prices:
    """How often each weight is multiplied for the first example: the positions of its module's output, or input
    where a conv is transposed; of experts in one tensor, the mean over them."""
    positions: dict[str, float] = {}
    dims = {name: p.dim() for name, p in model.named_parameters()}

    def count(param: str, module: nn.Module, args: Any, out: Any) -> None:
        first = args[0] if isinstance(module, TRANSPOSED) else out[0] if isinstance(out, tuple) else out
        positions[param] = first.numel() / first.shape[feature_axis(module)]

    def count_product(param: str, experts: int, x: Tensor, out: Tensor) -> None:
        positions[param] = positions.get(param, 0.0) + len(out) / experts

    stacks = {p: s for s in graph.steps if s.op.startswith("experts") for p in s.params}
    counts = {
        p: graph.space(s.reads[0]).units if s.op == "experts_flat" else len(model.get_parameter(p))
        for p, s in stacks.items()
    }
    watchers = {(name, part): [partial(count_product, name, n)] for name, n in counts.items() for part in range(n)}
    with torch.no_grad(), inference_mode_of(model), ExitStack() as hooks:
        hooks.enter_context(products_watched(model, watchers))
        for step in graph.steps:
            for param in step.params if step.op != "embed" else ():
                if is_weight(param) and dims.get(param, 0) >= 2:
                    module = model.get_submodule(param.rpartition(".")[0])
                    hooks.enter_context(module.register_forward_hook(partial(count, param)))
        call(model, first_examples([inputs], 1)[0])
    return positions
