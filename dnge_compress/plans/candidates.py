"""Spend a budget: which units go so that the asked ratio is reached at the least predicted cost.

`candidates` offers plans of equal size that split the budget differently over kinds (how many layers, how many heads,
then as many neurons or channels as it takes); whoever has the model measures them and picks (plans/planner.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import TRACED
from dnge_compress.graph.types import ModelGraph, Scores
from dnge_compress.plans.greedy import cheapest_first
from dnge_compress.plans.legal_widths import all_fixed, droppable, width_groups
from dnge_compress.plans.problem import Budget, Candidate, Problem
from dnge_compress.plans.uniform import of_units, uniform
from dnge_compress.recipes.schema import Prune

Fits = Callable[[AppliedCuts], bool]
OFFERED, UNIFORM_OFFERED = 4, 2  # uniform candidates worth measuring: by themselves, and beside global ones
# Global plans differ in how far the level of each space's costs is shrunk towards the mean level.
LEVEL_SHRINKAGE = (0.0, 0.5, 1.0)


def candidates(
    graph: ModelGraph, scores: Scores, prune: Prune, budget: Budget, fits: Fits | None = None
) -> tuple[list[Candidate], list[str]]:
    """Plans that reach the recipe's ratio, a few of the most promising of those that `fits` lets through, and notes on
    rounding.

    Under a global allocation the plan that takes the scores as they are comes first, and the best uniform ones come
    last. Corrected scores offer the plan of the uncorrected ones as well: the correction may be wrong.

    Raises BudgetError if the ratio can't be reached, naming the largest that can.
    """
    problem, notes = _problem(graph, scores, prune, budget)
    if prune.ratio == 0:
        return [Candidate(AppliedCuts(graph), {}, 0.0)], notes
    if not problem.groups and not problem.layers:
        raise all_fixed(prune, notes)
    is_free = prune.uneven or graph.family == TRACED  # no config has to say the widths
    most = None
    if prune.of == "units":
        chosen, rounded = of_units(problem, prune)
        found, notes = [chosen], notes + rounded
    elif prune.allocation == "global" or (prune.allocation == "auto" and is_free):
        found = [cheapest_first(problem, prune, shrinkage) for shrinkage in LEVEL_SHRINKAGE]
        found += _uncorrected(problem, prune) + _uniform(problem, prune)
    else:
        found, most = uniform(problem, prune), OFFERED
    return [c for c in found if fits is None or fits(c.applied)][:most], notes


def uneven_candidate(graph: ModelGraph, scores: Scores, prune: Prune, budget: Budget) -> Candidate | None:
    """What widths that differ between layers would make of the same budget; None where they can't, or already do."""
    if prune.uneven or prune.allocation != "auto" or prune.of == "units" or graph.family == TRACED:
        return None
    free = prune.model_copy(update={"uneven": True, "allocation": "global"})
    problem, _ = _problem(graph, scores, free, budget)
    try:
        return cheapest_first(problem, free, 0.0) if len(problem.groups) > 1 else None
    except BudgetError:
        return None


def _problem(graph: ModelGraph, scores: Scores, prune: Prune, budget: Budget) -> tuple[Problem, list[str]]:
    groups, notes = width_groups(graph, prune)
    problem = Problem(
        graph=graph,
        scores=scores,
        budget=budget,
        groups=groups,
        droppable=droppable(graph, prune) if prune.ratio else [],
        min_keep=prune.min_keep,
    )
    return problem, notes


def _uncorrected(problem: Problem, prune: Prune) -> list[Candidate]:
    """The global plan of the scores before their correction, if they have one, at the corrected costs."""
    if not problem.scores.uncorrected:
        return []
    uncorrected = replace(problem, scores=replace(problem.scores, units=problem.scores.uncorrected))
    return [problem.candidate(cheapest_first(uncorrected, prune, 0.0).applied.cuts)]


def _uniform(problem: Problem, prune: Prune) -> list[Candidate]:
    """The best uniform plans beside the global ones; none where equal widths in every layer don't reach the ratio."""
    try:
        return uniform(problem, prune)[:UNIFORM_OFFERED]
    except BudgetError:
        return []
