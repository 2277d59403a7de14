"""How long a smaller model takes on this machine, and the smallest ratio that is as fast as asked."""

from __future__ import annotations

import torch
from torch import nn

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.tracing.running import copied
from dnge_compress.graph.types import Scores
from dnge_compress.plans.planner import budget_of, make_plan
from dnge_compress.plans.targets import Found, most_of, smallest_ratio, unreachable
from dnge_compress.plans.trial import Trial, repair_values
from dnge_compress.recipes.schema import Recipe, Repair
from dnge_compress.report.speeds import seconds_of
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.inference import Inputs, first_examples
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.repair import apply_repair

TIMED_ROWS = 4  # calibration examples whose forward pass is timed
LEAST_SECONDS = 1.0  # that timing one pair of models takes
PRECISION = 0.02  # of a ratio: a finer one would measure noise


def ratio_for_latency(context: ScoringContext, scores: Scores, recipe: Recipe, trial: Trial) -> Found:
    """The smallest ratio whose plan takes no more than the asked share of the original's time, measured at each step of
    the search. Raises BudgetError with the smallest share that was measured."""
    timed = timed_inputs(context)

    def left(ratio: float) -> float:
        if ratio == 0:
            return 1.0
        at = recipe.model_copy(update={"prune": recipe.prune.at(ratio)})
        try:
            plan = make_plan(context, scores, at, trial, tries_uneven=False)
        except BudgetError:  # no unit is so small; too large a ratio isn't asked for
            return 1.0
        small = draft(context, AppliedCuts(context.graph, plan.cuts))
        (before, after), _ = seconds_of([context.model, small], timed, LEAST_SECONDS)
        return after / before

    prune = recipe.prune
    assert prune.latency is not None
    most = most_of(context.graph, scores, prune, budget_of(context, prune))
    return smallest_ratio(left, prune.latency, (0.0, most), PRECISION, lambda least: unreachable(prune, least))


def timed_inputs(context: ScoringContext) -> Inputs:
    """A few calibration examples."""
    return first_examples(context.batches, TIMED_ROWS)[0]


def draft(context: ScoringContext, applied: AppliedCuts, repair: Repair | None = None) -> nn.Module:
    """The model under cuts, with the one-shot repair if one is given; unproved, and for a look only: what isn't cut it
    shares with the whole one."""
    with torch.no_grad():
        values = {} if repair is None else repair_values(context, applied, repair)
        small = copied(context.model, shares=True)
        small.__dict__.pop("dnge", None)
        cut(small, applied)
        apply_repair(small, applied, values)
    return small
