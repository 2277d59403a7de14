"""EVA: ranks by how much of the activations' variance a component explains (Paischer et al. 2024, arXiv 2410.07170).

This is EVA's choice of ranks, not its initial values, and not peft's run of it: peft re-decides ranks when it
initialises, and its budget is a sum of ranks. Components of all inputs compete by explained variance, at most RHO × the
uniform rank each, as peft does; the counts are then scaled to the budget in parameters like any other weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import Context, Weights
from dnge_compress.signals.divergence import answers, attended
from dnge_compress.signals.moments import GRAM_BYTES
from dnge_compress.signals.running import call, inference_mode_of

NEEDS_DATA = True
RHO = 2.0  # peft's default


def weigh(sites: Sequence[Site], context: Context) -> Weights:
    """How many of the best components each module's input has; experts' parameters aren't judged."""
    modules = [site for site in sites if site.kind == "module"]
    rank = max(1.0, context.uniform_rank)
    most = max(1, round(RHO * rank))
    ratios = {}
    for group in _groups(modules):
        covariances = _covariances(group, context)
        for site in group:
            values = torch.linalg.eigvalsh(covariances[site.path]).flip(0).clamp_min(0)
            ratios[site.path] = (values / values.sum().clamp_min(1e-30))[:most].tolist()
    ranked = sorted(((ratio, path) for path, found in ratios.items() for ratio in found), reverse=True)
    counts = dict.fromkeys(ratios, 0)
    for _, path in ranked[: round(rank * len(modules))]:
        counts[path] += 1
    return counts


def _groups(sites: Sequence[Site]) -> Iterator[list[Site]]:
    """Sites whose covariances fit in memory together."""
    group: list[Site] = []
    for site in sites:
        if group and sum(4 * s.inputs**2 for s in (*group, site)) > GRAM_BYTES:
            yield group
            group = []
        group.append(site)
    if group:
        yield group


def _covariances(sites: Sequence[Site], context: Context) -> dict[str, Tensor]:
    """Site → centred second moments of what the module reads `[inputs, inputs]`."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}
    mask: Tensor | None = None

    def watch(path: str, x: Tensor) -> None:
        rows = answers(x.detach(), mask).flatten(0, -2).float()
        total, square, count = sums.get(path, (torch.zeros(()), torch.zeros(()), 0))
        sums[path] = (total.to(x.device) + rows.sum(0), square.to(x.device) + rows.T @ rows, count + len(rows))

    handles = [
        context.model.get_submodule(s.path).register_forward_pre_hook(lambda m, args, path=s.path: watch(path, args[0]))
        for s in sites
    ]
    try:
        with torch.no_grad(), inference_mode_of(context.model):
            for batch in context.batches:
                mask = attended(batch)
                call(context.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {p: square / n - torch.outer(total / n, total / n) for p, (total, square, n) in sums.items()}
