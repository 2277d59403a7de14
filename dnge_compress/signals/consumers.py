"""The matrices through which a space is read, in one layout.

A transposed conv is read as its products before they are summed up where kernels overlap: a row for every output
channel and kernel position, a column for every input channel.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.graph.layer_types import CONVS, TRANSPOSED
from dnge_compress.graph.types import ModelGraph, Slot


def as_matrix(weight: Float[Tensor, "..."], graph: ModelGraph, slot: Slot) -> Float[Tensor, "D F"]:
    """A consumer's weight as `[D, F]`, whatever its layout: linear, transposed, or conv with its kernel flattened."""
    if slot.part is not None:
        weight = weight[slot.part]
    op = graph.step_of(slot.param).op
    if op == "conv_t":
        return weight.movedim(0, -1).flatten(0, -2)
    return (weight.T if op.endswith("_t") else weight).flatten(1)


def from_matrix(matrix: Float[Tensor, "D F"], like: Tensor, graph: ModelGraph, slot: Slot) -> Float[Tensor, "..."]:
    """The inverse of `as_matrix`, for a matrix whose F may have shrunk."""
    op = graph.step_of(slot.param).op
    if op == "conv_t":
        return matrix.view(*like.shape[1:], -1).movedim(-1, 0).contiguous()
    if op.endswith("_t"):
        return matrix.T.contiguous()
    if slot.part is not None:
        return matrix
    return matrix.view(matrix.shape[0], -1, *like.shape[2:]).contiguous()


def shift_of(graph: ModelGraph, slot: Slot) -> tuple[str, int] | None:
    """The parameter that can take up a constant added to a consumer's output, and its sign: the consumer's bias, or the
    running mean of the batch norm right behind it; None where there is neither, and behind transposed convs, which add
    different numbers of products at each position."""
    step = graph.step_of(slot.param)
    if step.op == "conv_t":
        return None
    module, _, leaf = slot.param.rpartition(".")
    bias = f"{module}.{leaf.replace('weight', 'bias', 1)}"
    if "weight" in leaf and bias in step.params:
        return bias, 1
    after = next((s for s in graph.steps if s.index == step.index + 1), None)
    if after is not None and after.op == "batchnorm" and after.is_behind and after.reads == step.writes:
        return next(p for p in after.params if p.endswith("running_mean")), -1
    return None


def shares_of(model: nn.Module, slot: Slot) -> int:
    """How many matrices side by side a consumer's weight is: the groups of a conv, each of which reads its channels."""
    module = model.get_submodule(slot.param.rpartition(".")[0])
    return module.groups if isinstance(module, CONVS) else 1


def feature_axis(module: nn.Module) -> int:
    """The axis of a module's inputs and outputs that runs over features: 1 for convs `[N, C, …]`, else the last."""
    return 1 if isinstance(module, (*CONVS, *TRANSPOSED)) else -1
