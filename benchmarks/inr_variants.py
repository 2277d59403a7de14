"""What the encoder of implicit networks could be instead: other initial values, signs, orders and updates, no graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from encoder_variants import ORDERS, LearnedWaves, Perceptron
from torch import Tensor, nn
from torch.func import vmap

from dnge_compress.core.errors import DataError
from dnge_compress.encoder.messages import RAW, Basis
from dnge_compress.encoder.network import NetworkEncoder
from dnge_compress.encoder.passes import GRU, States
from dnge_compress.graph.types import ModelGraph
from dnge_compress.inr import InrEncoder, InrEncoderConfig, InrReader
from dnge_compress.inr.chain import INPUT, OUTPUT, chain
from dnge_compress.inr.encoders import Reading
from dnge_compress.inr.functional_init import functional_init
from dnge_compress.inr.inputs import FEATURES, at_inference_scale, neuron_features, with_probes
from dnge_compress.inr.siren import AXES, Siren, Stack, spread_points
from dnge_compress.inr.symmetry import canonical, wrapped_phases

GAIN = 1.5  # of messages at first, where initial values are random
UPDATES: dict[str, Callable[[int], nn.Module]] = {"gru": GRU, "sine": lambda h: GRU(h, torch.sin), "mlp": Perceptron}


@dataclass(frozen=True)
class Variant:
    """Choices of an encoder for SIRENs.

    `signs`, of neurons and of all their weights, say nothing of the function. "canonical" makes every phase positive;
    "twins" puts each neuron beside its negative, at twice the cost; "free" leaves them as they are. `is_functional`
    initial values are those of the product; without them they are random, and weights are relative to their block's
    root mean square.
    """

    is_functional: bool = True
    signs: str = "canonical"
    order: str = "inference"
    update: str = "sine"
    directions: str = "forward"
    streams: tuple[tuple[Basis, ...], ...] = (RAW,)
    is_relative: bool = True
    is_rooted: bool = True
    has_learned_waves: bool = False
    hidden: int = 64
    embedding: int = 512
    output_hidden: int = 768


RANDOM = Variant(is_functional=False, embedding=256, output_hidden=0)


class VariantEncoder(InrReader):
    """SIRENs as vectors `[N, E]`, by the choices of a variant."""

    def __init__(self, variant: Variant, outputs: int = 1, probes: int = 0) -> None:
        super().__init__()
        self.variant, self.outputs, self.embedding = variant, outputs, variant.embedding
        h = variant.hidden
        self.learned = LearnedWaves() if variant.has_learned_waves else None
        streams = variant.streams + ((tuple(self.learned.waves),) if self.learned is not None else ())
        is_relative = variant.is_relative and not variant.is_functional
        passes = [
            ORDERS[variant.order](
                h,
                FEATURES + probes + (h if backward else 0),
                streams,
                backward=backward,
                nodes={INPUT: AXES, OUTPUT: outputs},
                is_relative=is_relative,
                is_rooted=variant.is_rooted,
                update=UPDATES[variant.update](h),
                norm=nn.Identity() if variant.is_functional else None,
            )
            for backward in ((False, True) if variant.directions == "both" else (False,))
        ]
        if variant.is_functional:
            functional_init(passes[0])
        else:
            for one in passes:
                nn.init.constant_(one.gain, GAIN)
        ends = outputs if outputs > 1 or variant.output_hidden else 0  # colours are not averaged
        self.network = NetworkEncoder(
            passes, embedding=variant.embedding, outputs=ends, output_hidden=variant.output_hidden
        )
        self.points = nn.Parameter(spread_points(probes)) if probes else None
        side = math.isqrt(h)
        self.picture_side = side if side**2 == h and variant.directions == "forward" else 0

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Embeddings `[N, E]` of stacked networks."""
        return self.network.embed(*self._inputs(stack, siren))

    def read(self, stack: Stack, siren: Siren) -> Reading:
        """Embeddings, and the outputs' states as if their channels were points of a grid."""
        if not self.picture_side:
            return super().read(stack, siren)
        side = self.picture_side
        states = self.states(stack, siren)["output"]
        return Reading(embedding=self(stack, siren), picture=states.unflatten(-1, (side, side)))

    def states(self, stack: Stack, siren: Siren) -> States:
        """Readout per node: space → `[N, U, H]`."""
        graph, weights, features = self._inputs(stack, siren)
        return vmap(lambda w, f: self.network.states(graph, w, f))(weights, features)

    def _inputs(self, stack: Stack, siren: Siren) -> tuple[ModelGraph, dict[str, Tensor], dict[str, Tensor]]:
        stack = canonical(stack, siren) if self.variant.signs == "canonical" else wrapped_phases(stack, siren)
        if self.variant.signs == "twins":
            stack, siren = lift(stack, siren)
        features = neuron_features(stack, siren)
        if self.points is not None:
            features = with_probes(features, stack, siren, self.points)
        if self.variant.is_functional:
            stack = at_inference_scale(stack, siren)
        return chain(siren.widths), dict(stack), features

    def backbone(self) -> Iterable[nn.Parameter]:
        """The pass that begins as inference."""
        return self.network.passes[0].parameters() if self.variant.is_functional else ()


def encoder_of(variant: Variant | None, outputs: int, probes: int = 0) -> InrReader:
    """The product's encoder, or a variant of it."""
    if variant is None:
        return InrEncoder(InrEncoderConfig(outputs=outputs, probes=probes))
    return VariantEncoder(variant, outputs, probes)


class FlatEncoder(InrReader):
    """A perceptron on all weights in a row, of one shape, its phases and signs canonical."""

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


def _unit(name: str, siren: Siren) -> float:
    """What brings a tensor near unit size: phases in radians, weights of the first layer by their fan-in."""
    return siren.widths[0] * 2.0 if name == "0.weight" else siren.omega


def lift(stack: Stack, siren: Siren) -> tuple[dict[str, Tensor], Siren]:
    """Networks of the same function with every hidden neuron beside its negative twin; negating a neuron permutes."""
    lifted = dict(stack)
    for layer in range(siren.depth):
        weight = lifted[f"{layer}.weight"]
        if layer > 0:
            weight = torch.cat([weight, -weight], -1) / 2
        if layer < siren.depth - 1:
            weight = torch.cat([weight, -weight], -2)
            bias = lifted[f"{layer}.bias"]
            lifted[f"{layer}.bias"] = torch.cat([bias, -bias], -1)
        lifted[f"{layer}.weight"] = weight
    inner = tuple(2 * width for width in siren.widths[1:-1])
    return lifted, Siren((siren.widths[0], *inner, siren.widths[-1]), siren.omega)
