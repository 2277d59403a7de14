"""Where the rows of a unit stand, found by gradients: what reads a unit is set to zero, and the rows that no gradient
reaches any more are its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from dnge_compress.core.errors import first_line
from dnge_compress.graph.derivation.architecture import MATRICES
from dnge_compress.graph.derivation.example_inputs import run
from dnge_compress.graph.derivation.readings import Axis, Counted
from dnge_compress.graph.layer_types import CONVS
from dnge_compress.graph.rows import Runs, stretches

SAMPLES = 5  # units looked at


class Unreadable(Exception):
    """Rows that belong to no unit in any order known."""


def consuming_axes(model: nn.Module, rows: Iterable[Axis]) -> list[Axis]:
    """The axes over which a matrix is multiplied with the units' activations, by the kind of module."""
    return [(name, axis) for name, axis in rows if _is_input(model, name, axis)]


def _is_input(model: nn.Module, name: str, axis: int) -> bool:
    owner = owner_of(model, name)
    if not name.rpartition(".")[2].startswith("weight"):
        return False
    if isinstance(owner, Conv1D):
        return axis == 0
    if isinstance(owner, CONVS):
        return axis == 1 and owner.groups == 1
    return isinstance(owner, nn.Linear) and axis == 1


def stacked(model: nn.Module, rows: Iterable[Axis]) -> list[Axis]:
    """Axes of bare parameters that hold several matrices, where the kind of module says nothing."""
    bare = {n for n, p in model.named_parameters() if p.dim() >= 3 and not isinstance(owner_of(model, n), MATRICES)}
    return [(name, axis) for name, axis in rows if name in bare]


def owner_of(model: nn.Module, name: str) -> nn.Module:
    """The module that a tensor belongs to."""
    return model.get_submodule(name.rpartition(".")[0])


def unit_rows(model: nn.Module, inputs: dict[str, Tensor], counted: Counted, consumers: list[Axis]) -> dict[Axis, Runs]:
    """The rows of a unit along every axis, found by masking some units in turn. Raises Unreadable."""
    weights = dict(model.named_parameters())
    for axis in consumers:
        if counted.rows[axis] * counted.units != weights[axis[0]].shape[axis[1]]:
            raise Unreadable(f"'{axis[0]}' is read by more than these units")
    others = [axis for axis in counted.rows if axis not in consumers and axis[0] in weights]
    whole = _strengths(model, inputs, others, {})
    last = counted.units - 1
    samples = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})
    reached: dict[int, dict[Axis, set[int]]] = {}
    for unit in samples:
        masked: dict[str, Tensor] = {}
        for name, along in consumers:
            n = counted.rows[name, along]
            rows = torch.arange(unit * n, (unit + 1) * n)
            masked[name] = masked.get(name, weights[name].detach()).index_fill(along, rows, 0.0)
        left = _strengths(model, inputs, others, masked)
        reached[unit] = {a: set((left[a] == 0).nonzero().flatten().tolist()) for a in others}
    found: dict[Axis, Runs] = {axis: ((0, counted.rows[axis]),) for axis in consumers}
    unknown: list[Axis] = [axis for axis in counted.rows if axis not in consumers and axis[0] not in weights]
    for axis in others:
        rows_of = {u: reached[u][axis] for u in samples}
        runs = _common_runs(rows_of, counted.rows[axis], counted.units, len(whole[axis]))
        if runs and float(whole[axis].amax()) > 0:
            found[axis] = runs
        else:
            unknown.append(axis)
    for axis in unknown:
        sibling = _like_sibling(axis, found, counted)
        is_silent = axis not in whole or float(whole[axis].amax()) == 0  # no gradient could tell
        if sibling is None and is_silent and counted.rows[axis] == 1:
            sibling = ((0, 1),)  # one row for each can stand in their own order only
        if sibling is None:
            raise Unreadable(f"the rows of a unit in '{axis[0]}' stand in no order known")
        found[axis] = sibling
    return found


def _common_runs(reached: Mapping[int, set[int]], rows: int, units: int, size: int) -> Runs | None:
    """Where a unit's rows begin and how they go on from unit to unit: an order in which every unit looked at has only
    rows that its mask cut off. A mask may put other rows to sleep as well, or meet some that no input wakes."""
    for runs in _orders(reached, rows, units, size):
        if all({start + u * n + i for start, n in runs for i in range(n)} <= own for u, own in reached.items()):
            return runs
    return None


def _orders(reached: Mapping[int, set[int]], rows: int, units: int, size: int) -> Iterator[Runs]:
    """What was seen of the units whose rows stand out clearly, then the usual orders: one run, or several side by
    side."""
    for unit, own in reached.items():
        if len(own) == rows:
            yield tuple((start - unit * n, n) for start, n in stretches(own) if start >= unit * n)
    for count in (1, 2, 3):
        if rows % count == 0 and rows * units == size:
            yield tuple((i * (size // count), rows // count) for i in range(count))


def _like_sibling(axis: Axis, found: Mapping[Axis, Runs], counted: Counted) -> Runs | None:
    """A bias, gain or statistic goes as the weight beside it does, since gradients may not reach it; a weight that this
    class never uses as the one of the same name does."""
    path, leaf = axis[0].rpartition(".")[0], ".".join(axis[0].split(".")[-2:])
    for (name, other), runs in found.items():
        is_beside = name.rpartition(".")[0] == path
        is_namesake = ".".join(name.split(".")[-2:]) == leaf and other == axis[1]
        if (is_beside or is_namesake) and counted.rows[(name, other)] == counted.rows[axis]:
            return runs
    return None


def _strengths(
    model: nn.Module, inputs: dict[str, Tensor], axes: list[Axis], masked: Mapping[str, Tensor]
) -> dict[Axis, Tensor]:
    """The largest gradient of every row along the axes."""
    names = list(dict.fromkeys(name for name, _ in axes))
    weights = {n: p.detach() for n, p in model.named_parameters()}
    leaves = {n: weights[n].clone().requires_grad_() for n in names}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        outputs = call_with(model, inputs, {**weights, **masked, **leaves}, is_differentiable=True)
        total = sum((t * torch.randn_like(t)).sum() for t in outputs if t.requires_grad and t.dim() > 1)
        if not isinstance(total, Tensor):
            raise Unreadable("no output depends on these weights")
        try:
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except RuntimeError as e:  # a model that writes into what its gradients need
            raise Unreadable(f"it can't be differentiated ({first_line(e)})") from e
    by_name = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, gradients, strict=True)}
    return {(n, a): by_name[n].abs().movedim(a, 0).reshape(weights[n].shape[a], -1).amax(1) for n, a in axes}


class _Runner(nn.Module):
    def __init__(self, model: nn.Module, is_differentiable: bool) -> None:
        super().__init__()
        self.model, self.is_differentiable = model, is_differentiable

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return run(self.model, inputs, is_differentiable=self.is_differentiable)


def call_with(
    model: nn.Module, inputs: dict[str, Tensor], weights: Mapping[str, Tensor], *, is_differentiable: bool = False
) -> list[Tensor]:
    """The model's outputs with other weights."""
    runner = _Runner(model, is_differentiable)
    found: list[Tensor] = functional_call(runner, {f"model.{n}": t for n, t in weights.items()}, (inputs,))
    return found
