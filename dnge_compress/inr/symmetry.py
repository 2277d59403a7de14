"""What leaves a SIREN's function as it is, and what moves its picture: both exact, both on the weights alone.

A hidden neuron v·sin(ω(wx + b)) is the same with (w, b, v) all negated, and with b shifted by π/ω and v negated. An
encoder that is equivariant to permutations sees neither. `lift` makes the first a permutation: every neuron stands
beside its negative twin, at half weight. `canonical` takes the second away: phases ωb lie in ±π/2.
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


def canonical(stack: Stack, siren: Siren) -> dict[str, Tensor]:
    """Networks of the same function whose hidden phases ωb lie in ±π/2."""
    found = dict(stack)
    for layer in range(siren.depth - 1):
        turns = (found[f"{layer}.bias"] * siren.omega / math.pi).round()
        found[f"{layer}.bias"] = found[f"{layer}.bias"] - turns * math.pi / siren.omega
        sign = 1 - 2 * turns.remainder(2)  # −1 after an odd number of half turns
        found[f"{layer + 1}.weight"] = found[f"{layer + 1}.weight"] * sign[..., None, :]
    return found


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
