"""What the encoder could be instead, built from its parts: other orders, basis functions, updates, or no messages."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FEATURES
from dnge_compress.encoder.messages import MAGNITUDE, RAW, Basis, Message
from dnge_compress.encoder.passes import MessagePass, States
from dnge_compress.encoder.snapshots import Snapshot, snapshots
from dnge_compress.graph.types import ModelGraph

STATIC_ROUNDS = 3
FREQUENCIES = (0.1, 0.2, 0.4, 0.8)


def sine(frequency: float) -> Basis:
    """A sine of fixed frequency."""
    return lambda w: (2 * torch.pi * frequency * w).sin()


def cosine(frequency: float) -> Basis:
    """A cosine of fixed frequency."""
    return lambda w: (2 * torch.pi * frequency * w).cos()


WAVES: tuple[Basis, ...] = tuple(wave(f) for f in FREQUENCIES for wave in (sine, cosine))


def random_fourier(features: int = 256, scale: float = 3.0, seed: int = 0) -> tuple[Basis, ...]:
    """The paper's φ: sines and cosines at `features` / 2 fixed frequencies from N(0, scale²), meant for weights as they
    are (`is_relative=False`)."""
    if features < 2 or features % 2:
        raise ValueError(f"there can't be {features} features; give an even number of sines and cosines, 2 at least")
    drawn = torch.randn(features // 2, generator=torch.Generator().manual_seed(seed)) * scale
    return tuple(wave(f) for f in drawn.tolist() for wave in (sine, cosine))


class LearnedWave(nn.Module):
    """A sine or cosine whose frequency is learned."""

    def __init__(self, frequency: float, is_sine: bool) -> None:
        super().__init__()
        self.frequency, self.is_sine = nn.Parameter(torch.tensor(frequency)), is_sine

    def forward(self, w: Tensor) -> Tensor:
        """φ of weights, elementwise."""
        phase = 2 * torch.pi * self.frequency * w
        return phase.sin() if self.is_sine else phase.cos()


class LearnedWaves(nn.Module):
    """Learned waves as a stream's basis; kept in a module, so that their frequencies are trained with it."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = nn.ModuleList(LearnedWave(f, is_sine) for f in FREQUENCIES for is_sine in (True, False))


class Perceptron(nn.Module):
    """An update without gates, one hidden layer over input and hidden state."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * size, 3 * size), nn.SiLU(), nn.Linear(3 * size, size))

    def forward(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """New hidden states `[U, H]` from inputs and hidden states `[U, H]`."""
        return self.layers(torch.cat([inputs, hidden], -1))


class NoMessages(MessagePass):
    """States from each unit's own features, as if no message ever came."""

    def forward(self, graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> States:
        """Space → `[U, H]`."""
        empty = self.mix.bias.new_zeros(1, len(self.mix.bias))
        own = {s.name: self._own(graph, s.name, features) for s in graph.spaces}
        return {name: self.norm(self.update(x, empty.expand(len(x), -1))) for name, x in own.items()}


class Nothing(nn.Module):
    """A pass that is left out: zeros."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden, self.features = hidden, nn.Linear(FEATURES + hidden, 1)  # of which only the size is looked at

    def forward(self, graph: ModelGraph, weights: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> States:
        """Space → zeros `[U, H]`."""
        like = next(iter(features.values()))
        return {s.name: like.new_zeros(s.units, self.hidden) for s in graph.spaces}


class Shuffled(MessagePass):
    """The steps one at a time, in a random but fixed order."""

    def ordered(self, graph: ModelGraph, weights: Mapping[str, Tensor]) -> Iterable[Sequence[Snapshot]]:
        """One snapshot at a time."""
        steps = list(snapshots(graph, weights, self.mix.weight.dtype))
        mixed = random.Random(graph.fingerprint).sample(steps, len(steps))
        if [s.step for s in mixed] == [s.step for s in steps]:  # one order in six, of three layers
            mixed = mixed[1:] + mixed[:1]
        return ([step] for step in (mixed[::-1] if self.backward_in_time else mixed))


class Static(MessagePass):
    """All layers at once, a few times: a static graph."""

    def ordered(self, graph: ModelGraph, weights: Mapping[str, Tensor]) -> Iterable[Sequence[Snapshot]]:
        """All snapshots together."""
        steps = list(snapshots(graph, weights, self.mix.weight.dtype))
        return [steps[::-1] if self.backward_in_time else steps] * STATIC_ROUNDS


class FairStatic(Static):
    """A static graph whose updates hear messages alone and not what a unit was before. After as many rounds as a chain
    has layers it is the dynamic graph, whatever was learned: a layer's state comes from that of the one before."""

    def _updated(
        self, graph: ModelGraph, together: Iterable[Snapshot], memory: States, features: Mapping[str, Tensor]
    ) -> States:
        updated: States = {}
        for step in together:
            targets = {self._target(edge) for edge in step.edges}
            others = {name: values for name, values in memory.items() if name not in targets}
            updated |= super()._updated(graph, [step], others, features)
        return updated


class Remembering(Static):
    """A static graph whose updates hear a learned share of what a unit was before, none at first: it begins as the
    dynamic graph does, and can learn what that one can't."""

    def __init__(self, hidden: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(hidden, *args, **kwargs)
        self.remembered = nn.Parameter(torch.zeros(hidden))

    def _updated(
        self, graph: ModelGraph, together: Iterable[Snapshot], memory: States, features: Mapping[str, Tensor]
    ) -> States:
        updated: States = {}
        for step in together:
            told = dict(memory)
            for name in {self._target(edge) for edge in step.edges} & memory.keys():
                own = self._own(graph, name, features)
                told[name] = own + self.remembered * (memory[name] - own)
            updated |= super()._updated(graph, [step], told, features)
        return updated


ORDERS: dict[str, type[MessagePass]] = {
    "inference": MessagePass,
    "shuffled": Shuffled,
    "static": Static,
    "fair static": FairStatic,
    "remembering": Remembering,
}


def scoring(
    *,
    streams: Sequence[Sequence[Basis]] = (RAW, MAGNITUDE),
    order: str = "inference",
    directions: str = "both",
    signals: bool = True,
) -> Callable[[], DNGEncoder]:
    """A maker of scoring encoders. `directions`: "both", "forward", or "none": a statistics-only MLP, the same features
    through the same layers without messages. `signals` False leaves the corrections to the weights alone."""

    def make() -> DNGEncoder:
        encoder = DNGEncoder()
        h, f = encoder.config.hidden, encoder.config.features
        kind = NoMessages if directions == "none" else ORDERS[order]
        encoder.ahead = kind(h, f, streams)
        encoder.back = kind(h, f + h, streams, backward=True) if directions == "both" else Nothing(h)
        if not signals:
            encoder.register_forward_pre_hook(_without_signals)
        return encoder

    return make


def _without_signals(module: nn.Module, args: tuple) -> tuple:
    graph, weights, features, costs = args
    blank = [{name: torch.zeros_like(x) for name, x in values.items()} for values in (features, costs)]
    return (graph, weights, *blank)


def per_edge(message: Message, weight: Tensor, states: Tensor) -> Tensor:
    """A message edge by edge, as the paper writes it: the reference of the matrix products, quadratic in memory."""
    phi = torch.stack([one(weight) for one in message.basis], -1)  # [D, S, kernel, K]
    embedded = phi.mean(2) @ message.edge  # [D, S, H]
    return (embedded * message.node(states)[None]).mean(1)
