"""Parameters, work and bytes of a model, before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dnge_compress.graph.counting import is_embedding
from dnge_compress.graph.products import eager_experts
from dnge_compress.graph.types import ModelGraph
from dnge_compress.plans.space_rows import Change
from dnge_compress.signals.inference import Inputs, call, first_examples, inference_mode_of


@dataclass(frozen=True, kw_only=True)
class Totals:
    """(before, after) over the whole model; `macs` counts one example input and is 0 where none was run."""

    params: Change
    non_embedding_params: Change
    macs: Change
    bytes: Change


@dataclass(frozen=True, kw_only=True)
class Size:
    """How big a model is: unique parameters, multiply-accumulates on one example, bytes of its tensors."""

    params: int
    non_embedding_params: int
    macs: int
    bytes: int


def measure(model: nn.Module, graph: ModelGraph, inputs: Inputs | None = None) -> Size:
    """Size of a model before or after surgery; `graph` is that of the model before."""
    params = dict(model.named_parameters())
    tensors = {id(t): t for t in (*params.values(), *model.buffers())}
    return Size(
        params=sum(p.numel() for p in params.values()),
        non_embedding_params=sum(p.numel() for n, p in params.items() if not is_embedding(graph, n)),
        macs=0 if inputs is None else macs_of(model, inputs),
        bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
    )


def macs_of(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one forward pass over the first example of `inputs`."""
    example = first_examples([inputs], 1)[0]
    # Fused kernels of attention and of experts have no entry in torch's counter; the plain ones do.
    counter = FlopCounterMode(display=False)
    with inference_mode_of(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), eager_experts(model), counter:
        call(model, example)
    return int(counter.get_total_flops()) // 2
