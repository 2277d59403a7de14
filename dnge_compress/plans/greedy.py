"""Global allocations: units of all kinds and layers compete by cost per removed price."""

from __future__ import annotations

import math

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut
from dnge_compress.plans.problem import NOTED_ROUNDING, Candidate, Problem
from dnge_compress.recipes.schema import Prune


def cheapest_first(problem: Problem, prune: Prune, shrinkage: float) -> Candidate:
    """Units of all kinds in one list, cheapest per removed price first, until the ratio is reached.

    `shrinkage` (0 … 1) draws the levels of the spaces' costs together, on a log scale; at 1 only the order and the
    spread inside a space count.
    """
    items: list[tuple[float, str, int]] = []
    for group in problem.groups:
        for name in group.spaces:
            values, units = problem.scores.units[name], problem.graph.space(name).units
            price = max(problem.removed((Cut(name, tuple(range(1, units))),)), 1e-12) if units > 1 else 1.0
            least = max(1, -(-units * group.legal[0] // group.steps))
            away = problem.order[name].flip(0)[: units - least].tolist()
            items += [(float(values[i]) / price, name, i) for i in away]
    for name, i in problem.layers:
        keep = tuple(j for j in range(problem.graph.space(name).units) if j != i)
        items.append((float(problem.scores.units[name][i]) / problem.removed((Cut(name, keep),)), name, i))
    items = shrunk_levels(items, shrinkage)
    items.sort(key=lambda item: item[0])
    counts = {
        g.spaces[0]: [problem.graph.space(g.spaces[0]).units * t // g.steps for t in g.legal] for g in problem.groups
    }

    def at(count: int) -> tuple[Cut, ...]:
        away: dict[str, set[int]] = {}
        for _, name, i in items[:count]:
            away.setdefault(name, set()).add(i)
        layers = {s.name for s in problem.graph.of_kind("layer")}
        first = problem.layer_cuts((n, i) for n in away if n in layers for i in away[n])
        gone = AppliedCuts.of(problem.graph, first).dropped_spaces
        rest = []
        for name in away:
            if name not in layers and name not in gone:
                units = problem.graph.space(name).units
                keep = next(c for c in counts[name] if c >= units - len(away[name]))  # rounded up to a legal width
                if keep < units:
                    rest.append(Cut(name, tuple(sorted(problem.order[name][:keep].tolist()))))
        return (*first, *rest)

    if problem.removed(at(len(items))) < prune.ratio:
        raise BudgetError(
            f"ratio {prune.ratio:g} can't be reached: at most {problem.removed(at(len(items))):.3f} of the {prune.of} "
            f"can go with kinds {', '.join(prune.kinds)} and min_keep {prune.min_keep:g}; lower the ratio or min_keep"
        )
    while True:
        low, high = 0, len(items)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if problem.removed(at(middle)) >= prune.ratio else (middle + 1, high)
        cuts = at(low)
        is_layer = bool(low) and problem.graph.space(items[low - 1][1]).kind == "layer"
        if not is_layer or problem.removed(cuts) <= prune.ratio + NOTED_ROUNDING:
            return problem.candidate(cuts)
        items = items[: low - 1] + items[low:]  # a block was too coarse for what was left of the budget: try without it
        if problem.removed(at(len(items))) < prune.ratio:
            return problem.candidate(cuts)


def shrunk_levels(items: list[tuple[float, str, int]], shrinkage: float) -> list[tuple[float, str, int]]:
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
