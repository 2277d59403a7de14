"""Feed-forward blocks only: the same rank on every matrix of a numbered block that is no attention."""

from __future__ import annotations

from collections.abc import Sequence

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights
from dnge_compress.lora.placers.attention import is_attention

NEEDS_DATA = False


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """Ones on feed-forward matrices, zeros elsewhere."""
    return {site.path: float(_is_in_block(site) and not is_attention(site)) for site in sites}


def _is_in_block(site: Site) -> bool:
    return any(part.isdigit() for part in site.path.split(".")[:-1])
