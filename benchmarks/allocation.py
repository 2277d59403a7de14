"""The strongest rival of a learned allocation: damage measured per space and ratio on the same inputs, solved exactly.

Every space is cut at several levels by itself, repaired and run; every block is skipped. Damages add up, so the
cheapest choice of levels within the budget is a multiple-choice knapsack, solved by dynamic programming.
"""

from __future__ import annotations

import math

import torch

from dnge_compress.graph.counting import non_embedding_prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut, Scores
from dnge_compress.plans.legal_widths import droppable
from dnge_compress.plans.problem import Budget
from dnge_compress.plans.trial import measured_divergence
from dnge_compress.recipes.schema import Prune
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.divergence import outputs_of
from dnge_compress.signals.inference import inference_mode_of

LEVELS = 8
BINS = 400  # steps of the budget
Choice = tuple[float, float, tuple[Cut, ...]]  # damage, price removed, cuts


class MeasuredAllocation:
    """The table of one model: made once, solved for any ratio. `runs` counts forward passes over the inputs."""

    def __init__(self, context: ScoringContext, scores: Scores, share: float = 0.25) -> None:
        self.context, self.scores, self.runs = context, scores, 0
        self.batches = context.batches[: max(1, round(share * len(context.batches)))]
        self.budget = Budget.of(context.model, non_embedding_prices(context.model, context.graph))
        with torch.no_grad(), inference_mode_of(context.model):
            self.reference = [outputs_of(context.model, batch) for batch in self.batches]
            self.options = self._measured()

    def cuts(self, ratio: float) -> tuple[Cut, ...]:
        """The choice of least total damage that removes at least `ratio` of the non-embedding parameters."""
        for lacking in range(BINS):
            found = self._solve(ratio + lacking / BINS)
            if found is not None and self._removed(found[1]) >= ratio - 1e-9:
                return found[1]
        raise SystemExit(f"the measured table offers no way to remove {ratio:.0%}")

    def _solve(self, ratio: float) -> tuple[float, tuple[Cut, ...]] | None:
        """Damage and cuts of the best choice, per block one option; the last block of a model can't be dropped."""
        wanted = math.ceil(ratio * BINS)
        best: list[tuple[float, tuple[Cut, ...]]] = [(0.0, ())] + [(math.inf, ())] * wanted
        for options in self.options:
            new = list(best)
            for cost, price, cuts in options:
                gain = round(price * BINS)
                for had, (paid, chosen) in enumerate(best):
                    to = min(wanted, had + gain)
                    if paid + cost < new[to][0] and (not cuts or self._is_legal((*chosen, *cuts))):
                        new[to] = (paid + cost, (*chosen, *cuts))
            best = new
        total, cuts = best[wanted]
        return (total, _merged(cuts)) if total < math.inf else None

    def _is_legal(self, cuts: tuple[Cut, ...]) -> bool:
        """Whether every layer space keeps a block."""
        dropped: dict[str, int] = {}
        for cut in cuts:
            if self.context.graph.space(cut.space).kind == "layer":
                dropped[cut.space] = dropped.get(cut.space, 0) + 1
        return all(n < self.context.graph.space(name).units for name, n in dropped.items())

    def _measured(self) -> list[list[Choice]]:
        """Per block (or space outside of blocks) the ways to shrink it; the first is to leave it."""
        graph = self.context.graph
        spaces = {s.name: self._levels(s.name) for s in graph.of_kind("neuron", "head", "channel")}
        options, inside = [], set()
        drops = droppable(graph, Prune())
        for layer in graph.of_kind("layer"):
            for i in range(layer.units if layer.units > 1 else 0):
                drop = Cut(layer.name, tuple(j for j in range(layer.units) if j != i))
                own = set(graph.spaces_within(f"{layer.modules[i]}.")) & spaces.keys()
                inside |= own
                choices: list[Choice] = [(0.0, 0.0, ())]
                for name in sorted(own):
                    choices = [(d + e, p + q, (*c, *f)) for d, p, c in choices for e, q, f in spaces[name]]
                if (layer.name, i) in drops:
                    choices.append((self._damage([drop]), self._removed([drop]), (drop,)))
                options.append(choices)
        return options + [levels for name, levels in spaces.items() if name not in inside]

    def _levels(self, name: str) -> list[Choice]:
        units = self.context.graph.space(name).units
        order = self.scores.units[name].argsort(descending=True, stable=True)
        found: list[Choice] = [(0.0, 0.0, ())]
        for keep in sorted(
            {max(1, math.ceil(0.1 * units), round(units * (1 - i / LEVELS))) for i in range(1, LEVELS + 1)}
        ):
            if keep < units:
                cut = Cut(name, tuple(sorted(order[:keep].tolist())))
                found.append((self._damage([cut]), self._removed([cut]), (cut,)))
        return found

    def _removed(self, cuts: list[Cut] | tuple[Cut, ...]) -> float:
        return self.budget.removed(AppliedCuts(self.context.graph, tuple(cuts)))

    def _damage(self, cuts: list[Cut]) -> float:
        self.runs += 1
        return float(
            measured_divergence(
                self.context,
                AppliedCuts(self.context.graph, tuple(cuts)),
                self.batches,
                self.reference,
                self.context.repair,
            )
        )


def _merged(cuts: tuple[Cut, ...]) -> tuple[Cut, ...]:
    """Several dropped blocks of one layer space as one cut."""
    keep: dict[str, set[int]] = {}
    for cut in cuts:
        keep[cut.space] = keep.get(cut.space, set(cut.keep)) & set(cut.keep)
    return tuple(Cut(name, tuple(sorted(kept))) for name, kept in keep.items())
