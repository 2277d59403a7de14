"""The matrices through which a space is read, in one layout."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.graph.types import ModelGraph, Slot

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def as_matrix(weight: Float[Tensor, "..."], graph: ModelGraph, slot: Slot) -> Float[Tensor, "D F"]:
    """A consumer's weight as `[D, F]`, whatever its layout: linear, transposed, or conv with its kernel flattened."""
    if slot.part is not None:
        weight = weight[slot.part]
    if graph.step_of(slot.param).op.endswith("_t"):
        weight = weight.T
    return weight.flatten(1)


def from_matrix(matrix: Float[Tensor, "D F"], like: Tensor, graph: ModelGraph, slot: Slot) -> Float[Tensor, "..."]:
    """The inverse of `as_matrix`, for a matrix whose F may have shrunk."""
    if graph.step_of(slot.param).op.endswith("_t"):
        return matrix.T.contiguous()
    if slot.part is not None:
        return matrix
    return matrix.view(matrix.shape[0], -1, *like.shape[2:]).contiguous()


def shift_of(graph: ModelGraph, slot: Slot) -> tuple[str, int] | None:
    """The parameter that can take up a constant added to a consumer's output, and its sign: the consumer's bias, or the
    running mean of the batch norm right behind it; None where there is neither."""
    step = graph.step_of(slot.param)
    bias = slot.param.removesuffix("weight") + "bias"
    if bias in step.params:
        return bias, 1
    after = next((s for s in graph.steps if s.index == step.index + 1), None)
    if after is not None and after.op == "batchnorm" and after.is_behind and after.reads == step.writes:
        return next(p for p in after.params if p.endswith("running_mean")), -1
    return None


def feature_axis(module: nn.Module) -> int:
    """The axis of a module's inputs and outputs that runs over features: 1 for convs `[N, C, …]`, else the last."""
    return 1 if isinstance(module, CONVOLUTIONS) else -1
