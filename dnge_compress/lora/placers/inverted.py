"""Our own weights upside down: if they mean anything, this must be worse than uniform."""

from __future__ import annotations

from collections.abc import Sequence

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import OURS, Context, Weights, weigh_by

NEEDS_DATA = False


def weigh(sites: Sequence[Site], context: Context) -> Weights:
    """The reciprocal."""
    ours = weigh_by(OURS, sites, context)
    least = 1e-6 * max(ours.values())
    return {path: 1 / max(weight, least) for path, weight in ours.items()}
