"""Write the repaired consumers into a model after surgery."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dnge_compress.core.paging import Keep, as_it_is
from dnge_compress.graph.cuts import AppliedCuts


def apply_repair(model: nn.Module, applied: AppliedCuts, values: Mapping[str, Tensor], keep: Keep = as_it_is) -> None:
    """Write what `least_squares_repair` found into the pruned model; its shapes decide nothing, the cuts do. `keep`
    says where a tensor lies."""
    tensors = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in values.items():
            target = tensors[str(applied.path_after(name))]
            left = applied.remaining(name, value).to(target.dtype)
            left = left.clone() if left is value else left  # which may lie in a file
            # Not written into its memory, which an untouched tensor may share with the dense model's.
            target.data = keep(left.to(target.device).reshape(target.shape).contiguous())
