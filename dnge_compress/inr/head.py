"""The classifier of latents: three strided convolutions and a perceptron, of the size that INR2JLS's authors use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor, nn

from dnge_compress.core.errors import DataError, refuse_below
from dnge_compress.inr.classifier import SMOOTHING


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Width of the convolutions and of the perceptron, and shares of their inputs that are dropped while it learns.

    `mixup` above 0 learns from pairs of networks mixed in shares drawn from Beta(mixup, mixup) (arXiv 1710.09412).
    """

    width: int = 256
    dropout: float = 0.2
    last_dropout: float = 0.5
    mixup: float = 0.0

    def __post_init__(self) -> None:
        refuse_below(1, width=self.width)
        refuse_below(0, mixup=self.mixup)
        for name, value in (("dropout", self.dropout), ("last_dropout", self.last_dropout)):
            if not 0 <= value < 1:
                raise DataError(f"{name} is {value}; it must be at least 0 and below 1")


class LatentHead(nn.Module):
    """Logits `[N, classes]` of latents `[N, C, L, L]`, each a view of its own."""

    def __init__(self, channels: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.classes, self.mixup = classes, config.mixup
        w = config.width
        sizes = ((channels, w), (w, w), (w, w))
        self.convs = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout2d(config.dropout))
                for i, o in sizes
            )
        )
        self.perceptron = nn.Sequential(
            nn.Linear(w, w), nn.ReLU(), nn.Dropout(config.last_dropout), nn.Linear(w, classes)
        )

    def forward(self, latents: Float[Tensor, "N C L L"]) -> Float[Tensor, "N classes"]:
        """Logits `[N, classes]`."""
        found = latents.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            found = _of_one_pixel(conv, found) if found.shape[2:].numel() == 1 else conv(found)
        return self.perceptron(found.mean((2, 3)))

    def missed(self, latents: Float[Tensor, "N C L L"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Cross-entropy, of pairs that are mixed if the config asks for it."""
        wanted = nnf.one_hot(labels, self.classes).float()
        if self.mixup:
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            order = torch.randperm(len(latents))
            latents, wanted = (torch.lerp(x[order], x, share) for x in (latents, wanted))
        return nnf.cross_entropy(self(latents).float(), wanted, label_smoothing=SMOOTHING)


def _of_one_pixel(conv: nn.Module, pixel: Float[Tensor, "N C 1 1"]) -> Float[Tensor, "N D 1 1"]:
    """In float32: in bfloat16 oneDNN leaves gradients of kernel places that see padding alone as memory held them."""
    with torch.autocast("cpu", enabled=False):
        found: Tensor = conv(pixel.float())
        return found
