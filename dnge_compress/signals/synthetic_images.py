"""Random images with the statistics of photographs and drawings, on which vision models are calibrated.

Two processes: dead leaves, opaque shapes of power-law size that hide one another, whose edges, flat regions and
occlusions are those of photographs (Lee, Mumford & Huang 2001); and pen strokes on an even ground. Both are seeded
and about standardised: zero mean and unit variance over the images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CANVAS = 64  # pixels; larger leaf images are painted at this size and enlarged
LEAVES = 48
STROKES = 3
DRAWN_SHARE = 0.75  # of images with one channel
STROKE_POINTS = 24


# How leaves are painted: radii as shares of the side, standard deviations or amplitudes against an image of unit
# variance, and the exponent of the texture's spectrum.
SMALLEST, LARGEST = 0.04, 0.6
SHADING, TEXTURE, COLOUR, CONTRAST, TINT = 0.3, 0.25, 0.45, 0.1, 0.1
ROUGHNESS = 0.7


def random_images(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Images `[N, C, H, W]` as a vision model may know them: leaves in colour; grey ones are drawings mostly."""
    n = shape[0]
    drawn = round(DRAWN_SHARE * n) if shape[1] == 1 else 0
    makers = ((strokes, drawn), (dead_leaves, n - drawn))
    parts = [paint((count, *shape[1:]), generator) for paint, count in makers if count]
    return torch.cat(parts)[torch.randperm(n, generator=generator)]


def dead_leaves(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Images `[N, C, H, W]` of opaque leaves, each with a colour, a shading and a texture of its own."""
    n, channels, height, width = shape
    if max(height, width) > CANVAS:
        small = dead_leaves((n, channels, CANVAS, CANVAS), generator)
        large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear", align_corners=False)
        return large + 0.1 * _spectral(shape, 0.5, generator)
    y, x = (torch.linspace(-0.5, 0.5, size) for size in (height, width))
    y, x = y.view(1, -1, 1), x.view(1, 1, -1)
    image = _colours(n, channels, generator).expand(n, channels, height, width).clone()
    rough = _spectral(shape, ROUGHNESS, generator)
    for _ in range(LEAVES):
        centre = 1.2 * (torch.rand(2, n, 1, 1, generator=generator) - 0.5)
        angle = math.pi * torch.rand(n, 1, 1, generator=generator)
        # Areas that fall as a power law, density ∝ r⁻³, look alike at every distance.
        u = torch.rand(n, 1, 1, generator=generator)
        radius = (SMALLEST**-2 - u * (SMALLEST**-2 - LARGEST**-2)) ** -0.5
        stretch = torch.exp(0.4 * torch.randn(n, 1, 1, generator=generator))
        dx, dy = x - centre[0], y - centre[1]
        along = (dx * angle.cos() + dy * angle.sin()) / (radius * stretch)
        across = (dy * angle.cos() - dx * angle.sin()) / (radius / stretch)
        is_round = torch.rand(n, 1, 1, generator=generator) < 0.6
        distance = torch.where(is_round, (along.square() + across.square()).sqrt(), along.abs().maximum(across.abs()))
        soft = ((1 - distance) * radius * min(height, width) + 0.5).clamp(0, 1)[:, None]  # edges one pixel wide
        shading = SHADING * torch.randn(n, 1, 1, 1, generator=generator) * along[:, None].clamp(-1, 1)
        texture = TEXTURE * torch.rand(n, 1, 1, 1, generator=generator) * rough
        leaf = _colours(n, channels, generator) + shading + texture
        image = image + soft * (leaf - image)
    contrast = torch.exp(CONTRAST * torch.randn(n, 1, 1, 1, generator=generator))
    return image * contrast + TINT * torch.randn(n, channels, 1, 1, generator=generator)


def strokes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Images `[N, C, H, W]` of a few soft pen strokes near the middle of an even ground, as digits or icons are."""
    n, channels, height, width = shape
    y = torch.linspace(-0.5, 0.5, height).view(1, -1, 1, 1)
    x = torch.linspace(-0.5, 0.5, width).view(1, 1, -1, 1)
    t = torch.linspace(0, 1, STROKE_POINTS).view(1, 1, -1)
    pen = 0.03 + 0.04 * torch.rand(n, 1, 1, generator=generator)
    ink = torch.zeros(n, height, width)
    start = 0.5 * (torch.rand(n, 2, 1, generator=generator) - 0.5)
    for i in range(STROKES):
        turn, end = 0.7 * (torch.rand(2, n, 2, 1, generator=generator) - 0.5)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * turn + t**2 * end  # [N, 2, points]
        distance = ((x - curve[:, 0, None, None]).square() + (y - curve[:, 1, None, None]).square()).amin(-1).sqrt()
        drawn = ((pen - distance) * min(height, width) + 0.5).clamp(0, 1)
        present = torch.rand(n, 1, 1, generator=generator) < (1.0 if i == 0 else 0.7)
        ink = ink.maximum(torch.where(present, drawn, torch.zeros(())))
        start = end
    ink = (ink - ink.mean()) / ink.std().clamp_min(1e-6)
    return ink[:, None].expand(n, channels, height, width).clone()


def _spectral(shape: tuple[int, ...], exponent: float, generator: torch.Generator) -> Tensor:
    """Unit-variance noise `[N, C, H, W]` whose amplitude falls as 1/f^exponent."""
    n, _, height, width = shape
    noise = torch.randn(shape, generator=generator)
    shared = torch.randn((n, 1, height, width), generator=generator)
    noise = (noise + math.sqrt(3.0) * shared) / 2.0  # natural images: colour channels correlate at about .9 to .7
    fy = torch.fft.fftfreq(height)[:, None]
    fx = torch.fft.rfftfreq(width)[None, :]
    amplitude = 1.0 / (fy.square() + fx.square()).sqrt().clamp_min(1.0 / max(height, width)) ** exponent
    filtered = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(height, width))
    return filtered / filtered.std()


def _colours(n: int, channels: int, generator: torch.Generator) -> Tensor:
    """Random colours `[N, C, 1, 1]`: mostly grey, as the world is."""
    grey = torch.randn(n, 1, 1, 1, generator=generator)
    return 0.9 * grey + COLOUR * torch.randn(n, channels, 1, 1, generator=generator)
