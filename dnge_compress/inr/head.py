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
                nn.Sequential(Halving(i, o), nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout2d(config.dropout))
                for i, o in sizes
            )
        )
        self.perceptron = nn.Sequential(
            nn.Linear(w, w), nn.ReLU(), nn.Dropout(config.last_dropout), nn.Linear(w, classes)
        )

    def forward(self, latents: Float[Tensor, "N C L L"]) -> Float[Tensor, "N classes"]:
        """Logits `[N, classes]`."""
        return self.perceptron(self.convs(latents).mean((2, 3)))

    def missed(self, latents: Float[Tensor, "N C L L"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Cross-entropy, of pairs that are mixed if the config asks for it."""
        wanted = nnf.one_hot(labels, self.classes).float()
        if self.mixup:
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            order = torch.randperm(len(latents))
            latents, wanted = (torch.lerp(x[order], x, share) for x in (latents, wanted))
        return nnf.cross_entropy(self(latents).float(), wanted, label_smoothing=SMOOTHING)


class Halving(nn.Conv2d):
    """A convolution of 3 × 3 at every second pixel, as one matrix product: on so few pixels half the time of oneDNN's
    own, whose gradients in bfloat16 hold what memory held where a place of the kernel sees padding alone."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, stride=2, padding=1)

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """`[N, D, (H + 1) // 2, (W + 1) // 2]`."""
        padded = nnf.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        seen = padded.unfold(1, 3, 2).unfold(2, 3, 2).flatten(3)  # [N, h, w, C · 9]
        return nnf.linear(seen, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
