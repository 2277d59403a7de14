"""Who takes part in the tables of the paper's rows: encoders and rivals, and how many steps they learn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.core.errors import DataError
from dnge_compress.encoder.messages import LEARNED, MAGNITUDE, RAW, random_fourier
from dnge_compress.encoder.network import NetworkEncoderConfig
from dnge_compress.inr import FlatEncoder, InrEncoder, InrEncoderConfig, TrainSettings
from dnge_compress.inr.reader import NETWORK, Reader
from dnge_compress.inr.siren import Siren, Stack

SIDE = {"mnist": 28, "cifar10": 32}
COLOURS = {"mnist": 1, "cifar10": 3}
PROBES = {"mnist": 196, "cifar10": 256}  # points, in a square at first
NARROW = replace(NETWORK, ends_hidden=0, embedding=256)  # the readout of arms of random initial values, and of rivals


@dataclass(frozen=True)
class Arm:
    """Who reads the networks: what the tables call it, its encoder ("dynamic" or "static" graph, "flat" perceptron,
    "none" where nothing encodes), its initial values, signs, whether it probes, what else its network is, and the share
    of the rate at which what begins as inference learns."""

    told: str
    encoder: str = "dynamic"
    initial: str = "inference"
    signs: str = "canonical"
    is_probing: bool = False
    network: NetworkEncoderConfig = NETWORK
    begun_share: float = TrainSettings.begun_share


ARMS = {
    "dng": Arm("DNG"),
    "fixed": Arm("DNG whose walk stays as it began", begun_share=0.0),
    "static": Arm("static graph", "static"),
    "probes": Arm("DNG with probes", is_probing=True),
    "random": Arm("DNG, random initial values", initial="random", network=NARROW),
    "random-wide": Arm("DNG, random initial values, as large", initial="random"),
    "random-static": Arm("static graph, random initial values", "static", initial="random", network=NARROW),
    "random-probes": Arm("DNG with probes, random initial values", initial="random", is_probing=True, network=NARROW),
    "free-probes": Arm("DNG with probes, random initial values, signs as fitting left them", initial="random",
                       signs="free", is_probing=True, network=NARROW),
    "flat": Arm("flat perceptron", "flat", network=NARROW),
    "rendered": Arm("rendered, then classified", "none"),
}  # fmt: skip


def _varied(signs: str = "free", **choices: Any) -> InrEncoderConfig:
    return InrEncoderConfig(signs=signs, initial="random", network=replace(NARROW, **choices))


ABLATIONS = {
    "begins as inference": InrEncoderConfig(),
    "begins as inference, order shuffled": InrEncoderConfig(network=replace(NETWORK, order="shuffled")),
    "begins as inference, static graph, three rounds": InrEncoderConfig(network=replace(NETWORK, order="static")),
    "as large, random initial values": InrEncoderConfig(initial="random"),
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
    Run("mnist", ("dng", "fixed", "probes", "free-probes"), (3000,)),
    Run("mnist", ("random",), (12000,)),
    Run("cifar10", ("dng", "fixed", "probes", "random", "random-wide", "random-probes"), (3000,)),
    Run("jls-mnist", ("dng", "static", "random", "random-static", "flat", "rendered"), (600, 300, 150)),
    Run("jls-mnist", ("dng",), (600, 300, 2400)),
    Run("jls-mnist", ("random",), (960, 480, 240)),  # as many minutes as the static graph takes for 600
    Run("jls-cifar10", ("dng", "static", "random", "random-static", "random-probes", "flat", "rendered"),
        (600, 300, 150)),
    Run("jls-cifar10", ("dng",), (600, 300, 4800)),
    Run("jls-cifar10", ("random-probes",), (1800, 900, 450)),
    Run("ablations", tuple(ABLATIONS), (1000,)),
    Run("width", ("dng",), (3000,)),
    Run("width", ("random",), (12000,)),
)  # fmt: skip


def graph_encoder(arm: Arm, data: str) -> InrEncoder:
    """The dynamic or static encoder of an arm, for networks of these pictures."""
    network = replace(arm.network, order="static" if arm.encoder == "static" else "inference")
    probes = PROBES[data] if arm.is_probing else 0
    return InrEncoder(InrEncoderConfig(COLOURS[data], arm.signs, arm.initial, probes, network))


def reader(arm: Arm, data: str, siren: Siren) -> Reader:
    """Whatever encodes an arm's networks for INR2JLS."""
    if arm.encoder == "flat":
        return FlatEncoder(siren, arm.network.embedding)
    return graph_encoder(arm, data)


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
