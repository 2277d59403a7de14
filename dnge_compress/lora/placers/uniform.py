"""The same rank everywhere: the one to beat."""

from __future__ import annotations

from collections.abc import Sequence

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights

NEEDS_DATA = False


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """Ones."""
    return {site.path: 1.0 for site in sites}
