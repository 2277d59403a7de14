"""Attention only, as the first LoRA papers had it: the same rank on every matrix of an attention block."""

from __future__ import annotations

from collections.abc import Sequence

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights

NEEDS_DATA = False
NAMES = ("attn", "attention")


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """Ones on the matrices whose name says attention, zeros elsewhere."""
    return {site.path: float(is_attention(site)) for site in sites}


def is_attention(site: Site) -> bool:
    """Whether a part of the path names an attention block."""
    return any(name in part.lower() for part in site.path.split(".") for name in NAMES)
