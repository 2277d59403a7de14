"""SIREN (Sitzmann et al. 2020): an image as a small network from a point x to its colour,
f(x) = W₃ sin ω(W₂ sin ω(W₁x + b₁) + b₂) + b₃.

Many networks of one shape are one dict of stacked tensors, `"0.weight"` `[N, 32, 2]`, `"0.bias"` `[N, 32]`, …, as
`nn.Sequential` would name them without its sines. Points are (row, column) in −1 … 1, colours −1 … 1.

Letters: N networks, P points, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dnge_compress.core.errors import DataError, refuse_below

Stack = Mapping[str, Tensor]
AXES = 2  # inputs: row and column


@dataclass(frozen=True)
class Siren:
    """The shape of a network: widths from input to output, and the frequency ω of its sines."""

    widths: tuple[int, ...] = (2, 32, 32, 1)
    omega: float = 30.0

    def __post_init__(self) -> None:
        refuse_below(2, layers=len(self.widths))
        refuse_below(1, width=min(self.widths))
        if not self.omega > 0:
            raise DataError(f"omega is {self.omega}; it must be above 0")

    @property
    def depth(self) -> int:
        """Number of linear layers."""
        return len(self.widths) - 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of one network, by name, in order."""
        found: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            found |= {f"{layer}.weight": (fan_out, fan_in), f"{layer}.bias": (fan_out,)}
        return found

    def initial(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` networks with initial weights of their own: uniform, ±1/fan-in first and ±√(6/fan-in)/ω after it."""
        stack = {}
        for name, shape in self.shapes().items():
            fan_in = self.widths[layer := int(name.split(".")[0])]
            bound = 1 / fan_in if layer == 0 else (6 / fan_in) ** 0.5 / self.omega
            stack[name] = (torch.rand(count, *shape, generator=generator) * 2 - 1) * bound
        return stack

    def render(self, stack: Stack, points: Float[Tensor, "P 2"]) -> Float[Tensor, "N P C"]:
        """Colours `[N, P, C]` of every network at the points `[P, 2]`."""
        return self.answers(stack, points)[-1]

    def answers(self, stack: Stack, points: Float[Tensor, "P 2"]) -> list[Float[Tensor, "N P _"]]:
        """What every layer answers at the points `[P, 2]`: `[N, P, U]` each, the last one's the colours."""
        found = []
        x = points.expand(len(stack["0.weight"]), -1, -1)
        with torch.autocast("cpu", enabled=False):  # sines of ω times bfloat16 would be others'
            for layer in range(self.depth):
                x = torch.baddbmm(stack[f"{layer}.bias"][:, None], x, stack[f"{layer}.weight"].mT)
                if layer < self.depth - 1:
                    x = torch.sin(self.omega * x)
                found.append(x)
        return found

    def images(self, stack: Stack, side: int) -> Float[Tensor, "N C {side} {side}"]:
        """The networks as images `[N, C, side, side]`, colours clamped to −1 … 1."""
        colours = self.render(stack, grid(side).to(stack["0.weight"]))
        return colours.clamp(-1, 1).mT.unflatten(-1, (side, side))


def grid(side: int) -> Float[Tensor, "{side*side} 2"]:
    """Centres of the pixels of a square image, row by row: `[side², 2]`."""
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.cartesian_prod(line, line)


def spread_points(count: int) -> Float[Tensor, "{count} 2"]:
    """Points `[count, 2]` in −1 … 1: the centres of a grid's cells where the number is a square, else spread evenly."""
    side = math.isqrt(count)
    if side**2 == count:
        return grid(side)
    return torch.quasirandom.SobolEngine(AXES, scramble=True, seed=0).draw(count) * 2 - 1


def take(stack: Stack, index: Tensor | slice) -> dict[str, Tensor]:
    """The networks at `index`."""
    return {name: values[index] for name, values in stack.items()}
