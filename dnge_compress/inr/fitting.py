"""Fitting SIRENs to images, many at once: every image has a network and an initialisation of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dnge_compress.core.errors import DataError, refuse_below, refuse_rate
from dnge_compress.inr.siren import Siren, grid

WARM_UP = 20  # steps
BETAS = (0.9, 0.99)  # Adam's


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Adam's steps, its largest learning rate, and the stride of the pixels that one step looks at.

    With stride s a step sees every s-th pixel of every s-th row; s² consecutive steps see each pixel once. Above 0,
    `base_width` makes the rate of a matrix that reads hidden neurons fall as base_width / fan-in, as Adam's does under
    maximal update parametrisation (Yang et al. 2021): wide networks then learn as those of that width do.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    stride: int = 4
    base_width: int = 0

    def __post_init__(self) -> None:
        refuse_below(1, steps=self.steps, stride=self.stride)
        refuse_below(0, base_width=self.base_width)
        refuse_rate(self.learning_rate)

    def rate_of(self, name: str, values: Tensor) -> float:
        """Adam's largest rate for a stacked tensor, `"1.weight"` `[N, out, in]` for one."""
        inner = self.base_width and name.endswith("weight") and name != "0.weight"
        return self.learning_rate * (self.base_width / values.shape[-1] if inner else 1.0)


def fit(images: Tensor, siren: Siren, settings: FitSettings, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Networks for images `[N, C, S, S]` in −1 … 1, and their PSNR in decibels `[N]`, peak to peak 2.

    The same images, settings and seed give the same networks. Raises DataError.
    """
    if images.dim() != 4 or images.shape[2] != images.shape[3] or not len(images):
        raise DataError(f"images have shape {tuple(images.shape)}; give at least one, [N, C, S, S]")
    if images.shape[1] != siren.widths[-1]:
        raise DataError(f"images have {images.shape[1]} channels, the network {siren.widths[-1]}; they must agree")
    if not images.isfinite().all():
        raise DataError("images hold values that are not finite numbers")
    generator = torch.Generator().manual_seed(seed)
    stack = {name: values.requires_grad_() for name, values in siren.initial(len(images), generator).items()}
    rates = [{"params": [values], "lr": settings.rate_of(name, values)} for name, values in stack.items()]
    optimiser = torch.optim.Adam(rates, settings.learning_rate, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings.steps))
    colours = images.flatten(2).mT.contiguous()  # [N, S², C]
    parts = _interleaved(images.shape[-1], settings.stride)
    shown = [(grid(images.shape[-1])[part], colours[:, part]) for part in parts]
    for step in range(settings.steps):
        if step % len(parts) == 0:
            order = torch.randperm(len(parts), generator=generator).tolist()
        points, wanted = shown[order[step % len(parts)]]
        loss = (siren.render(stack, points) - wanted).square().mean((1, 2)).sum()  # each network's loss is its own
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    fitted = {name: values.detach() for name, values in stack.items()}
    if not all(values.isfinite().all() for values in fitted.values()):
        raise DataError(f"networks diverged at a learning rate of {settings.learning_rate}; lower it")
    return fitted, psnr(siren.images(fitted, images.shape[-1]), images)


def psnr(rendered: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels `[N]` of images `[N, C, S, S]` in −1 … 1."""
    return -10 * ((rendered - images) / 2).square().flatten(1).mean(1).clamp_min(1e-12).log10()


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _interleaved(side: int, stride: int) -> list[Tensor]:
    """The pixels of an image in stride² parts, each spread evenly over it."""
    pixels = torch.arange(side * side).view(side, side)
    return [pixels[row::stride, column::stride].flatten() for row in range(stride) for column in range(stride)]
