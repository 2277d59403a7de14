"""Segment reductions: from rows to units, from units to layers. torch-scatter does them if it is installed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

try:  # an extra: it has no wheels, so a plain install must do without (see README)
    from torch_scatter import segment_csr
except ImportError:
    segment_csr = None


def segment_mean(rows: Float[Tensor, "R H"], bounds: Int[Tensor, " ends"]) -> Float[Tensor, "U H"]:
    """Means over consecutive segments: rows `[R, H]`, bounds `[U + 1]` ascending from 0 to R; returns `[U, H]`."""
    if segment_csr is not None:
        return segment_csr(rows, bounds, reduce="mean")
    return torch.segment_reduce(rows, "mean", offsets=bounds, axis=0)


def pool_rows(rows: Float[Tensor, "R H"], width: int) -> Float[Tensor, "U H"]:
    """Mean over the `width` rows of each unit: `[U * width, H]` to `[U, H]`."""
    if width == 1:
        return rows
    return rows.view(-1, width, rows.shape[1]).mean(1)


def spread(units: Float[Tensor, "U H"], width: int) -> Float[Tensor, "R H"]:
    """Each unit's state for each of its rows: `[U, H]` to `[U * width, H]`."""
    return units if width == 1 else units.repeat_interleave(width, 0)
