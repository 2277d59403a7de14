"""Activations as rows: what a matrix is multiplied with at each position, whatever the module's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dnge_compress.signals.consumers import feature_axis


def read_by(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module was called with first, by place or by name."""
    return (*args, *kwargs.values())[0]


def windows(conv: Any, x: Tensor) -> Tensor:
    """A view of what a convolution reads at every position: `[N, …, C, *kernel]`."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = nnf.pad(x, conv._reversed_padding_repeated_twice, mode=mode)  # whatever `padding` says, also "same"
    axes = zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
    for axis, (kernel, dilation, stride) in enumerate(axes, start=2):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return x.movedim(1, 1 + len(conv.kernel_size))


def rows_at(seen: Tensor, kernel_axes: int, positions: Int[Tensor, " P"]) -> Float[Tensor, "P F"]:
    """Some rows of `windows`, without a copy of all the others."""
    grid = seen.shape[: 1 + kernel_axes]
    return seen[torch.unravel_index(positions.to(seen.device), grid)].flatten(1)


def rows_written(module: nn.Module, out: Tensor) -> Float[Tensor, "P D"]:
    """A module's outputs, one row for each position."""
    return out.movedim(feature_axis(module), -1).flatten(0, -2)


def counted_positions(mask: Bool[Tensor, "N T"] | None, positions: int, device: torch.device) -> Int[Tensor, " P"]:
    """The positions that are no padding, where the mask speaks of these."""
    if mask is None or mask.numel() != positions:
        return torch.arange(positions, device=device)
    return mask.flatten().nonzero().squeeze(1).to(device)
