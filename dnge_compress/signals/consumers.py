"""The matrices through which a space is read, in one layout.

A transposed conv is read as its products before they are summed up where kernels overlap: a row for every output
channel and kernel position, a column for every input channel.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.graph.layer_types import CONVS, TRANSPOSED
from dnge_compress.graph.types import ModelGraph, Slot


@dataclass(frozen=True)
class Place:
    """A consumer of a space, or one group of a grouped conv: where signals are gathered."""

    space: str
    units: int
    slot: Slot
    share: int


@dataclass(frozen=True)
class Reading:
    """The matrix `[D, F]` at a place, the features that are the space's `own`, and of a grouped conv the `rows` of
    outputs and the `inputs` (channels) that are the group's."""

    matrix: Float[Tensor, "D F"]
    own: slice
    rows: slice | None
    inputs: slice | None


def places_of(model: nn.Module, graph: ModelGraph) -> list[Place]:
    """All places of a model, space by space."""
    return [
        Place(space.name, space.units, slot, share)
        for space in graph.of_kind("neuron", "head", "channel")
        for slot in graph.consumers(space.name)
        for share in range(shares_of(model, slot))
    ]


def reading_at(model: nn.Module, graph: ModelGraph, place: Place) -> Reading:
    """What is read at a place of a model."""
    slot, weight = place.slot, model.get_parameter(place.slot.param).detach()
    matrix, shares = as_matrix(weight, graph, slot), shares_of(model, slot)
    rows = inputs = None
    if shares > 1:
        size, channels = len(matrix) // shares, weight.shape[slot.axis]
        rows, inputs = (slice(place.share * n, (place.share + 1) * n) for n in (size, channels))
    matrix = matrix if rows is None else matrix[rows]
    per_row = matrix.shape[1] // weight.shape[slot.axis]  # kernel positions of a conv
    own = slice(slot.offset * per_row, (slot.offset + place.units * slot.width) * per_row)
    return Reading(matrix, own, rows, inputs)


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
