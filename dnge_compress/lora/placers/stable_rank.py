"""Stable rank of the pretrained weights, ‖W‖_F² / ‖W‖₂² (SR-LoRA, Zhang et al. 2025, arXiv 2507.00327)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights
from dnge_compress.lora.sites import matrix_of

NEEDS_DATA = False


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """Ranks in proportion to the stable rank; of experts, its mean."""
    found = {}
    for i, site in enumerate(sites):
        weight = matrix_of(context.model, site)
        top = torch.linalg.matrix_norm(weight, 2).square().clamp_min(1e-30)
        found[site.path] = float((weight.square().sum((1, 2)) / top).mean())
        context.progress("compute spectra", i + 1, len(sites))
    return found
