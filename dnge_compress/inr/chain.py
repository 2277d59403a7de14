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
MOST_AROUND = 2  # layers without a number, before and behind numbered ones


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
    ".weight"), else that of numbers where names differ in nothing else, or all do but those of one or two layers before
    or behind, else the state dict's own; a missing bias is zero. Raises UnsupportedModelError if it is no such chain,
    or its order was lost in a file, WeightError on values that aren't finite.
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
    keys = _keys(weights)
    matrices = [keys[name] for name in layers_of(weights, layers)]
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
    found = _keys(weights)
    if layers:
        return _checked(tuple(layers), tuple(found))
    alike = {name: re.sub(r"\d+", "", name) for name in found}
    most = max(alike.values(), key=list(alike.values()).count, default="")
    many = tuple(sorted((name for name in found if alike[name] == most), key=_numbers))
    rest = tuple(name for name in found if alike[name] != most)
    if not rest:
        return many
    is_lost = isinstance(weights, UnorderedTensors) or _is_sorted(weights)
    candidates = _around(many, rest) if len(many) > 1 and len(rest) <= MOST_AROUND else []
    told = [order for order in candidates if (_fits(order, weights) if is_lost else _keeps_sides(order, rest, found))]
    if len(told) == 1:
        return told[0]
    if is_lost:
        raise UnsupportedModelError(
            f"the file keeps no order of its layers, and the names {', '.join(found)} don't say it; tell it by layers="
        )
    return tuple(found)


def _keys(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The keys of the matrices by the names of their layers. Raises UnsupportedModelError where two have one name."""
    found: dict[str, str] = {}
    for key in weights:
        if key.endswith("weight"):
            name = re.sub(r"[._]?weight$", "", key)
            if name in found:
                raise UnsupportedModelError(f"'{found[name]}' and '{key}' are weights of one layer; rename one")
            found[name] = key
    return found


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _is_sorted(weights: Mapping[str, Tensor]) -> bool:
    """Whether tensors come as files sort them: no module has its bias first, nor its tenth layer before its second."""
    if list(weights) != sorted(weights):
        return False
    names = [re.sub(r"\d+", "", key) for key in weights]
    numbers = {name: [_numbers(key) for key, own in zip(weights, names, strict=True) if own == name] for name in names}
    return any(key.endswith("bias") for key in weights) or any(of != sorted(of) for of in numbers.values())


def _around(many: tuple[str, ...], rest: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every order of some layers before and behind those that are numbered."""
    orders = itertools.permutations(rest)
    return [(*order[:at], *many, *order[at:]) for order in orders for at in range(len(order) + 1)]


def _fits(order: Sequence[str], weights: Mapping[str, Tensor]) -> bool:
    """Whether each layer reads as many units as the one before writes."""
    keys = _keys(weights)
    return all(weights[keys[a]].shape[-2] == weights[keys[b]].shape[-1] for a, b in itertools.pairwise(order))


def _keeps_sides(order: Sequence[str], rest: Sequence[str], found: Mapping[str, str]) -> bool:
    """Whether the layers that aren't numbered stand where they stand in the state dict."""
    places = list(found)
    return all(order.index(name) == places.index(name) for name in rest)


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
