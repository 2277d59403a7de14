"""What leaves a SIREN's function as it is, and what moves its picture: both exact, both on the weights alone.

A hidden neuron v·sin(ω(wx + b)) is the same with (w, b, v) all negated, and with b shifted by π/ω and v negated. An
encoder that is equivariant to permutations sees neither. `canonical` takes both away: phases ωb lie in 0 … π/2, or in
±π/2 where signs stay as they are. `lift` makes the first a permutation, which has no edge that a phase could cross:
every neuron stands beside its negative twin, at half weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dnge_compress.inr.siren import Siren, Stack


def lift(stack: Stack, siren: Siren) -> tuple[dict[str, Tensor], Siren]:
    """Networks of the same function with every hidden neuron beside its negative twin; negating a neuron permutes."""
    lifted = dict(stack)
    for layer in range(siren.depth):
        weight = lifted[f"{layer}.weight"]
        if layer > 0:
            weight = torch.cat([weight, -weight], -1) / 2
        if layer < siren.depth - 1:
            weight = torch.cat([weight, -weight], -2)
            bias = lifted[f"{layer}.bias"]
            lifted[f"{layer}.bias"] = torch.cat([bias, -bias], -1)
        lifted[f"{layer}.weight"] = weight
    inner = tuple(2 * width for width in siren.widths[1:-1])
    return lifted, Siren((siren.widths[0], *inner, siren.widths[-1]), siren.omega)


def canonical(stack: Stack, siren: Siren, *, signed: bool = True) -> dict[str, Tensor]:
    """Networks of the same function whose hidden phases ωb lie in 0 … π/2, or in ±π/2 if they are not `signed`.

    Where a phase is 0, the sum of the neuron's incoming weights is above 0 instead.
    """
    found = dict(stack)
    for layer in range(siren.depth - 1):
        weight, bias, after = (found[name] for name in (f"{layer}.weight", f"{layer}.bias", f"{layer + 1}.weight"))
        turns = (bias * siren.omega / math.pi).round()
        bias = bias - turns * math.pi / siren.omega
        after = after * (1 - 2 * turns.remainder(2))[..., None, :]  # −1 after an odd number of half turns
        if signed:
            sign = _sign(torch.where(bias == 0, weight.sum(-1), bias))
            weight, bias, after = weight * sign[..., None], bias * sign, after * sign[..., None, :]
        found |= {f"{layer}.weight": weight, f"{layer}.bias": bias, f"{layer + 1}.weight": after}
    return found


def _sign(values: Tensor) -> Tensor:
    """−1 or 1, never 0."""
    return torch.where(values < 0, -1.0, 1.0).to(values)


def move(stack: Stack, matrix: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Networks that show at x what they showed at `matrix` x + `shift`: `[N, 2, 2]` and `[N, 2]`."""
    weight, bias = stack["0.weight"], stack["0.bias"]
    moved = torch.einsum("nhi,ni->nh", weight, shift)
    return dict(stack) | {"0.weight": weight @ matrix, "0.bias": bias + moved}


def recolour(stack: Stack, siren: Siren, matrix: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Networks whose colours c are `matrix` c + `shift`: `[N, C, C]` and `[N, C]`."""
    last = siren.depth - 1
    weight, bias = stack[f"{last}.weight"], stack[f"{last}.bias"]
    return dict(stack) | {
        f"{last}.weight": matrix @ weight,
        f"{last}.bias": torch.einsum("nij,nj->ni", matrix, bias) + shift,
    }
