"""What leaves a SIREN's function as it is, and what moves its picture: both exact, both on the weights alone.

A hidden neuron v·sin(ω(wx + b)) is the same with (w, b, v) all negated, and with b shifted by π/ω and v negated. An
encoder that is equivariant to permutations sees neither; `canonical` takes both away.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dnge_compress.inr.siren import Siren, Stack


def canonical(stack: Stack, siren: Siren) -> dict[str, Tensor]:
    """Networks of the same function whose hidden phases ωb lie in 0 … π/2. Where a phase is 0, the sum of the neuron's
    incoming weights is above 0 instead."""
    return positive_signs(wrapped_phases(stack, siren), siren)


def wrapped_phases(stack: Stack, siren: Siren) -> dict[str, Tensor]:
    """Networks of the same function whose hidden phases ωb lie in ±π/2."""
    found = dict(stack)
    for layer in range(siren.depth - 1):
        bias, after = found[f"{layer}.bias"], found[f"{layer + 1}.weight"]
        turns = (bias * siren.omega / math.pi).round()
        found[f"{layer}.bias"] = bias - turns * math.pi / siren.omega
        found[f"{layer + 1}.weight"] = after * (1 - 2 * turns.remainder(2))[..., None, :]  # −1 after odd half turns
    return found


def positive_signs(stack: Stack, siren: Siren) -> dict[str, Tensor]:
    """Networks of the same function without negative phases: such neurons are negated with all their weights."""
    found = dict(stack)
    for layer in range(siren.depth - 1):
        weight, bias, after = (found[name] for name in (f"{layer}.weight", f"{layer}.bias", f"{layer + 1}.weight"))
        sign = _sign(torch.where(bias == 0, weight.sum(-1), bias))
        found |= {
            f"{layer}.weight": weight * sign[..., None],
            f"{layer}.bias": bias * sign,
            f"{layer + 1}.weight": after * sign[..., None, :],
        }
    return found


def _sign(values: Tensor) -> Tensor:
    """−1 or 1, never 0."""
    return torch.where(values < 0, -1.0, 1.0).to(values)


def move(stack: Stack, matrix: Float[Tensor, "N 2 2"], shift: Float[Tensor, "N 2"]) -> dict[str, Tensor]:
    """Networks that show at x what they showed at `matrix` x + `shift`: `[N, 2, 2]` and `[N, 2]`."""
    weight, bias = stack["0.weight"], stack["0.bias"]
    moved = torch.einsum("nhi,ni->nh", weight, shift)
    return dict(stack) | {"0.weight": weight @ matrix, "0.bias": bias + moved}


def recolour(
    stack: Stack, siren: Siren, matrix: Float[Tensor, "N C C"], shift: Float[Tensor, "N C"]
) -> dict[str, Tensor]:
    """Networks whose colours c are `matrix` c + `shift`: `[N, C, C]` and `[N, C]`."""
    last = siren.depth - 1
    weight, bias = stack[f"{last}.weight"], stack[f"{last}.bias"]
    return dict(stack) | {
        f"{last}.weight": matrix @ weight,
        f"{last}.bias": torch.einsum("nij,nj->ni", matrix, bias) + shift,
    }
