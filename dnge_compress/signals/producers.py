"""The linear layers that compute the units of a space, and by which formula activations come from what they write.

Which formula it is, nobody has to declare: each known one is tried on what the model itself computed, and where none
gives the same numbers, nothing is said about the units. A gated layer multiplies what two matrices write, one of them
behind an activation; they may lie in one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Slot, is_weight
from dnge_compress.signals.joint_fit import Formula

TOLERANCE = 1e-4  # of the largest activation
FEW_ROWS = 1024  # tell the formulas apart; the one that is found is tried on all, as many at a time

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    nnf.silu,
    nnf.gelu,
    partial(nnf.gelu, approximate="tanh"),
    torch.relu,
    lambda z: z * torch.sigmoid(1.702 * z),  # CLIP's gelu
    lambda z: torch.relu(z).square(),
    torch.tanh,
    torch.sigmoid,
)


@dataclass(frozen=True)
class Producer:
    """One matrix that computes a space's units: its module, and the slot of its rows."""

    module: nn.Module
    slot: Slot
    is_transposed: bool  # stored [H, units], as GPT-2's Conv1D

    @property
    def bias(self) -> str | None:
        """The name of the bias, if there is one."""
        return None if getattr(self.module, "bias", None) is None else f"{self.slot.param.removesuffix('weight')}bias"


def producers_of(model: nn.Module, applied: AppliedCuts, space: str) -> tuple[Producer, ...]:
    """What computes the units of a space of neurons; empty where that isn't one or two linear layers alone, or others
    share their weights."""
    graph = applied.graph
    if graph.space(space).kind != "neuron":
        return ()
    slots = [s for s in graph.slots_of(space) if not graph.consumes(s)]
    weights = [s for s in slots if is_weight(s.param)]
    names: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    found = []
    for slot in weights:
        module = model.get_submodule(slot.param.rpartition(".")[0])
        is_linear = type(module) in (nn.Linear, Conv1D)
        if not is_linear or slot.width != 1 or slot.part is not None or names[id(module.weight)] > 1:
            return ()
        found.append(Producer(module, slot, isinstance(module, Conv1D)))
    modules = {s.param.rpartition(".")[0] for s in weights}
    others = [s for s in slots if not is_weight(s.param)]
    is_alone = all(s.param.rpartition(".")[0] in modules and s.param.endswith("bias") for s in others)
    return tuple(found) if is_alone and len(found) in (1, 2) else ()


def formula_of(
    written: Sequence[Float[Tensor, "P U"]], activations: Float[Tensor, "P U"], eps: float
) -> Formula | None:
    """The formula that gives these activations, if it is a known one; `eps` is the precision that they come in."""

    def error(formula: Formula, every: int = 1) -> float:
        pieces = zip(*(values[::every].split(FEW_ROWS) for values in (activations, *written)), strict=True)
        return float(torch.stack([(formula([w.float() for w in some]) - a).abs().max() for a, *some in pieces]).max())

    best = min(formulas(len(written)), key=partial(error, every=max(1, len(activations) // FEW_ROWS)))
    return best if error(best) <= max(TOLERANCE, 4 * eps) * float(activations.abs().max()) else None


@cache
def formulas(count: int) -> tuple[Formula, ...]:
    """The known ones, of what so many matrices write."""
    if count == 1:
        return tuple(partial(_plain, activation) for activation in ACTIVATIONS)
    return tuple(partial(_gated, activation, gate) for activation in ACTIVATIONS for gate in (0, 1))


def _plain(activation: Callable[[Tensor], Tensor], written: Sequence[Tensor]) -> Tensor:
    return activation(written[0])


def _gated(activation: Callable[[Tensor], Tensor], gate: int, written: Sequence[Tensor]) -> Tensor:
    return activation(written[gate]) * written[1 - gate]
