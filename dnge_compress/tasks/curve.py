"""Plans at several ratios from one scoring, each measured: how much of a model may go before it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from dnge_compress.core.errors import RecipeError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.report.curve import RatioCurve, RatioPoint, knee_of
from dnge_compress.report.report import name_of
from dnge_compress.report.sizes import measure
from dnge_compress.report.speeds import seconds_of
from dnge_compress.signals.comparison import Comparison
from dnge_compress.signals.doubts import doubts, kind_of_inputs
from dnge_compress.signals.inference import Inputs
from dnge_compress.tasks.latency import LEAST_SECONDS, draft, timed_inputs
from dnge_compress.tasks.quality import measure_of, quality_of
from dnge_compress.tasks.task import Task


def curve_of(task: Task, ratios: Sequence[float], held_out: Sequence[Inputs] = ()) -> RatioCurve:
    """Plans and measurements at every ratio; `held_out` inputs judge the smaller models as well.

    The model is only read.
    Raises BudgetError for a ratio that is out of range or can't be reached.
    """
    recipes = {ratio: task.at(ratio) for ratio in sorted(set(ratios) - {0}, reverse=True)}  # 0 is always shown
    if not recipes:
        raise RecipeError("a curve needs a ratio above 0, better several: ratios=[0.1, 0.2, 0.3]")
    started = time.perf_counter()
    calibration, is_real = task.recipe.calibration, task.context.data is not None
    batches, _ = task.context.batches, task.scores
    scored = time.perf_counter()
    kind = kind_of_inputs(task.model, batches, calibration, task.example_inputs, is_real)
    found_doubts = doubts(task.model, batches, calibration, kind)
    plans: dict[float, PrunePlan] = {}
    for ratio, recipe in recipes.items():  # the largest first: what can't be reached ends the work at once
        plans[ratio] = task.unrepaired(recipe, tries_uneven=False)
    planned = time.perf_counter()
    judge = _Judge(task, held_out)
    points = []
    for i, (ratio, plan) in enumerate(sorted(plans.items())):
        task.progress("measure", i, len(plans))
        damage = task.one_shot(plan)
        guess = task.foreseen(damage, kind, found_doubts)
        points.append(RatioPoint(ratio=ratio, **judge.measured(plan), damage=damage.nats, expected=guess))
    task.progress("measure", len(plans), len(plans))
    knee = knee_of([(p.ratio, p.damage) for p in points])
    repaired = task.repaired(plans[knee].cuts).damage.nats if knee and task.recipe.repair.compensate != "none" else None
    size = measure(task.model, task.graph)
    times = {"score": scored - started, "plan": planned - scored, "measure": time.perf_counter() - planned}
    return RatioCurve(
        points=tuple(points),
        params=size.params,
        bytes=size.bytes,
        measure=judge.measure,
        quality=judge.original,
        knee=knee,
        knee_damage=repaired,
        recipe_name=task.recipe.name,
        scorer=task.scores.scorer,
        model_name=name_of(task.model),
        notes=(*task.notes, *found_doubts, *task.scores.notes),
        timings=times,
    )


class _Judge:
    """What is measured of smaller models, the whole one beside them."""

    def __init__(self, task: Task, held_out: Sequence[Inputs]) -> None:
        self.task, self.held_out = task, held_out
        self.measure, self.original, self.whole = "", None, None
        if held_out:
            self.measure, self.original = measure_of(task.model, held_out), quality_of(task.model, held_out)
        if held_out and not self.measure:
            self.measure, self.whole = "damage", Comparison(task.model, held_out)
        self.timed = timed_inputs(task.context)

    def measured(self, plan: PrunePlan) -> dict[str, Any]:
        """Size, quality and speed of what a plan makes."""
        small = draft(self.task.context, AppliedCuts(self.task.graph, plan.cuts), self.task.recipe.repair)
        size = measure(small, self.task.graph)
        (before, after), noise = seconds_of([self.task.model, small], self.timed, LEAST_SECONDS)
        return {
            "params": size.params,
            "bytes": size.bytes,
            "predicted_cost": plan.predicted_cost,
            "quality": self._quality(small),
            "speedup": before / after,
            "speed_noise": noise,
        }

    def _quality(self, small: nn.Module) -> float | None:
        if self.whole is not None:
            return self.whole.damage(small).nats
        return quality_of(small, self.held_out) if self.held_out else None
