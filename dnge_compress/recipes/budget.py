"""Spend a budget: which units go so that the asked ratio is reached at the least predicted cost.

`candidates` offers plans of equal size that split the budget differently over kinds (how many layers, how many heads,
then as many neurons or channels as it takes); whoever has the model measures them and picks (recipes/prune.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dnge_compress.errors import BudgetError, RecipeError
from dnge_compress.graph import Shapes
from dnge_compress.masking import units_gone
from dnge_compress.recipes.groups import Group, droppable, width_groups
from dnge_compress.recipes.schema import Prune
from dnge_compress.sizes import Prices, dropped_modules, dropped_spaces, kept_price, kept_total, total
from dnge_compress.types import Cut, ModelGraph, Scores

HEAD_LEVELS = 4
BISECTIONS = 24
OFFERED, EVEN_OFFERED = 4, 2  # uniform candidates worth measuring: by themselves, and beside global ones
TRUST = (1.0, 0.5, 0.0)  # in how far a space's level of costs stands above or below another's, for global plans
NOTED_ROUNDING = 0.01  # difference between the ratio asked for and got that is worth a note


@dataclass(frozen=True)
class Budget:
    """What is counted: the prices of tensor elements and the shapes they apply to."""

    prices: Prices
    shapes: Shapes


@dataclass(frozen=True)
class Candidate:
    """Cuts that reach the budget, the scorer's cost per space, and the share of the price that is removed."""

    cuts: tuple[Cut, ...]
    costs: Mapping[str, float]
    removed: float

    @property
    def cost(self) -> float:
        """Predicted cost in the scorer's unit."""
        return sum(self.costs.values())


def candidates(graph: ModelGraph, scores: Scores, prune: Prune, budget: Budget) -> tuple[list[Candidate], list[str]]:
    """Plans that reach the recipe's ratio, a few of the most promising, and notes on rounding.

    Under a global allocation, the plan that trusts the scores comes first, and the best even ones come last.

    Raises BudgetError if the ratio can't be reached, naming the largest that can.
    """
    groups, notes = width_groups(graph, prune)
    if prune.allocation == "global" and not prune.uneven:
        raise RecipeError("allocation 'global' makes widths differ between layers; it needs uneven: true as well")
    if prune.allocation == "global" and prune.of == "units":
        raise RecipeError(
            "of 'units' takes the same share of every space; allocation 'global' counts parameters or macs"
        )
    if prune.ratio == 0:
        return [Candidate((), {}, 0.0)], notes
    problem = _Problem(graph, scores, budget, groups, droppable(graph, prune), prune.min_keep)
    if not groups and not problem.layers:
        raise BudgetError(
            f"nothing of the kinds {', '.join(prune.kinds)} can be removed here: {'; '.join(notes) or 'no such space'}"
        )
    if prune.of == "units":
        chosen, rounded = _of_units(problem, prune)
        found, notes = [chosen], notes + rounded
    elif prune.allocation == "global":
        found = [_global(problem, prune, trust) for trust in TRUST] + _even(problem, prune)
    else:
        found = _uniform(problem, prune)[:OFFERED]
    return found, notes


class _Problem:
    """The givens, and the step from a choice of widths and layers to cuts and their price."""

    def __init__(
        self,
        graph: ModelGraph,
        scores: Scores,
        budget: Budget,
        groups: list[Group],
        layers: list[tuple[str, int]],
        min_keep: float,
    ) -> None:
        self.graph, self.scores, self.budget, self.groups = graph, scores, budget, groups
        self.droppable = len(layers)
        self.layers = self._cheapest(layers, min_keep)
        self.whole = total(budget.prices, budget.shapes)
        self.order = {name: values.argsort(descending=True, stable=True) for name, values in scores.units.items()}

    def _cheapest(self, layers: list[tuple[str, int]], min_keep: float) -> list[tuple[str, int]]:
        """Blocks that may go, cheapest first; every layer space keeps at least one block and `min_keep` of them."""
        found: list[tuple[str, int]] = []
        for name, i in sorted(layers, key=lambda item: float(self.scores.units[item[0]][item[1]])):
            units = self.graph.space(name).units
            least = max(1, math.ceil(min_keep * units - 1e-9))
            if sum(n == name for n, _ in found) < units - least:
                found.append((name, i))
        return found

    def cuts(self, steps: Mapping[Group, int], dropped: Iterable[tuple[str, int]]) -> tuple[Cut, ...]:
        """Cuts that keep the best-scored units of every group at its step, and drop the given layers."""
        found = self.layer_cuts(dropped)
        gone = dropped_spaces(self.graph, found)
        for group, t in steps.items():
            for name in group.spaces if t < group.steps else ():
                if name not in gone:
                    keep = self.graph.space(name).units * t // group.steps
                    found.append(Cut(name, tuple(sorted(self.order[name][:keep].tolist()))))
        return tuple(found)

    def layer_cuts(self, dropped: Iterable[tuple[str, int]]) -> list[Cut]:
        away: dict[str, set[int]] = {}
        for name, i in dropped:
            away.setdefault(name, set()).add(i)
        return [Cut(n, tuple(i for i in range(self.graph.space(n).units) if i not in a)) for n, a in away.items()]

    def removed(self, cuts: Iterable[Cut]) -> float:
        """Share of the price that the cuts remove."""
        return 1 - kept_total(self.graph, self.budget.prices, self.budget.shapes, cuts) / self.whole

    def candidate(self, cuts: tuple[Cut, ...]) -> Candidate:
        costs = {}
        for cut in cuts:
            values = self.scores.units[cut.space]
            costs[cut.space] = float(values[units_gone(len(values), cut.keep)].sum())
        return Candidate(cuts, costs, self.removed(cuts))


def _of_units(problem: _Problem, prune: Prune) -> tuple[Candidate, list[str]]:
    """The same share of the units of every space, and notes on rounding; layers count as units of theirs."""
    ratio, most = prune.ratio, 1 - prune.min_keep
    if ratio > most + 1e-9:
        raise BudgetError(
            f"ratio {ratio:g} can't be reached: at most {most:.3f} of the units can go with min_keep "
            f"{prune.min_keep:g}; lower the ratio or min_keep"
        )
    steps = {g: g.nearest(1 - ratio) for g in problem.groups}
    wanted = math.floor(ratio * problem.droppable + 0.5)
    dropped = problem.layers[:wanted]
    cuts = problem.cuts(steps, dropped)
    if not cuts:
        raise BudgetError(f"ratio {ratio:g} is too small to remove a single unit under these rules; raise it")
    gone = {(g.kind, problem.graph.space(n).units, g.steps, t) for g, t in steps.items() for n in g.spaces}
    rounded = [
        _rounded(units - units * t // of, units, f"{kind}s of each layer", ratio) for kind, units, of, t in sorted(gone)
    ]
    if problem.droppable:
        rounded.append(_rounded(len(dropped), problem.droppable, "layers", ratio))
    return problem.candidate(cuts), [note for note in rounded if note]


def _rounded(gone: int, units: int, what: str, ratio: float) -> str:
    off = abs(gone / units - ratio) > NOTED_ROUNDING
    return f"ratio {ratio:g} is rounded to {gone} of {units} {what}, the nearest that is allowed" if off else ""


def _uniform(problem: _Problem, prune: Prune) -> list[Candidate]:
    """All splits over layers, heads and widths that reach the ratio, none removing a whole kind for nothing."""
    widths = [g for g in problem.groups if g.kind != "head"]
    heads = [g for g in problem.groups if g.kind == "head"]
    found, best = [], 0.0
    for drops in range(len(problem.layers) + 1):
        dropped = problem.layers[:drops]
        alone = False
        for level in _head_levels(heads, bool(widths)):
            fixed = {g: g.at_most(level) for g in heads}
            cuts, reached = _fit_width(problem, widths, fixed, dropped, prune.ratio)
            best = max(best, reached)
            if reached >= prune.ratio - 1e-9:
                found.append(problem.candidate(cuts))
                alone = alone or level == 1.0 and not any(c.space in g.spaces for g in widths for c in cuts)
        if alone:  # the layers alone suffice: dropping more only overshoots
            break
    if not found:
        raise BudgetError(
            f"ratio {prune.ratio:g} can't be reached: at most {best:.3f} of the {prune.of} can go with kinds "
            f"{', '.join(prune.kinds)} and min_keep {prune.min_keep:g}; lower the ratio or min_keep"
        )
    # Coarse units (layers, heads) may overshoot; a plan is only worth looking at if it removes about what was asked.
    least = min(c.removed for c in found)
    return sorted((c for c in found if c.removed <= least + 0.02), key=lambda c: c.cost)


def _head_levels(heads: list[Group], widths: bool) -> list[float]:
    """Fractions of heads to try: the widest few and the narrowest; all of them if no width can make up the rest."""
    if not heads:
        return [1.0]
    fractions = sorted({t / heads[0].steps for t in heads[0].legal}, reverse=True)
    return [*fractions[:HEAD_LEVELS], *fractions[HEAD_LEVELS:][-1:]] if widths else fractions


def _fit_width(
    problem: _Problem, widths: list[Group], fixed: dict[Group, int], dropped: list[tuple[str, int]], ratio: float
) -> tuple[tuple[Cut, ...], float]:
    """The widest common fraction of the width groups with which the ratio is reached, beside fixed heads and layers."""

    layers = problem.layer_cuts(dropped)
    prefixes = dropped_modules(problem.graph, layers)

    def steps(fraction: float) -> dict[Group, int]:
        return fixed | {g: g.at_most(fraction) for g in widths}

    def removed(fraction: float) -> float:
        kept = {n: problem.graph.space(n).units * t // g.steps for g, t in steps(fraction).items() for n in g.spaces}
        left = kept_price(problem.graph, problem.budget.prices, problem.budget.shapes, kept, prefixes)
        return 1 - left / problem.whole

    low, high = 0.0, 1.0
    if not widths or removed(high) >= ratio:
        low = high
    elif removed(low) >= ratio:
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if removed(middle) >= ratio else (low, middle)
    return problem.cuts(steps(low), dropped), removed(low)


def _even(problem: _Problem, prune: Prune) -> list[Candidate]:
    """The best even plans beside the global ones; none where widths alike in every layer don't reach the ratio."""
    try:
        return _uniform(problem, prune)[:EVEN_OFFERED]
    except BudgetError:
        return []


def _global(problem: _Problem, prune: Prune, trust: float) -> Candidate:
    """Units of all kinds in one list, cheapest per removed price first, until the ratio is reached.

    The difference in level between a space and the others counts by `trust`, on a log scale; at 0 only the order and
    the spread inside a space count.
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
    items = _levelled(items, trust)
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
        gone = dropped_spaces(problem.graph, first)
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
        rest = items[: low - 1] + items[low:]
        if not is_layer or problem.removed(cuts) <= prune.ratio + NOTED_ROUNDING:
            return problem.candidate(cuts)
        items = rest  # a block was too coarse for what was left of the budget: try without it
        if problem.removed(at(len(items))) < prune.ratio:
            return problem.candidate(cuts)


def _levelled(items: list[tuple[float, str, int]], trust: float) -> list[tuple[float, str, int]]:
    """Costs per price with the level of every space (its mean log cost) drawn towards the mean of all levels.

    Scores that can be negative (FLAP's are standardised) are no costs on a log scale: their own mean is the level.
    """
    if trust == 1:
        return items
    positive = all(value > 0 for value, _, _ in items)
    values: dict[str, list[float]] = {}
    for value, name, _ in items:
        values.setdefault(name, []).append(math.log(value) if positive else value)
    means = {name: sum(found) / len(found) for name, found in values.items()}
    middle = sum(means.values()) / max(1, len(means))
    return [
        ((math.log(value) if positive else value) + (1 - trust) * (middle - means[name]), name, i)
        for value, name, i in items
    ]
