"""NetworkEncoder: whole networks as vectors, by the same message passing that scores the units of one.

After the DNG-Encoder (arXiv 2607.02166), with parameters shared over time, and a readout that pools the states of all
nodes: any width and depth can be read (how far what was learned at one carries to another is measured:
benchmarks/results/dng_paper.md).

Letters: U units, H size of a pass's states, F node features, E size of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from dnge_compress.core.errors import refuse_below
from dnge_compress.encoder.passes import MessagePass, States, run_passes
from dnge_compress.graph.types import ModelGraph


class NetworkEncoder(nn.Module):
    """Embeds a network, or many of one shape, as vectors `[E]`, by passes of message passing and a readout.

    The mean over a space's units is read, by the same weights for all spaces. Of the space that is written last,
    `outputs` units are read side by side instead, each by weights of its own, into `output_hidden` numbers; with
    `outputs` 0 their mean is read like others', however many there are.
    """

    def __init__(
        self, passes: Sequence[MessagePass], *, embedding: int = 256, outputs: int = 0, output_hidden: int = 0
    ) -> None:
        super().__init__()
        refuse_below(1, passes=len(passes), embedding=embedding)
        refuse_below(0, outputs=outputs, output_hidden=output_hidden)
        hidden = len(passes[0].mix.bias)
        pooled, size = 2 * hidden, len(passes) * hidden
        last = output_hidden if outputs and output_hidden else pooled
        self.passes = nn.ModuleList(passes)
        self.pooled = nn.Sequential(nn.Linear(size, pooled), nn.SiLU())
        self.outputs = nn.Sequential(nn.Linear(outputs * size, last), nn.SiLU()) if outputs else None
        self.joined = nn.Sequential(nn.Linear(3 * pooled + last, embedding), nn.SiLU(), nn.LayerNorm(embedding))

    def forward(
        self, graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Float[Tensor, "_ F"]]
    ) -> Float[Tensor, " E"]:
        """The embedding `[E]` of one network, from node features per space `[U, F]`."""
        return self.read(graph, self.states(graph, weights, features))

    def states(self, graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> States:
        """Per-node readout: the states of all passes side by side, space → `[U, passes · H]`."""
        return run_passes(self.passes, graph, weights, features)  # type: ignore[arg-type]  # a ModuleList of them

    def read(self, graph: ModelGraph, states: States) -> Float[Tensor, " E"]:
        """Per-network readout `[E]`: the first and the last written inner space, all of them, and the outputs."""
        written = list(dict.fromkeys(name for step in graph.steps for name in step.writes))
        inner = [name for name in written if graph.space(name).kind != "fixed"] or written
        means = {name: self.pooled(states[name]).mean(0) for name in written}
        everything = torch.stack([means[name] for name in inner]).mean(0)
        last = self.outputs(states[written[-1]].flatten()) if self.outputs else means[written[-1]]
        return self.joined(torch.cat([means[inner[0]], means[inner[-1]], everything, last]))

    def embed(
        self,
        graph: ModelGraph,
        stack: Mapping[str, Float[Tensor, "N ..."]],
        features: Mapping[str, Float[Tensor, "N _ F"]],
    ) -> Float[Tensor, "N E"]:
        """Embeddings `[N, E]` of N networks of one shape: stacked weights `[N, …]`, features `[N, U, F]`."""
        return vmap(lambda w, f: self(graph, w, f))(dict(stack), dict(features))
