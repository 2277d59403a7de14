"""What every allocation starts from: prices, scores and legal widths, and the step from a choice to cuts and price."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.counting import Prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut, ModelGraph, Scores, Shapes
from dnge_compress.plans.legal_widths import Block, TiedWidths
from dnge_compress.recipes.schema import Prune

NOTED_ROUNDING = 0.01  # difference between the ratio asked for and got that is worth a note


@dataclass(frozen=True)
class Budget:
    """What is counted: the prices of tensor elements and the shapes they apply to."""

    prices: Prices
    shapes: Shapes

    @classmethod
    def of(cls, model: nn.Module, prices: Prices) -> Budget:
        """The budget of a model at given prices."""
        return cls(prices, {n: tuple(p.shape) for n, p in model.named_parameters()})

    @cached_property
    def whole(self) -> float:
        """Price of the uncut model."""
        return sum(price * math.prod(self.shapes[n]) for n, price in self.prices.items())

    def removed(self, applied: AppliedCuts) -> float:
        """Share of the price that cuts remove."""
        return 1 - applied.price(self.prices, self.shapes) / self.whole


@dataclass(frozen=True)
class Candidate:
    """Cuts that reach the budget, the scorer's cost per space, and the share of the price that is removed."""

    applied: AppliedCuts
    costs: Mapping[str, float]
    removed: float

    @property
    def cost(self) -> float:
        """Predicted cost in the scorer's unit."""
        return sum(self.costs.values())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The givens, and the step from a choice of widths and layers to cuts and their price.

    `groups` are the widths that may shrink, `droppable` the blocks that may go: (layer space, unit).
    """

    graph: ModelGraph
    scores: Scores
    budget: Budget
    groups: list[TiedWidths]
    droppable: list[Block]
    min_keep: float

    @cached_property
    def order(self) -> dict[str, Tensor]:
        """Units of every space, best first."""
        return {name: values.argsort(descending=True, stable=True) for name, values in self.scores.units.items()}

    @cached_property
    def layers(self) -> list[Block]:
        """Blocks that may go, cheapest first; every layer space keeps at least one block and `min_keep` of them."""
        found: list[Block] = []
        for name, i in sorted(self.droppable, key=lambda item: float(self.scores.units[item[0]][item[1]])):
            units = self.graph.space(name).units
            least = max(1, math.ceil(self.min_keep * units - 1e-9))
            if sum(n == name for n, _ in found) < units - least:
                found.append((name, i))
        return found

    def cuts(self, steps: Mapping[TiedWidths, int], dropped: Iterable[Block]) -> tuple[Cut, ...]:
        """Cuts that keep the best-scored units of every group at its step, and drop the given layers."""
        found = list(self.layer_cuts(dropped))
        gone = AppliedCuts(self.graph, tuple(found)).dropped_spaces
        for group, t in steps.items():
            for name in group.spaces if t < group.steps else ():
                if name not in gone:
                    keep = self.graph.space(name).units * t // group.steps
                    found.append(Cut(name, tuple(sorted(self.order[name][:keep].tolist()))))
        return tuple(found)

    def layer_cuts(self, dropped: Iterable[Block]) -> tuple[Cut, ...]:
        """One cut per layer space that keeps all but the dropped blocks."""
        away: dict[str, set[int]] = {}
        for name, i in dropped:
            away.setdefault(name, set()).add(i)
        return tuple(Cut(n, tuple(i for i in range(self.graph.space(n).units) if i not in a)) for n, a in away.items())

    def removed(self, cuts: tuple[Cut, ...]) -> float:
        """Share of the price that the cuts remove."""
        return self.budget.removed(AppliedCuts(self.graph, cuts))

    def unreachable(self, prune: Prune, most: float) -> BudgetError:
        """The error for a ratio above `most`, the largest that can be reached."""
        align = "" if prune.align == "none" else f", align {prune.align}"
        where = f" of '{prune.within}'" if prune.within else ""
        below = math.floor(1000 * most + 1e-9) / 1000  # a ratio that can be typed back in
        return BudgetError(
            f"ratio {prune.ratio:g} can't be reached: at most {below:.3f} of the {prune.of}{where} can go with "
            f"kinds {', '.join(prune.kinds)}{align} and min_keep {prune.min_keep:g}; lower the ratio or min_keep",
            most,
        )

    def candidate(self, cuts: tuple[Cut, ...]) -> Candidate:
        """The cuts with what they cost and remove."""
        applied, units = AppliedCuts(self.graph, cuts), self.scores.units
        costs = {c.space: float(units[c.space][c.gone(len(units[c.space]))].sum()) for c in applied.cuts}
        return Candidate(applied, costs, self.budget.removed(applied))
