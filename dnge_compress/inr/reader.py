"""The DNG encoder on implicit neural representations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.func import vmap

from dnge_compress.core.errors import DataError, UnknownNameError, refuse_below
from dnge_compress.encoder.messages import RAW
from dnge_compress.encoder.network import NetworkEncoder, NetworkEncoderConfig
from dnge_compress.encoder.sweeps import States
from dnge_compress.graph.types import ModelGraph
from dnge_compress.inr.chain import INPUT, OUTPUT, chain
from dnge_compress.inr.initial import begin_as_inference
from dnge_compress.inr.siren import AXES, Siren, Stack, grid, spread
from dnge_compress.inr.symmetry import canonical, lift

PLACES = 5  # a side of the grid of points at which first-layer neurons are looked at
SIGNS = ("canonical", "twins", "free")
INITIAL = ("inference", "random")
FEATURES = 3 + 2 * PLACES**2  # of a neuron: its phase, sine and cosine of it, and both for its weights at the points

# What reads SIRENs best in the time that it takes (dev/LOG.md): raw weights, forward, and sines as the networks have.
NETWORK = NetworkEncoderConfig(streams=(RAW,), directions="forward", update="sine", ends_hidden=768, embedding=512)
INFERENCE: dict[str, Any] = {"is_relative": False, "hears_scale": False, "is_rooted": True, "is_normed": False}
SETTLED = ("streams", "directions", "update", "rounds", "gain", *INFERENCE)  # by a walk that begins as inference


@dataclass(frozen=True)
class InrEncoderConfig:
    """An encoder for SIRENs of the plane, with some number of outputs.

    `signs`, of neurons and of all their weights, say nothing of the function. "canonical" makes every phase positive;
    "twins" puts each neuron beside its negative, which no small change of a weight flips, at twice the cost; "free"
    leaves them as they are. `initial` values of "inference" make the walk the network's own inference before anything
    is learned, at as many points as states have channels; weights are then taken at the scale that inference gives
    them, so that what neurons hear doesn't change with a network's width, if it was fitted by maximal update
    parametrisation. They are set whatever the `order` of the walk is, but only in that of inference do they make one.
    "random" ones know nothing, and weights are relative to their block's. `probes` points, learned, are sent through
    the network, and every node hears what it answers there: probe features (Kofinas et al. 2024, arXiv 2403.12143).
    They ask the function, not the weights alone.
    """

    outputs: int = 1
    signs: str = "canonical"
    initial: str = "inference"
    probes: int = 0
    network: NetworkEncoderConfig = NETWORK

    def __post_init__(self) -> None:
        refuse_below(1, outputs=self.outputs)
        refuse_below(0, probes=self.probes)
        if self.signs not in SIGNS:
            raise UnknownNameError("signs", self.signs, SIGNS)
        if self.initial not in INITIAL:
            raise UnknownNameError("initial", self.initial, INITIAL)
        if (self.network.nodes, self.network.features, self.network.ends) != ({}, 1, 0):
            raise DataError("nodes, features and ends of `network` follow from the SIRENs; leave them as they are")
        varied = [name for name in SETTLED if getattr(self.network, name) != getattr(NETWORK, name)]
        if self.initial == "inference" and varied:
            raise DataError(
                f"'{varied[0]}' follows from beginning as inference; leave it as it is, or use initial='random'"
            )


class Reader(nn.Module):
    """What `INR2JLS` and `InrClassifier` read networks with: vectors of size `embedding`, of networks of `outputs`
    colours."""

    outputs: int
    embedding: int

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Vectors `[N, embedding]` of stacked networks. Raises DataError on networks that it can't read."""
        raise NotImplementedError

    def begun(self) -> Iterable[nn.Parameter]:
        """The parameters of what knows something before it learns; they learn slower (`TrainSettings`)."""
        return ()


class InrEncoder(Reader):
    """SIRENs of any width and depth as vectors `[N, E]`; permuting neurons, shifting their phases by half turns and,
    unless signs are free, negating them changes nothing."""

    def __init__(self, config: InrEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.outputs, self.embedding = config.outputs, config.network.embedding
        nodes = {INPUT: AXES, OUTPUT: config.outputs}
        ends = config.outputs if config.outputs > 1 or config.network.ends_hidden else 0  # colours are not averaged
        known = replace(config.network, nodes=nodes, features=FEATURES + config.probes, ends=ends)
        begins = config.initial == "inference"
        if begins:
            known = replace(known, **INFERENCE)
        self.network = NetworkEncoder(known)
        if begins:
            begin_as_inference(self.network.sweeps[0])
        self.points = nn.Parameter(spread(config.probes)) if config.probes else None

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Embeddings `[N, E]` of stacked networks. Raises DataError on other numbers of inputs or outputs."""
        return self.network.embed(*self._heard(stack, siren))

    def states(self, stack: Stack, siren: Siren) -> States:
        """Readout per node: space ("input", "hidden1", …, "output") → `[N, U, H]`. Raises DataError as `forward`."""
        graph, weights, features = self._heard(stack, siren)
        return vmap(lambda w, f: self.network.states(graph, w, f))(weights, features)

    def begun(self) -> Iterable[nn.Parameter]:
        """All of the sweep that begins with the values of inference, those of zero too."""
        return self.network.sweeps[0].parameters() if self.config.initial == "inference" else ()

    def _heard(self, stack: Stack, siren: Siren) -> tuple[ModelGraph, dict[str, Tensor], dict[str, Tensor]]:
        """The graph of the networks, and stacked weights and node features as the walk hears them."""
        ends = (AXES, self.config.outputs)
        if (siren.widths[0], siren.widths[-1]) != ends:
            raise DataError(f"networks {siren.widths} don't have the encoder's inputs and outputs {ends}")
        stack = canonical(stack, siren, signed=self.config.signs == "canonical")
        if self.config.signs == "twins":
            stack, siren = lift(stack, siren)
        with torch.autocast("cpu", enabled=False):  # as `Siren.answers`
            features = {f"hidden{i}": _features(stack, siren, i - 1) for i in range(1, siren.depth)}
        if self.points is not None:
            features = _probed(features, stack, siren, self.points)
        if self.config.initial == "inference":
            stack = _at_scale(stack, siren)
        return chain(siren.widths), stack, features


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


def _at_scale(stack: Stack, siren: Siren) -> dict[str, Tensor]:
    """Phases and colours as inference adds them up; weights times the root of their number, as messages are over it."""
    found = {}
    for layer in range(siren.depth):
        scale = siren.omega if layer < siren.depth - 1 else 1.0
        found[f"{layer}.weight"] = stack[f"{layer}.weight"] * (scale * siren.widths[layer] ** 0.5)
        found[f"{layer}.bias"] = stack[f"{layer}.bias"] * scale
    return found


def _unit(name: str, siren: Siren) -> float:
    """What brings a tensor near unit size: phases in radians, weights of the first layer by their fan-in."""
    return siren.widths[0] * 2.0 if name == "0.weight" else siren.omega
