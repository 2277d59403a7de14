"""NetworkEncoder: whole networks as vectors, by the same sweeps that score the units of one.

After the DNG-Encoder (arXiv 2607.02166), with parameters shared over time, and a readout that pools the states of all
nodes: any width and depth can be read (how far what was learned at one carries to another is measured:
benchmarks/results/dng_paper.md).

Letters: U units, H hidden size, F node features, E size of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import vmap

from dnge_compress.core.errors import UnknownNameError, refuse_below
from dnge_compress.encoder.messages import MAGNITUDE, RAW, refuse_unknown
from dnge_compress.encoder.sweeps import UPDATES, States, Sweep
from dnge_compress.encoder.walk import ORDERS, side_by_side, walk
from dnge_compress.graph.types import ModelGraph

DIRECTIONS = ("both", "forward")


@dataclass(frozen=True)
class NetworkEncoderConfig:
    """Sizes of an encoder of whole networks, and the choices that its ablations vary.

    `nodes` are the spaces whose units are known apart (inputs, outputs) and have learned vectors, space → units.
    `ends` units of the space that is written last are read side by side, each by weights of its own, by `ends_hidden`
    units (0: 2 · `hidden`); with `ends` 0 their mean is read as other spaces' are, however many there are. `rounds`
    counts forward-and-backward pairs. `streams` are the basis functions φ of each stream of messages; `is_relative`
    takes weights relative to their block's root mean square, and `hears_scale` tells updates its log. `order`,
    `update`, `gain`, `is_rooted` and `is_normed` are those of `walk` and `Sweep`.
    """

    nodes: Mapping[str, int] = field(default_factory=dict)
    features: int = 1
    ends: int = 0
    ends_hidden: int = 0
    hidden: int = 64
    embedding: int = 256
    rounds: int = 1
    directions: str = "both"
    order: str = "inference"
    update: str = "gru"
    streams: tuple[tuple[str, ...], ...] = (RAW, MAGNITUDE)
    is_relative: bool = True
    hears_scale: bool = True
    gain: float = 1.5
    is_rooted: bool = True
    is_normed: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", tuple(tuple(s) for s in self.streams))  # JSON knows lists only
        refuse_below(1, features=self.features, hidden=self.hidden, embedding=self.embedding, rounds=self.rounds,
                     streams=len(self.streams))  # fmt: skip
        refuse_below(0, ends=self.ends, ends_hidden=self.ends_hidden)
        for what, value, known in (
            ("directions", self.directions, DIRECTIONS),
            ("order", self.order, ORDERS),
            ("update", self.update, tuple(UPDATES)),
        ):
            if value not in known:
                raise UnknownNameError(what, value, known)
        for stream in self.streams:
            refuse_below(1, functions_of_a_stream=len(stream))
            refuse_unknown(stream)


class NetworkEncoder(nn.Module):
    """Reads a network, or many of one shape, into vectors `[E]`; states of single nodes are there too."""

    def __init__(self, config: NetworkEncoderConfig) -> None:
        super().__init__()
        self.config = config
        h, f = config.hidden, config.features
        directions = (False, True) if config.directions == "both" else (False,)
        self.sweeps = nn.ModuleList(
            Sweep(h, f + (h if i else 0), config.streams, backward=backward, nodes=config.nodes,
                  is_relative=config.is_relative, hears_scale=config.hears_scale, update=config.update,
                  gain=config.gain, is_rooted=config.is_rooted, is_normed=config.is_normed)
            for i, backward in enumerate(directions * config.rounds)
        )  # fmt: skip
        size, last = len(self.sweeps) * h, config.ends_hidden if config.ends and config.ends_hidden else 2 * h
        self.pooled = nn.Sequential(nn.Linear(size, 2 * h), nn.SiLU())
        self.beside = nn.Sequential(nn.Linear(config.ends * size, last), nn.SiLU()) if config.ends else None
        self.joined = nn.Sequential(
            nn.Linear(3 * 2 * h + last, config.embedding), nn.SiLU(), nn.LayerNorm(config.embedding)
        )

    def forward(self, graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """The embedding `[E]` of one network, from node features per space `[U, F]`."""
        return self.read(graph, self.states(graph, weights, features))

    def states(self, graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> States:
        """Per-node readout: the states of all sweeps side by side, space → `[U, sweeps · H]`."""
        return side_by_side(walk(list(self.sweeps), graph, weights, features, order=self.config.order))

    def read(self, graph: ModelGraph, states: States) -> Tensor:
        """Per-network readout `[E]`: the first and the last written inner space, all of them, and the outputs."""
        written = list(dict.fromkeys(name for step in graph.steps for name in step.writes))
        inner = [name for name in written if graph.space(name).kind != "fixed"] or written
        means = {name: self.pooled(states[name]).mean(0) for name in written}
        everything = torch.stack([means[name] for name in inner]).mean(0)
        last = self.beside(states[written[-1]].flatten()) if self.beside else means[written[-1]]
        return self.joined(torch.cat([means[inner[0]], means[inner[-1]], everything, last]))

    def embed(self, graph: ModelGraph, stack: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """Embeddings `[N, E]` of N networks of one shape: stacked weights `[N, …]`, features `[N, U, F]`."""
        return vmap(lambda w, f: self(graph, w, f))(dict(stack), dict(features))
