"""Views of a picture: the paper's six (itself, two flips, three rotations), and small random moves to learn from.

A move of the coordinates is exact on a SIREN's weights: its first layer takes it in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dnge_compress.core.errors import UnknownNameError
from dnge_compress.inr.siren import Siren, Stack
from dnge_compress.inr.symmetry import move, recolour

VIEWS = 6


def six_views(images: Float[Tensor, "N C S S"], views: Sequence[int] = range(VIEWS)) -> Float[Tensor, "N V C S S"]:
    """Images `[N, C, S, S]` as they are, flipped left to right and upside down, turned by 90°, −90° and 180°, or those
    of the six that are asked for: `[N, V, C, S, S]`."""
    flips, turns = ((), (-1,), (-2,), (), (), ()), (0, 0, 0, 1, -1, 2)
    return torch.stack([torch.rot90(images.flip(flips[v]), turns[v], (-2, -1)) for v in views], 1)


def in_views(images: Float[Tensor, "N C S S"], views: Sequence[int] | Int[Tensor, "N V"]) -> Float[Tensor, "N V C S S"]:
    """Images `[N, C, S, S]` in these of the six views, or each in its own."""
    if isinstance(views, Tensor):
        return six_views(images)[torch.arange(len(images))[:, None], views]
    return six_views(images, views)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """How far pictures are moved at random while learning; all bounds of uniform draws."""

    degrees: float = 0.0
    zoom: float = 0.0  # relative
    shear: float = 0.0
    shift: float = 0.0  # of half the side
    flip: bool = False
    contrast: float = 0.0  # relative
    brightness: float = 0.0


JITTERS = {
    "none": Jitter(),
    "mnist": Jitter(degrees=12, zoom=0.12, shear=0.12, shift=0.1),
    "cifar10": Jitter(degrees=8, zoom=0.15, shear=0.05, shift=0.15, flip=True, contrast=0.2, brightness=0.2),
}


def jitter_named(name: str) -> Jitter:
    """The bounds of that name. Raises UnknownNameError."""
    if name not in JITTERS:
        raise UnknownNameError("jitter", name, JITTERS)
    return JITTERS[name]


@dataclass(frozen=True, kw_only=True)
class Moves:
    """One draw for N pictures: where a point is looked up, `[N, 2, 2]` and `[N, 2]`, and what becomes of a colour."""

    matrix: Float[Tensor, "N 2 2"]
    shift: Float[Tensor, "N 2"]
    contrast: Float[Tensor, "N 1"]
    brightness: Float[Tensor, "N C"]

    @classmethod
    def draw(cls, jitter: Jitter, count: int, channels: int, generator: torch.Generator) -> Moves:
        """Moves for `count` pictures."""

        def uniform(bound: float, *shape: int) -> Tensor:
            return (torch.rand(count, *shape, generator=generator) * 2 - 1) * bound

        angle = uniform(math.radians(jitter.degrees))
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
        scale = torch.diag_embed(torch.exp(uniform(jitter.zoom, 2)))
        shear = torch.eye(2).repeat(count, 1, 1)
        shear[:, 0, 1] = uniform(jitter.shear)
        if jitter.flip:
            scale[:, 1, 1] *= torch.randint(2, (count,), generator=generator) * 2.0 - 1
        return cls(
            matrix=turn @ shear @ scale,
            shift=uniform(jitter.shift, 2),
            contrast=1 + uniform(jitter.contrast, 1),
            brightness=uniform(jitter.brightness, channels),
        )

    @classmethod
    def none(cls, count: int, channels: int) -> Moves:
        """Moves that leave `count` pictures as they are."""
        return cls.draw(Jitter(), count, channels, torch.Generator())

    @classmethod
    def joined(cls, parts: Sequence[Moves]) -> Moves:
        """The moves of several draws, one after the other."""
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def select(self, index: Tensor) -> Moves:
        """The moves at `index`."""
        return Moves(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def of_networks(self, stack: Stack, siren: Siren) -> dict[str, Tensor]:
        """The networks of the moved pictures."""
        channels = siren.widths[-1]
        matrix = self.contrast[..., None] * torch.eye(channels)
        return recolour(move(stack, self.matrix, self.shift), siren, matrix, self.brightness)

    def of_images(self, images: Float[Tensor, "N C S S"]) -> Float[Tensor, "N C S S"]:
        """The moved pictures `[N, C, S, S]`, by bilinear interpolation; beyond the edge it stays as the edge is."""
        swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # grid_sample's points are (column, row)
        theta = torch.cat([swap @ self.matrix @ swap, (self.shift @ swap)[..., None]], -1)
        where = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        moved = torch.nn.functional.grid_sample(images, where, padding_mode="border", align_corners=False)
        return moved * self.contrast[..., None, None] + self.brightness[..., None, None]
