"""The DNG encoder on implicit neural representations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dnge_compress.encoder.messages import RAW
from dnge_compress.encoder.network import NetworkEncoder, NetworkEncoderConfig
from dnge_compress.errors import DataError, UnknownNameError, refuse_below
from dnge_compress.inr.chain import INPUT, OUTPUT, chain
from dnge_compress.inr.siren import Siren, Stack, grid
from dnge_compress.inr.symmetry import canonical, lift

PLACES = 5  # a side of the grid of points at which first-layer neurons are looked at
AXES = 2  # inputs: row and column
SIGNS = ("canonical", "twins", "free")
FEATURES = 3 + 2 * PLACES**2  # of a neuron: its phase, sine and cosine of it, and both for its weights at the points


# What reads SIRENs best in the time that it takes (dev/LOG.md): raw weights, forward, and sines as the networks have.
NETWORK = NetworkEncoderConfig(streams=(RAW,), directions="forward", update="sine")


@dataclass(frozen=True)
class InrEncoderConfig:
    """An encoder for SIRENs of the plane, with some number of outputs.

    `signs`, of neurons and of all their weights, say nothing of the function. "canonical" makes every phase positive;
    "twins" puts each neuron beside its negative, which no small change of a weight flips, at twice the cost; "free"
    leaves them as they are. `is_absolute` takes weights at the scale that inference gives them, and not relative to
    their block's: what neurons hear then doesn't change with a network's width, if it was fitted by maximal update
    parametrisation. `probes` points, learned, are sent through the network, and every node hears what it answers there:
    probe features (Kofinas et al. 2024, arXiv 2403.12143). They know the function, not the weights alone.
    """

    outputs: int = 1
    signs: str = "canonical"
    is_absolute: bool = False
    probes: int = 0
    network: NetworkEncoderConfig = NETWORK

    def __post_init__(self) -> None:
        refuse_below(1, outputs=self.outputs)
        refuse_below(0, probes=self.probes)
        if self.signs not in SIGNS:
            raise UnknownNameError("signs", self.signs, SIGNS)
        if (self.network.nodes, self.network.features, self.network.ends) != ({}, 1, 0):
            raise DataError("nodes, features and ends of `network` follow from the SIRENs; leave them as they are")


class Reader(nn.Module):
    """What `INR2JLS` and `InrClassifier` read networks with: vectors of size `embedding`, of networks of `outputs`
    colours."""

    outputs: int
    embedding: int

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Vectors `[N, embedding]` of stacked networks. Raises DataError on networks that it can't read."""
        raise NotImplementedError


class InrEncoder(Reader):
    """SIRENs of any width and depth as vectors `[N, E]`; permuting neurons, shifting their phases by half turns and,
    unless signs are free, negating them changes nothing."""

    def __init__(self, config: InrEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.outputs, self.embedding = config.outputs, config.network.embedding
        nodes = {INPUT: AXES, OUTPUT: config.outputs}
        ends = config.outputs if config.outputs > 1 else 0  # colours are not averaged
        known = replace(config.network, nodes=nodes, features=FEATURES + config.probes, ends=ends)
        if config.is_absolute:
            known = replace(known, is_relative=False, hears_scale=False)
        self.network = NetworkEncoder(known)
        self.points = nn.Parameter(_spread(config.probes)) if config.probes else None

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Embeddings `[N, E]` of stacked networks. Raises DataError on other numbers of inputs or outputs."""
        ends = (AXES, self.config.outputs)
        if (siren.widths[0], siren.widths[-1]) != ends:
            raise DataError(f"networks {siren.widths} don't have the encoder's inputs and outputs {ends}")
        stack = canonical(stack, siren, signed=self.config.signs == "canonical")
        if self.config.signs == "twins":
            stack, siren = lift(stack, siren)
        features = {f"hidden{i}": _features(stack, siren, i - 1) for i in range(1, siren.depth)}
        if self.points is not None:
            features = _probed(features, stack, siren, self.points)
        if self.config.is_absolute:
            stack = _absolute(stack, siren)
        return self.network.embed(chain(siren.widths), stack, features)


class FlatEncoder(Reader):
    """A rival: a perceptron on all weights in a row, of one shape, its phases and signs canonical."""

    def __init__(self, siren: Siren, embedding: int, hidden: int = 512) -> None:
        super().__init__()
        self.siren = siren
        self.outputs, self.embedding = siren.widths[-1], embedding
        sizes = zip(siren.widths, siren.widths[1:], strict=False)
        self.layers = nn.Sequential(
            nn.LayerNorm(inputs := sum(i * o + o for i, o in sizes)),
            nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, embedding), nn.SiLU(), nn.LayerNorm(embedding),
        )  # fmt: skip

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Embeddings `[N, E]` of stacked networks. Raises DataError on another shape."""
        if siren.widths != self.siren.widths:
            raise DataError(f"networks {siren.widths} are not of the shape {self.siren.widths} that was trained for")
        found = canonical(stack, siren)
        return self.layers(torch.cat([found[name].flatten(1) * _unit(name, siren) for name in sorted(found)], 1))


def _features(stack: Stack, siren: Siren, layer: int) -> Tensor:
    """Features `[N, U, F]` of the neurons that a layer writes: Fourier features of the bias, and of all weights in the
    first layer, whose inputs are known apart."""
    phase = stack[f"{layer}.bias"] * siren.omega
    own = torch.stack([phase, phase.sin(), phase.cos()], -1)
    if layer:
        return nnf.pad(own, (0, FEATURES - own.shape[-1]))
    places = grid(PLACES).to(phase)
    waves = phase[..., None] + siren.omega * stack["0.weight"] @ places.T  # [N, U, places]
    return torch.cat([own, waves.sin(), waves.cos()], -1)


def _probed(features: dict[str, Tensor], stack: Stack, siren: Siren, points: Tensor) -> dict[str, Tensor]:
    """Features, and after them what every node answers at the points: `[N, U, F + P]`, the outputs' too."""
    answers = siren.answers(stack, points)
    names = [*(f"hidden{i}" for i in range(1, siren.depth)), OUTPUT]
    blank = answers[-1].new_zeros(*answers[-1].shape[:1], siren.widths[-1], FEATURES)
    return {n: torch.cat([features.get(n, blank), a.mT], -1) for n, a in zip(names, answers, strict=True)}


def _absolute(stack: Stack, siren: Siren) -> dict[str, Tensor]:
    """Weights times the root of their fan-in, near unit size in new networks: sums over that root are inference's."""
    root = {f"{layer}.weight": siren.widths[layer] ** 0.5 for layer in range(siren.depth)}
    return {name: t * root[name] * _unit(name, siren) if name in root else t for name, t in stack.items()}


def _spread(count: int) -> Tensor:
    """Points `[count, 2]` in −1 … 1: the centres of a grid's cells where the number is a square, else spread evenly."""
    side = math.isqrt(count)
    if side**2 == count:
        return grid(side)
    return torch.quasirandom.SobolEngine(AXES, scramble=True, seed=0).draw(count) * 2 - 1


def _unit(name: str, siren: Siren) -> float:
    """What brings a tensor near unit size: phases in radians, weights of the first layer by their fan-in."""
    return siren.widths[0] * 2.0 if name == "0.weight" else siren.omega
