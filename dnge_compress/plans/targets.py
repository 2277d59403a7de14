"""Targets beside a ratio: what may be left of a model, in parameters, bytes, memory or time; and the smallest ratio
that gets there, by bisection over the plans of one scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dnge_compress.core.errors import BudgetError, DataError
from dnge_compress.core.wording import count
from dnge_compress.graph.counting import Prices, parameter_prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.derivation.small_copy import PER_TOKEN
from dnge_compress.graph.types import ModelGraph, Scores, Space
from dnge_compress.plans.candidates import Fits, candidates
from dnge_compress.plans.problem import Budget, Candidate
from dnge_compress.recipes.schema import Prune
from dnge_compress.signals.inference import device_of, inference_mode_of, writes_text
from dnge_compress.signals.sampled_text import cache_name

PRECISION = 1e-4  # of a ratio that is found
NEAR = 0.02  # between ratios at which hardly other plans compete
STEPS = 5  # between the smallest ratio at which some plan fits and that at which all do
ALL = 1 - 1e-9  # a ratio that nothing reaches
FEW_TOKENS = 4  # that a cache is measured with

Counter = Callable[[AppliedCuts], float]  # what is left under some cuts


@dataclass(frozen=True, kw_only=True)
class Found:
    """The smallest ratio that reaches a target, and what was left at each that was tried."""

    ratio: float
    tried: Mapping[float, float]


def smallest_ratio(
    left: Callable[[float], float],
    goal: float,
    bounds: tuple[float, float],
    precision: float,
    refusal: Callable[[float], BudgetError],
) -> Found:
    """Bisect between two ratios for the smallest with `left(ratio)` ≤ `goal`; `left` falls with the ratio.

    Raises what `refusal` makes of the smallest value, if that is above the goal.
    """
    low, high = bounds
    tried = {low: left(low)}
    if tried[low] <= goal:
        return Found(ratio=low, tried=tried)
    tried[high] = left(high)
    if tried[high] > goal:
        raise refusal(min(tried.values()))
    while high - low > precision:
        middle = (low + high) / 2
        tried[middle] = left(middle)
        low, high = (low, middle) if tried[middle] <= goal else (middle, high)
    return Found(ratio=high, tried=tried)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Ratios at which plans that `fits` lets through reach a target: the smallest, and where kinds of units free unlike
    shares (heads and the cache) larger ones, at which more plans compete. `whole` is the original's value."""

    ratios: tuple[float, ...]
    fits: Fits
    whole: float


def reach(model: nn.Module, graph: ModelGraph, scores: Callable[[], Scores], prune: Prune, budget: Budget) -> Reach:
    """Where a target other than latency is reached. Scores are asked for only if something has to go.

    Raises BudgetError with the smallest value that can be had, DataError where the model has no such thing.
    """
    counted, goal = counter_of(model, graph, prune), getattr(prune, prune.target)
    whole = counted(AppliedCuts(graph))

    def fits(applied: AppliedCuts) -> bool:
        return counted(applied) <= goal

    if whole <= goal:
        return Reach(ratios=(0.0,), fits=fits, whole=whole)
    known = scores()
    most = most_of(graph, known, prune, budget)

    def competing(ratio: float, fits: Fits | None = None) -> list[Candidate]:
        try:
            return candidates(graph, known, prune.at(ratio), budget, fits)[0]
        except BudgetError:  # no unit is so small, or not so much can go
            return []

    def least_left(ratio: float) -> float:
        return min((counted(c.applied) for c in competing(ratio, fits) or competing(ratio)), default=whole)

    def most_left(ratio: float) -> float:
        return max((counted(c.applied) for c in competing(ratio)), default=whole)

    def refusal(least: float) -> BudgetError:
        return unreachable(prune, least)

    first = smallest_ratio(least_left, goal, (0.0, most), PRECISION, refusal).ratio
    try:
        last = smallest_ratio(most_left, goal, (first, most), PRECISION, refusal).ratio
    except BudgetError:  # some that compete never fit
        last = most
    step = (last - first) / STEPS
    ratios = [last] if last <= first + NEAR else [first + step * i for i in range(STEPS + 1)]
    return Reach(ratios=tuple(r for r in ratios if competing(r, fits)), fits=fits, whole=whole)


def most_of(graph: ModelGraph, scores: Scores, prune: Prune, budget: Budget) -> float:
    """The largest ratio that can be reached. Raises BudgetError where nothing may go."""
    try:
        candidates(graph, scores, prune.at(ALL), budget)
    except BudgetError as e:
        if e.most is None or e.most <= 0:
            raise
        return e.most - 1e-9
    return ALL


def unreachable(prune: Prune, least: float) -> BudgetError:
    """The error for a target below the smallest value that can be had."""
    goal, name = getattr(prune, prune.target), prune.target
    return BudgetError(
        f"{name} {shown(name, goal)} can't be reached: at least {shown(name, least)} with kinds "
        f"{', '.join(prune.kinds)} and min_keep {prune.min_keep:g}; raise {name} or lower min_keep"
    )


def shown(target: str, value: float) -> str:
    """A value of a target in words."""
    if target == "latency":
        return f"{value:.2f}x"
    return count(value, "B" if target in ("bytes", "memory") else "")


def counter_of(model: nn.Module, graph: ModelGraph, prune: Prune) -> Counter:
    """What a target other than latency counts, as a function of cuts. Raises DataError where the model has no such
    thing."""
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if prune.target == "params":
        prices = parameter_prices(model)
        return lambda applied: applied.price(prices, shapes)
    if prune.target == "active_params":
        inside, chosen = _experts(model, graph), _chosen_at_once(model)
        return lambda applied: applied.price(_active(applied, shapes, inside, chosen), shapes)
    tensors = parameters | dict(model.named_buffers())
    bytes_each: Prices = {name: float(t.element_size()) for name, t in tensors.items()}
    all_shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if prune.target == "bytes":
        return lambda applied: applied.price(bytes_each, all_shapes)
    cache = cache_bytes(model, graph, prune.cache_length, prune.cache_batch)
    return lambda applied: applied.price(bytes_each, all_shapes) + cache(applied)


def cache_bytes(model: Any, graph: ModelGraph, length: int, batch: int) -> Counter:
    """Bytes of the key/value cache of so many texts of so many tokens under cuts; 0 for a model that writes none.

    Measured layer by layer on a few tokens; a layer's part falls with its key/value heads, where these are what is cut.
    Raises DataError for a cache that isn't a list of layers, one for each block.
    """
    if not writes_text(model):
        return lambda applied: 0.0
    with torch.no_grad(), inference_mode_of(model):
        ids = torch.ones(1, FEW_TOKENS, dtype=torch.long, device=device_of(model))
        cache = getattr(model(input_ids=ids, use_cache=True), cache_name(model), None)
    layers = list(getattr(cache, "layers", ()))
    blocks = graph.of_kind("layer")
    fits = len(blocks) == 1 and blocks[0].units == len(layers)
    if not fits or any(not isinstance(getattr(layer, "keys", None), torch.Tensor) for layer in layers):
        raise DataError(f"the cache of a {type(model).__name__} isn't one of keys and values for each block; use bytes")
    heads = {space.layer: space for space in graph.of_kind("head")}
    parts: list[tuple[float, Space | None]] = []
    for i, layer in enumerate(layers):
        tokens = min(length, getattr(layer, "sliding_window", None) or length)
        per_token = sum(t.nbytes for t in (layer.keys, layer.values)) / FEW_TOKENS
        space = heads.get(i)
        cut_with = space if space is not None and space.units == layer.keys.shape[1] else None
        parts.append((per_token * tokens * batch, cut_with))

    def of(applied: AppliedCuts) -> float:
        kept = next((set(c.keep) for c in applied.cuts if c.space == blocks[0].name), set(range(len(parts))))
        return sum(
            whole if space is None else whole * applied.kept(space.name) / space.units
            for i, (whole, space) in enumerate(parts)
            if i in kept
        )

    return of


def _active(
    applied: AppliedCuts, shapes: Mapping[str, tuple[int, ...]], inside: Mapping[str, str], chosen: int
) -> dict[str, float]:
    """What an element of each parameter counts for one token, which goes to `chosen` of the experts that are kept."""
    return {n: min(1.0, chosen / applied.kept(inside[n])) if n in inside else 1.0 for n in shapes}


def _experts(model: nn.Module, graph: ModelGraph) -> dict[str, str]:
    """The parameters that belong to experts, each with its space. Raises DataError where there are none."""
    found: dict[str, str] = {}
    shapes = {name: p.shape for name, p in model.state_dict(keep_vars=True).items()}
    for space in graph.of_kind("expert"):
        prefixes = tuple(f"{module}." for module in space.modules)
        found |= {n: space.name for n, _ in model.named_parameters() if prefixes and n.startswith(prefixes)}
        if not space.modules:  # stacked: all but the router, which every token meets
            stacked = {slot.param for slot in graph.slots_of(space.name) if shapes[slot.param][1:]}
            found |= {name: space.name for name in stacked if graph.step_of(name).op != "router"}
    if not found:
        raise DataError(f"a {type(model).__name__} has no experts that are known, so all of it is active; use params")
    return found


def _chosen_at_once(model: Any) -> int:
    """To how many experts each token goes, as the config says. Raises DataError where it doesn't."""
    found = min(_per_token(model.config.to_dict()), default=0)
    if not found:
        raise DataError(
            f"the config of a {type(model).__name__} doesn't say how many experts a token goes to; use params"
        )
    return found


def _per_token(config: Mapping[str, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _per_token(value)
        elif PER_TOKEN.search(str(name)) and type(value) is int and value > 0:
            yield value
