"""EVA: ranks by how much of the activations' variance a component explains (Paischer et al. 2024, arXiv 2410.07170).

This is EVA's choice of ranks, not its initial values, and not peft's run of it: peft re-decides ranks when it
initialises, and its budget is a sum of ranks. Components of all inputs compete by explained variance, at most RHO × the
uniform rank each, as peft does; the counts are then scaled to the budget in parameters like any other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights
from dnge_compress.signals.divergence import attended, attended_outputs
from dnge_compress.signals.inference import call, inference_mode_of
from dnge_compress.signals.second_moments import MomentStore, SecondMoments

NEEDS_DATA = True
RHO = 2.0  # peft's default


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """How many of the best components each module's input has; experts' parameters aren't judged."""
    modules = [site for site in sites if site.kind == "module"]
    rank = max(1.0, context.uniform_rank)
    most = max(1, round(RHO * rank))
    ratios = {}
    for path, moments in _moments(modules, context).items():
        _, covariance = moments.finish()
        values = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
        ratios[path] = (values / values.sum().clamp_min(1e-30))[:most].tolist()
    ranked = sorted(((ratio, path) for path, found in ratios.items() for ratio in found), reverse=True)
    counts = dict.fromkeys(ratios, 0)
    for _, path in ranked[: round(rank * len(modules))]:
        counts[path] += 1
    return counts


def _moments(sites: Sequence[Site], context: PlacingContext) -> dict[str, SecondMoments]:
    """Site → moments of what its module reads."""
    store, mask = MomentStore(), None
    modules = {site.path: context.model.get_submodule(site.path) for site in sites}
    found = {site.path: store.moments(site.inputs, context.model.get_parameter(site.weight).device) for site in sites}

    def watch(path: str, x: Tensor) -> None:
        found[path].add(attended_outputs(x.detach(), mask).flatten(0, -2))

    with torch.no_grad(), inference_mode_of(context.model), ExitStack() as hooks:
        for path, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(lambda m, args, path=path: watch(path, args[0])))
        for batch in context.batches:
            mask = attended(batch)
            call(context.model, batch)
    return found
