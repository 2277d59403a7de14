"""Sweeps one after another over a network: the order of the snapshots, and what a sweep hears of the one before."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dnge_compress.encoder.messages import CHUNK_ELEMENTS
from dnge_compress.encoder.snapshots import Snapshot, snapshots
from dnge_compress.encoder.sweeps import States, Sweep
from dnge_compress.graph.types import ModelGraph

ORDERS = ("inference", "shuffled", "static")
STATIC_ROUNDS = 3


def walk(
    sweeps: Sequence[Sweep],
    graph: ModelGraph,
    weights: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    *,
    order: str = "inference",
    chunk: int = CHUNK_ELEMENTS,
) -> tuple[States, ...]:
    """States of each sweep, space → `[U, H]`. All hear the node features `[U, F]`, and each the states before it.

    `order`: "inference", "shuffled" (steps in a random but fixed order) or "static" (all layers at once, a few times).
    """
    found: list[States] = []
    for sweep in sweeps:
        heard = features if not found else _joined(features, found[-1], sweep)
        moments = _moments(graph, weights, sweep, order)
        found.append(sweep(graph, moments, heard, chunk))
    return tuple(found)


def side_by_side(found: Sequence[States]) -> States:
    """States of several sweeps as one, space → `[U, sweeps · H]`."""
    return {name: torch.cat([states[name] for states in found], -1) for name in found[0]}


def _moments(
    graph: ModelGraph, weights: Mapping[str, Tensor], sweep: Sweep, order: str
) -> Iterable[Sequence[Snapshot]]:
    """Which snapshots act together: each by itself, or all of them, a few times."""
    dtype, backward = sweep.mix.weight.dtype, sweep.backward_in_time
    if order == "inference":
        return ([step] for step in snapshots(graph, weights, dtype, backward=backward))
    steps = list(snapshots(graph, weights, dtype))
    if order == "static":
        return [steps[::-1] if backward else steps] * STATIC_ROUNDS
    shuffled = random.Random(graph.fingerprint).sample(steps, len(steps))
    if [s.step for s in shuffled] == [s.step for s in steps]:  # one order in six, of three layers
        shuffled = shuffled[1:] + shuffled[:1]
    return ([step] for step in (shuffled[::-1] if backward else shuffled))


def _joined(features: Mapping[str, Tensor], states: States, sweep: Sweep) -> dict[str, Tensor]:
    """Features and the states before them `[U, F + H]`; zeros where a space has no features."""
    joined = {}
    for name, state in states.items():
        size = sweep.features.in_features - state.shape[1]
        own = features[name] if name in features else state.new_zeros(len(state), size)
        joined[name] = torch.cat([own, state], -1)
    return joined
