"""Global allocations: units of all kinds and layers compete by cost per removed price."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut
from dnge_compress.plans.legal_widths import TiedWidths
from dnge_compress.plans.problem import NOTED_ROUNDING, Candidate, Problem
from dnge_compress.recipes.schema import Prune

Item = tuple[float, str, int]  # cost per removed price, space, unit


def cheapest_first(problem: Problem, prune: Prune, shrinkage: float) -> Candidate:
    """Units of all kinds in one list, cheapest per removed price first, until the ratio is reached.

    `shrinkage` (0 … 1) draws the levels of the spaces' costs together, on a log scale; at 1 only the order and the
    spread inside a space count.
    """
    items = sorted(shrunk_levels(list(_items(problem)), shrinkage), key=lambda item: item[0])
    most = problem.removed(_cuts_of(problem, items))
    if most < prune.ratio:
        raise problem.unreachable(prune, most)
    while True:
        count = _fewest(problem, items, prune.ratio)
        cuts = _cuts_of(problem, items[:count])
        is_layer = bool(count) and problem.graph.space(items[count - 1][1]).kind == "layer"
        if not is_layer or problem.removed(cuts) <= prune.ratio + NOTED_ROUNDING:
            return problem.candidate(cuts)
        # A block was too coarse for what was left of the budget: try without it.
        items = items[: count - 1] + items[count:]
        if problem.removed(_cuts_of(problem, items)) < prune.ratio:
            return problem.candidate(cuts)


def _items(problem: Problem) -> Iterator[Item]:
    """Every unit and block that may go, with its cost per removed price."""
    for group in problem.groups:
        price_of_all = problem.removed(_one_less(problem, group))
        for name in group.spaces:
            values, units = problem.scores.units[name], problem.graph.space(name).units
            price = max(price_of_all / len(group.spaces), 1e-12) if units > 1 else 1.0
            least = max(1, -(-units * group.legal[0] // group.steps))
            for i in problem.order[name].flip(0)[: units - least].tolist():
                yield float(values[i]) / price, name, i
    for name, i in problem.layers:
        keep = tuple(j for j in range(problem.graph.space(name).units) if j != i)
        yield float(problem.scores.units[name][i]) / problem.removed((Cut(name, keep),)), name, i


def _one_less(problem: Problem, group: TiedWidths) -> tuple[Cut, ...]:
    """A unit less in every space of a group that shrinks together."""
    units = {name: problem.graph.space(name).units for name in group.spaces}
    return tuple(Cut(name, tuple(range(1, n))) for name, n in units.items() if n > 1)


def _fewest(problem: Problem, items: Sequence[Item], ratio: float) -> int:
    """How many of the items have to go, in their order, until the ratio is reached."""
    return bisect_left(
        range(len(items)), True, key=lambda count: problem.removed(_cuts_of(problem, items[:count])) >= ratio
    )


def _cuts_of(problem: Problem, items: Sequence[Item]) -> tuple[Cut, ...]:
    """The cuts that remove these items; widths are rounded up to legal ones."""
    away: dict[str, set[int]] = {}
    for _, name, i in items:
        away.setdefault(name, set()).add(i)
    layers = {s.name for s in problem.graph.of_kind("layer")}
    first = problem.layer_cuts((n, i) for n in away if n in layers for i in away[n])
    gone = AppliedCuts(problem.graph, first).dropped_spaces
    keeps: dict[str, int] = {}
    for group in problem.groups:
        units = {name: problem.graph.space(name).units for name in group.spaces if name not in gone}
        lost = sum(len(away.get(name, ())) for name in units)
        if not lost:
            continue
        left = group.steps * (1 - lost / sum(units.values()))  # what shrinks together loses the same share
        step = next(t for t in group.legal if t >= left - 1e-9)
        keeps |= {name: n * step // group.steps for name, n in units.items() if step < group.steps}
    names = dict.fromkeys([*(name for name in away if name in keeps), *keeps])  # the first that lost a unit first
    rest = (Cut(name, tuple(sorted(problem.order[name][: keeps[name]].tolist()))) for name in names)
    return (*first, *rest)


def shrunk_levels(items: list[Item], shrinkage: float) -> list[Item]:
    """Costs per price with the level of every space (its mean log cost) drawn towards the mean of all levels.

    Scores that can be negative (FLAP's are standardised) are no costs on a log scale: their own mean is the level.
    """
    if shrinkage == 0:
        return items
    positive = all(value > 0 for value, _, _ in items)
    values: dict[str, list[float]] = {}
    for value, name, _ in items:
        values.setdefault(name, []).append(math.log(value) if positive else value)
    means = {name: sum(found) / len(found) for name, found in values.items()}
    middle = sum(means.values()) / max(1, len(means))
    return [
        ((math.log(value) if positive else value) + shrinkage * (middle - means[name]), name, i)
        for value, name, i in items
    ]
