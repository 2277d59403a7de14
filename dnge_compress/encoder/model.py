"""DNGEncoder: two passes and three readouts. It predicts corrections, in log nats, to the OBS costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.encoder.features import FEATURES
from dnge_compress.encoder.hub_encoder import HubEncoder
from dnge_compress.encoder.passes import MessagePass, States, run_passes
from dnge_compress.encoder.pooling import segment_mean
from dnge_compress.graph.types import ModelGraph


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, stored in the header of its weights: of its states, of the node features, and the `limit`
    of a correction in log nats."""

    hidden: int = 48
    features: int = FEATURES
    limit: float = 3.0

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, int) or not isinstance(self.features, int):
            raise TypeError(f"sizes of an encoder are whole numbers, not {self.hidden!r} and {self.features!r}")


@dataclass(frozen=True)
class Corrections:
    """Factors by which the OBS costs are wrong, as natural logs: one per space, one per layer `[L]`; and per weight
    matrix the log of its loss gradient's mean square."""

    spaces: Mapping[str, Float[Tensor, ""]]
    layers: Mapping[str, Float[Tensor, " _"]]
    matrices: Mapping[str, Float[Tensor, ""]]


class DNGEncoder(
    HubEncoder,
    library_name="dnge-compress",
    license="mit",
    tags=["dnge-compress", "graph-encoder", "structured-pruning"],
):
    """Passes messages over a network as a dynamic graph, forward and backward, and reads out spaces, layers, matrices.

    `forward(graph, weights, features, layer_costs)` takes tensors by name, node features per space `[U, F]`, and
    log layer costs; sizes, depths and families are free.
    """

    config_class = EncoderConfig

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config: EncoderConfig = config or EncoderConfig()
        h, f = self.config.hidden, self.config.features
        self.ahead = MessagePass(h, f)
        self.back = MessagePass(h, f + h, backward=True)
        self.space = _readout(2 * h + f)
        self.layer = _readout(2 * h + 1)
        self.matrix = _readout(4 * h)

    def forward(
        self,
        graph: ModelGraph,
        weights: Mapping[str, Tensor],
        features: Mapping[str, Float[Tensor, "_ F"]],
        layer_costs: Mapping[str, Float[Tensor, " _"]],
    ) -> Corrections:
        """Corrections for every prunable space, every block and every matrix of the network."""
        states = run_passes((self.ahead, self.back), graph, weights, features)
        return Corrections(
            {name: self._bounded(self._space(states[name], x)) for name, x in features.items()},
            self._layers(graph, states, layer_costs),
            self._matrices(graph, states),
        )

    def _space(self, states: Tensor, features: Tensor) -> Tensor:
        """From the mean unit of a space, a scalar."""
        return self.space(torch.cat([states, features], -1).mean(0)).squeeze(-1)

    def _layers(self, graph: ModelGraph, states: States, costs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per block, from the mean state of the units inside it and its measured cost."""
        found = {}
        for space in graph.of_kind("layer"):
            inside = [_states_inside(graph, states, module) for module in space.modules]
            bounds = torch.tensor([0, *(len(s) for s in inside)]).cumsum(0).to(inside[0].device)
            # What trains is batched over encoders, which segment reductions can't be.
            pooled = (
                torch.stack([s.mean(0) for s in inside]) if self.training else segment_mean(torch.cat(inside), bounds)
            )
            read = self.layer(torch.cat([pooled, costs[space.name][:, None]], -1))
            found[space.name] = self._bounded(read.squeeze(-1))
        return found

    def _matrices(self, graph: ModelGraph, states: States) -> dict[str, Tensor]:
        means = {name: s.mean(0) for name, s in states.items()}
        found = {}
        for step in graph.steps:
            for param in step.params:
                if param.endswith("weight") and step.reads and step.op not in ("norm", "batchnorm", "embed"):
                    pair = torch.cat([means[step.reads[0]], means[step.writes[0]]])
                    found[param] = self.matrix(pair).squeeze(-1)
        return found

    def _bounded(self, x: Tensor) -> Tensor:
        return self.config.limit * torch.tanh(x / self.config.limit)


def _readout(inputs: int) -> nn.Sequential:
    """A small MLP whose last layer starts at zero: an untrained encoder leaves the OBS costs as they are."""
    last = nn.Linear(64, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), last)


def _states_inside(graph: ModelGraph, states: States, module: str) -> Tensor:
    """States of all units whose space lies wholly inside a block; of what it writes, if there is none."""
    prefix = f"{module}."
    spaces = graph.spaces_within(prefix)
    if not spaces:
        spaces = (next(s.writes[0] for s in graph.steps if any(p.startswith(prefix) for p in s.params)),)
    return torch.cat([states[s] for s in spaces])
