"""Spend a budget: which units go so that the asked ratio is reached at the least predicted cost.

`candidates` offers plans of equal size that split the budget differently over kinds (how many layers, how many heads,
then as many neurons or channels as it takes); whoever has the model measures them and picks (recipes/prune.py).
"""

from __future__ import annotations

from dataclasses import replace

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import ModelGraph, Scores
from dnge_compress.plans.greedy import cheapest_first
from dnge_compress.plans.legal_widths import droppable, width_groups
from dnge_compress.plans.problem import Budget, Candidate, Problem
from dnge_compress.plans.uniform import of_units, uniform
from dnge_compress.recipes.schema import Prune

OFFERED, EVEN_OFFERED = 4, 2  # even candidates worth measuring: by themselves, and beside global ones
TRUST = (1.0, 0.5, 0.0)  # in how far a space's level of costs stands above or below another's, for global plans


def candidates(graph: ModelGraph, scores: Scores, prune: Prune, budget: Budget) -> tuple[list[Candidate], list[str]]:
    """Plans that reach the recipe's ratio, a few of the most promising, and notes on rounding.

    Under a global allocation, the plan that trusts the scores comes first, and the best even ones come last. Scores
    that correct the closed form offer its own plan as well: what is measured may say that the correction is wrong.

    Raises BudgetError if the ratio can't be reached, naming the largest that can.
    """
    groups, notes = width_groups(graph, prune)
    if prune.ratio == 0:
        return [Candidate(AppliedCuts(graph), {}, 0.0)], notes
    problem = Problem(graph, scores, budget, groups, droppable(graph, prune), prune.min_keep)
    if not groups and not problem.layers:
        raise BudgetError(
            f"nothing of the kinds {', '.join(prune.kinds)} can be removed here: {'; '.join(notes) or 'no such space'}"
        )
    if prune.of == "units":
        chosen, rounded = of_units(problem, prune)
        found, notes = [chosen], notes + rounded
    elif prune.allocation == "global":
        found = [cheapest_first(problem, prune, trust) for trust in TRUST]
        found += _uncorrected(problem, prune) + _even(problem, prune)
    else:
        found = uniform(problem, prune)[:OFFERED]
    return found, notes


def _uncorrected(problem: Problem, prune: Prune) -> list[Candidate]:
    """The global plan of the closed form that the scores correct, if they do, at the scores' costs."""
    if not problem.scores.closed:
        return []
    closed = replace(problem.scores, units=problem.scores.closed)
    layers = droppable(problem.graph, prune)
    own = Problem(problem.graph, closed, problem.budget, problem.groups, layers, prune.min_keep)
    return [problem.candidate(cheapest_first(own, prune, 1.0).applied.cuts)]


def _even(problem: Problem, prune: Prune) -> list[Candidate]:
    """The best even plans beside the global ones; none where widths alike in every layer don't reach the ratio."""
    try:
        return uniform(problem, prune)[:EVEN_OFFERED]
    except BudgetError:
        return []
