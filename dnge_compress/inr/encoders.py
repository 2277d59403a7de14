"""The DNG encoder on implicit neural representations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from dnge_compress.core.errors import DataError, refuse_below
from dnge_compress.encoder.messages import RAW
from dnge_compress.encoder.network import NetworkEncoder
from dnge_compress.encoder.passes import GRU, MessagePass, States
from dnge_compress.graph.types import ModelGraph
from dnge_compress.inr.chain import INPUT, OUTPUT, chain
from dnge_compress.inr.functional_init import functional_init
from dnge_compress.inr.inputs import FEATURES, at_inference_scale, neuron_features, with_probes
from dnge_compress.inr.siren import AXES, Siren, Stack, spread_points
from dnge_compress.inr.symmetry import canonical


@dataclass(frozen=True, kw_only=True)
class InrEncoderConfig:
    """An encoder for SIRENs of the plane, with some number of outputs.

    Its message-passing pass is initialised as the network's own inference at as many points as states have channels
    (`hidden`; see functional_init.py), and learns from there. `output_hidden` is the width of the layer that reads
    the outputs' states, `embedding` the size of the result. `probes` points, learned, are sent through the network,
    and every node is given what it answers there: probe features (Kofinas et al. 2024, arXiv 2403.12143). They query
    the function, not the weights alone.
    """

    outputs: int = 1
    hidden: int = 64
    output_hidden: int = 768
    embedding: int = 512
    probes: int = 0

    def __post_init__(self) -> None:
        refuse_below(
            1, outputs=self.outputs, hidden=self.hidden, output_hidden=self.output_hidden, embedding=self.embedding
        )
        refuse_below(0, probes=self.probes)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader says of N networks: vectors, and a coarse picture `[N, colours, P, P]` where it holds one."""

    embedding: Float[Tensor, "N E"]
    picture: Float[Tensor, "N C P P"] | None = None


class InrReader(nn.Module):
    """What `INR2JLS` and `InrClassifier` read networks with: vectors of size `embedding`, of networks of `outputs`
    colours. `picture_side` is that of the pictures in its readings; 0 where there are none."""

    outputs: int
    embedding: int
    picture_side: int = 0

    def forward(self, stack: Stack, siren: Siren) -> Float[Tensor, "N E"]:
        """Vectors `[N, embedding]` of stacked networks. Raises DataError on networks that it can't read."""
        raise NotImplementedError

    def read(self, stack: Stack, siren: Siren) -> Reading:
        """What `forward` says, and a picture if it holds one. Raises DataError as `forward`."""
        return Reading(embedding=self(stack, siren))

    def backbone(self) -> Iterable[nn.Parameter]:
        """Parameters whose initial values mean something; they learn slower (`TrainSettings.backbone_lr_scale`)."""
        return ()


class InrEncoder(InrReader):
    """SIRENs of any width and depth as vectors `[N, E]`; permuting or negating neurons, or shifting their phases by
    half turns, changes nothing."""

    def __init__(self, config: InrEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.outputs, self.embedding = config.outputs, config.embedding
        side = math.isqrt(config.hidden)
        self.picture_side = side if side**2 == config.hidden else 0
        one = MessagePass(
            config.hidden,
            FEATURES + config.probes,
            (RAW,),
            nodes={INPUT: AXES, OUTPUT: config.outputs},
            is_relative=False,
            is_rooted=True,
            update=GRU(config.hidden, torch.sin),
            norm=nn.Identity(),
        )
        functional_init(one)
        self.network = NetworkEncoder(
            [one], embedding=config.embedding, outputs=config.outputs, output_hidden=config.output_hidden
        )
        self.points = nn.Parameter(spread_points(config.probes)) if config.probes else None

    def forward(self, stack: Stack, siren: Siren) -> Float[Tensor, "N E"]:
        """Embeddings `[N, E]` of stacked networks. Raises DataError on other numbers of inputs or outputs."""
        return self.network.embed(*self._inputs(stack, siren))

    def read(self, stack: Stack, siren: Siren) -> Reading:
        """Embeddings, and the outputs' states as a picture: their channels began as points of a grid."""
        if not self.picture_side:
            return super().read(stack, siren)
        graph, weights, features = self._inputs(stack, siren)

        def one(w: dict[str, Tensor], f: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            states = self.network.states(graph, w, f)
            return self.network.read(graph, states), states[OUTPUT]

        embedding, shown = vmap(one)(weights, features)
        return Reading(embedding=embedding, picture=shown.unflatten(-1, (self.picture_side, self.picture_side)))

    def states(self, stack: Stack, siren: Siren) -> States:
        """Readout per node: space ("input", "hidden1", …, "output") → `[N, U, H]`. Raises DataError as `forward`."""
        graph, weights, features = self._inputs(stack, siren)
        return vmap(lambda w, f: self.network.states(graph, w, f))(weights, features)

    def backbone(self) -> Iterable[nn.Parameter]:
        """All parameters of the message-passing pass, including those that are initialised at zero."""
        return self.network.passes[0].parameters()

    def _inputs(self, stack: Stack, siren: Siren) -> tuple[ModelGraph, dict[str, Tensor], dict[str, Tensor]]:
        """The graph of the networks, stacked weights, and node features."""
        ends = (AXES, self.config.outputs)
        if (siren.widths[0], siren.widths[-1]) != ends:
            raise DataError(f"networks {siren.widths} don't have the encoder's inputs and outputs {ends}")
        stack = canonical(stack, siren)
        features = neuron_features(stack, siren)
        if self.points is not None:
            features = with_probes(features, stack, siren, self.points)
        return chain(siren.widths), at_inference_scale(stack, siren), features
