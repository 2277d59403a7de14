"""A chain of linear layers as a dynamic graph: inputs, hidden neurons, outputs, one step per layer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dnge_compress.core.errors import UnsupportedModelError, WeightError
from dnge_compress.core.tensors import UnorderedTensors
from dnge_compress.graph.builder import GraphBuilder
from dnge_compress.graph.types import ModelGraph

INPUT, OUTPUT = "input", "output"


def chain(widths: Sequence[int], activation: str = "sine") -> ModelGraph:
    """The graph of linear layers `"0"`, `"1"`, …, with `widths` from input to output."""
    last = len(widths) - 1
    names = [INPUT, *(f"hidden{i}" for i in range(1, last)), OUTPUT]
    matrices = {f"{i}.weight": (after, before) for i, (before, after) in enumerate(itertools.pairwise(widths))}
    g = GraphBuilder("chain", matrices | {f"{i}.bias": (after,) for i, after in enumerate(widths[1:])})
    for i, (name, units) in enumerate(zip(names, widths, strict=True)):
        is_inner = 0 < i < last
        g.space(name, units, "neuron" if is_inner else "fixed", i if is_inner else None)
    for i, (src, dst) in enumerate(itertools.pairwise(names)):
        g.linear(f"{i}", src, dst, activation=activation if i < last - 1 else "")
    return g.finish()


def read_chain(weights: Mapping[str, Tensor], layers: Sequence[str] = ()) -> dict[str, Tensor]:
    """A state dict of linear layers, each reading what the one before wrote, as `"0.weight"`, `"0.bias"`, ….

    Matrices are `[out, in]`, or `[N, out, in]` for N networks. The order is that of `layers` (names without
    ".weight"), else that of numbers where names differ in nothing else, else the state dict's own; a missing bias is
    zero. Raises UnsupportedModelError if it is no such chain, WeightError on values that aren't finite.
    """
    matrices = [n for n, t in weights.items() if t.dim() in (2, 3) and n.endswith("weight")]
    biases = {n: n.removesuffix("weight") + "bias" for n in matrices}
    others = sorted(weights.keys() - set(matrices) - set(biases.values()), key=lambda n: (-weights[n].dim(), n))
    if others or not matrices:
        raise UnsupportedModelError(
            f"'{others[0]}' {list(weights[others[0]].shape)} is no weight or bias of a linear layer; give only those"
            if others
            else "there is no linear layer; give a state dict of a chain of them"
        )
    matrices = [_weight_of(name) for name in layers_of(weights, layers)]
    found: dict[str, Tensor] = {}
    for i, name in enumerate(matrices):
        weight = weights[name]
        if i and weight.shape[-1] != found[f"{i - 1}.weight"].shape[-2]:
            raise UnsupportedModelError(
                f"'{name}' reads {weight.shape[-1]} units where the layer before writes "
                f"{found[f'{i - 1}.weight'].shape[-2]}; the layers are no chain"
            )
        bias = weights.get(biases[name], weight.new_zeros(weight.shape[:-1]))
        if bias.shape != weight.shape[:-1]:
            raise UnsupportedModelError(
                f"'{biases[name]}' has shape {tuple(bias.shape)}, and '{name}' needs {tuple(weight.shape[:-1])}"
            )
        for key, value in ((name, weight), (biases[name], bias)):
            if not value.is_floating_point():
                raise WeightError(f"'{key}' is {value.dtype}; give floating-point weights")
            if not torch.isfinite(value).all():
                raise WeightError(f"'{key}' holds values that are not finite numbers; fit that network again")
        found |= {f"{i}.weight": weight, f"{i}.bias": bias}
    return found


def widths_of(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Widths from input to output of a chain as `read_chain` gives it."""
    depth = sum(name.endswith("weight") for name in weights)
    return (weights["0.weight"].shape[-1], *(weights[f"{i}.weight"].shape[-2] for i in range(depth)))


def layers_of(weights: Mapping[str, Tensor], layers: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the layers of a chain, without ".weight", in the order in which `read_chain` takes them."""
    found = {name.removesuffix("weight").removesuffix("."): name for name in weights if name.endswith("weight")}
    if layers:
        return _checked(tuple(layers), tuple(found))
    if len({re.sub(r"\d+", "", name) for name in found}) == 1:
        return tuple(sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)]))
    if isinstance(weights, UnorderedTensors):
        raise UnsupportedModelError(
            f"the file keeps no order of its layers, and the names {', '.join(found)} don't say it; tell it by layers="
        )
    return tuple(found)


def _checked(layers: tuple[str, ...], found: tuple[str, ...]) -> tuple[str, ...]:
    told = ", ".join(found)
    for name in layers:
        if name not in found:
            raise UnsupportedModelError(f"there is no layer '{name}'; there are {told}")
        if layers.count(name) > 1:
            raise UnsupportedModelError(f"'{name}' is named twice in layers=; name each of {told} once")
    for name in found:
        if name not in layers:
            raise UnsupportedModelError(f"'{name}' isn't among the layers of layers=; name each of {told}")
    return layers


def _weight_of(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"
