"""Who takes part in the tables of the paper's rows: encoders, rivals and controls, and how many steps they learn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.encoder.messages import LEARNED, MAGNITUDE, RAW, random_fourier
from dnge_compress.errors import DataError
from dnge_compress.inr import FlatEncoder, InrEncoder, InrEncoderConfig
from dnge_compress.inr.reader import NETWORK, Reader
from dnge_compress.inr.siren import Siren, Stack

SIDE = {"mnist": 28, "cifar10": 32}
COLOURS = {"mnist": 1, "cifar10": 3}
PROBES = {"mnist": 196, "cifar10": 256}  # points, in a square at first


@dataclass(frozen=True)
class Arm:
    """Who reads the networks: what the tables call it, its encoder ("dynamic" or "static" graph, "flat" perceptron,
    "silent", "none" where nothing encodes), and what is asked of the function."""

    told: str
    encoder: str = "dynamic"
    signs: str = "canonical"
    is_probing: bool = False
    is_absolute: bool = False
    is_asking: bool = False


ARMS = {
    "dng": Arm("DNG"),
    "absolute": Arm("DNG, absolute weights", is_absolute=True),
    "probes": Arm("DNG with probes", is_probing=True),
    "asking": Arm("DNG, cells ask", is_asking=True),
    "silent-asking": Arm("no encoder, cells ask", "silent", is_asking=True),
    "free-probes": Arm("DNG with probes, signs as fitting left them", signs="free", is_probing=True),
    "static": Arm("static graph", "static"),
    "flat": Arm("flat perceptron", "flat"),
    "rendered": Arm("rendered, then classified", "none"),
}


def _varied(signs: str = "free", **choices: Any) -> InrEncoderConfig:
    return InrEncoderConfig(signs=signs, network=replace(NETWORK, **choices))


ABLATIONS = {
    "free signs, forward, raw weights, sine candidates": _varied(),
    "canonical signs": _varied("canonical"),
    "neurons beside their negative twins": _varied("twins"),
    "order shuffled": _varied(order="shuffled"),
    "static graph, three rounds": _varied(order="static"),
    "GRU (tanh candidates)": _varied(update="gru"),
    "MLP for the GRU": _varied(update="mlp"),
    "both sweeps": _varied(directions="both"),
    "φ = {W}, {|W|, W²}": _varied(streams=(RAW, MAGNITUDE)),
    "φ = {W}, learned sines and cosines": _varied(streams=(RAW, LEARNED)),
    "φ = {W} as it is, means over sources": _varied(is_relative=False, is_rooted=False),
    "φ = 256 random Fourier features of W as it is, means over sources": _varied(
        streams=(random_fourier(256),), is_relative=False
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Some arms of a part of the table, and steps of 128 networks; of INR2JLS to draw, to classify and to fine-tune."""

    part: str
    arms: tuple[str, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        wanted = 3 if self.part.startswith("jls-") else 1
        if len(self.steps) != wanted:
            raise DataError(
                f"'{self.part}' takes {wanted} numbers of steps, not {len(self.steps)}; choose parts alike by --only"
            )


RUNS = (
    Run("mnist", ("dng",), (12000,)),
    Run("mnist", ("absolute", "free-probes"), (3000,)),
    Run("cifar10", ("dng", "probes"), (3000,)),
    Run("jls-mnist", ("dng", "static", "flat", "rendered"), (600, 300, 150)),
    Run("jls-mnist", ("dng",), (960, 480, 240)),  # as many minutes as the static graph takes for 600
    Run("jls-mnist", ("asking", "silent-asking"), (300, 300, 300)),
    Run("jls-cifar10", ("dng", "static", "flat", "probes", "rendered"), (600, 300, 150)),
    Run("jls-cifar10", ("probes", "asking", "silent-asking", "rendered"), (300, 900, 1800)),
    Run("ablations", tuple(ABLATIONS), (1000,)),
    Run("width", ("dng",), (12000,)),
    Run("width", ("absolute",), (3000,)),
)


def graph_encoder(arm: Arm, data: str) -> InrEncoder:
    """The dynamic or static encoder of an arm, for networks of these pictures."""
    network = replace(NETWORK, order="static" if arm.encoder == "static" else "inference")
    probes = PROBES[data] if arm.is_probing else 0
    return InrEncoder(InrEncoderConfig(COLOURS[data], arm.signs, arm.is_absolute, probes, network))


def reader(arm: Arm, data: str, siren: Siren) -> Reader:
    """Whatever encodes an arm's networks for INR2JLS."""
    if arm.encoder == "flat":
        return FlatEncoder(siren, NETWORK.embedding)
    return Silent(COLOURS[data]) if arm.encoder == "silent" else graph_encoder(arm, data)


class Silent(Reader):
    """For a control: an encoder that says the same of every network."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.embedding = outputs, 1

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Zeros `[N, 1]`."""
        return stack["0.bias"].new_zeros(len(stack["0.bias"]), 1)


class Rendered(nn.Module):
    """The rival that has the function itself: the networks rendered on the grid of pixels, and convolutions."""

    def __init__(self, side: int, colours: int) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.Sequential(
            nn.Conv2d(colours, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout2d(0.2),
            nn.Conv2d(64, 96, 3, 2, 1), nn.BatchNorm2d(96), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.LazyLinear(10),
        )  # fmt: skip
        self.layers(torch.zeros(2, colours, side, side))

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Logits `[N, 10]`."""
        return self.layers(siren.images(stack, self.side))
