"""The plain networks of the zoo: a multilayer perceptron and a convolutional network for images."""

from __future__ import annotations

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}


class MLP(nn.Module):
    """Flattened image to logits through hidden layers of the given widths."""

    def __init__(
        self, features: int, widths: tuple[int, ...], *, classes: int, activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        for before, width in zip((features, *widths), widths, strict=False):
            self.hidden.append(nn.Linear(before, width))
            self.hidden.append(ACTIVATIONS[activation]())
            if dropout:
                self.hidden.append(nn.Dropout(dropout))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, classes]."""
        return self.head(self.hidden(images.flatten(1)))


class CNN(nn.Module):
    """3x3 convolutions of the given widths that halve the image three times, then one linear layer.

    `shrink` is "stride" or "pool", `head` "average" (over positions) or "flatten".
    """

    def __init__(
        self,
        image: tuple[int, int],
        widths: tuple[int, ...],
        *,
        classes: int,
        activation: str,
        batch_norm: bool,
        layout: tuple[str, str],
    ) -> None:
        super().__init__()
        (channels, side), (shrink, head), depth = image, layout, len(widths)
        halving = halvings(depth)
        self.convolutions = nn.Sequential()
        for i, (before, width) in enumerate(zip((channels, *widths), widths, strict=False)):
            stride = 2 if i in halving and shrink == "stride" else 1
            self.convolutions.append(nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=not batch_norm))
            if batch_norm:
                self.convolutions.append(nn.BatchNorm2d(width))
            self.convolutions.append(ACTIVATIONS[activation]())
            if i in halving:
                side = (side + 1) // 2 if shrink == "stride" else side // 2
                if shrink == "pool":
                    self.convolutions.append(nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(1) if head == "average" else nn.Identity()
        self.head = nn.Linear(widths[-1] * (1 if head == "average" else side * side), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, classes]."""
        return self.head(self.pool(self.convolutions(images)).flatten(1))


def halvings(depth: int) -> set[int]:
    """Which of a CNN's `depth` convolutions are followed by (or have) a halving of the image: the first is."""
    return {k * depth // 3 for k in range(3)}
