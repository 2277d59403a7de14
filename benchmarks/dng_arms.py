"""Who takes part in the tables of the paper's rows: encoders and rivals, and how many steps they learn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from encoder_variants import random_fourier
from inr_variants import RANDOM, FlatEncoder, Variant, encoder_of
from torch import Tensor, nn

from dnge_compress.core.errors import DataError
from dnge_compress.encoder.messages import MAGNITUDE, RAW
from dnge_compress.inr import InrReader, TrainSettings
from dnge_compress.inr.siren import Siren, Stack

SIDE = {"mnist": 28, "cifar10": 32}
COLOURS = {"mnist": 1, "cifar10": 3}
PROBES = {"mnist": 196, "cifar10": 256}  # points, in a square at first


@dataclass(frozen=True)
class Arm:
    """Who reads the networks: what the tables call it, the variant of the encoder (None: the product's own), whether it
    probes, the share of the rate at which what begins as inference learns, and other readers than a graph."""

    told: str
    variant: Variant | None = None
    is_probing: bool = False
    backbone_lr_scale: float = TrainSettings.backbone_lr_scale
    reader: str = "graph"  # or "flat", a perceptron on the weights, or "none": nothing encodes


ARMS = {
    "dng": Arm("DNG"),
    "fixed": Arm("DNG whose walk stays as it began", backbone_lr_scale=0.0),
    "static": Arm("static graph", Variant(order="static")),
    "fair-static": Arm("static graph that hears messages alone: the same function", Variant(order="fair static")),
    "remembering": Arm("static graph that begins as inference", Variant(order="remembering")),
    "probes": Arm("DNG with probes", is_probing=True),
    "random": Arm("DNG, random initial values", RANDOM),
    "random-wide": Arm("DNG, random initial values, as large", Variant(is_functional=False)),
    "random-static": Arm("static graph, random initial values", replace(RANDOM, order="static")),
    "random-probes": Arm("DNG with probes, random initial values", RANDOM, is_probing=True),
    "free-probes": Arm("DNG with probes, random initial values, signs as fitting left them",
                       replace(RANDOM, signs="free"), is_probing=True),
    "flat": Arm("flat perceptron", reader="flat"),
    "rendered": Arm("rendered, then classified", reader="none"),
}  # fmt: skip

FREE = replace(RANDOM, signs="free")
ABLATIONS: dict[str, Variant | None] = {
    "begins as inference": None,
    "begins as inference, order shuffled": Variant(order="shuffled"),
    "begins as inference, static graph, three rounds": Variant(order="static"),
    "as large, random initial values": Variant(is_functional=False),
    "free signs, forward, raw weights, sine candidates": FREE,
    "canonical signs": RANDOM,
    "neurons beside their negative twins": replace(RANDOM, signs="twins"),
    "order shuffled": replace(FREE, order="shuffled"),
    "static graph, three rounds": replace(FREE, order="static"),
    "GRU (tanh candidates)": replace(FREE, update="gru"),
    "MLP for the GRU": replace(FREE, update="mlp"),
    "both passes": replace(FREE, directions="both"),
    "φ = {W}, {|W|, W²}": replace(FREE, streams=(RAW, MAGNITUDE)),
    "φ = {W}, learned sines and cosines": replace(FREE, has_learned_waves=True),
    "φ = {W} as it is, means over sources": replace(FREE, is_relative=False, is_rooted=False),
    "φ = 256 random Fourier features of W as it is, means over sources": replace(
        FREE, streams=(random_fourier(256),), is_relative=False
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
    Run("order-mnist", ("dng", "remembering", "fair-static"), (400,)),
    Run("order-mnist", ("dng",), (1000,)),  # as many minutes as the static graphs take for 400
    Run("order-cifar10", ("dng", "remembering"), (400,)),
    Run("order-cifar10", ("dng",), (1000,)),
    Run("width", ("dng",), (3000,)),
    Run("width", ("random",), (12000,)),
)  # fmt: skip


def graph_encoder(arm: Arm, data: str) -> InrReader:
    """The dynamic or static encoder of an arm, for networks of these pictures."""
    return encoder_of(arm.variant, COLOURS[data], PROBES[data] if arm.is_probing else 0)


def reader(arm: Arm, data: str, siren: Siren) -> InrReader:
    """Whatever encodes an arm's networks for INR2JLS."""
    return FlatEncoder(siren, RANDOM.embedding) if arm.reader == "flat" else graph_encoder(arm, data)


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
