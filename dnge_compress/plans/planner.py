"""From scores to a plan: candidates of equal size, the best few measured, the winner written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.counting import non_embedding_prices, parameter_prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.digest import digest
from dnge_compress.graph.families import TRACED
from dnge_compress.graph.types import Scores
from dnge_compress.plans.candidates import Fits, candidates, uneven_candidate
from dnge_compress.plans.held import inside_of
from dnge_compress.plans.problem import NOTED_ROUNDING, Budget, Candidate
from dnge_compress.plans.prune_plan import PrunePlan, fingerprint
from dnge_compress.plans.sensitivity import sensitivities
from dnge_compress.plans.space_rows import rows_of
from dnge_compress.plans.trial import Trial, parts_under
from dnge_compress.recipes.schema import Prune, Recipe
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.consumers import places_of, reading_at
from dnge_compress.signals.divergence import are_scores
from dnge_compress.signals.inference import device_of, has_logits, inference_mode_of, main_output, outputs, to_device
from dnge_compress.signals.obs import WIDE
from dnge_compress.signals.work import macs_per_element

UNSAID = "widths that the config can't say: the result loads with dnge_compress.load only"
TRIED_IF_WIDE = 2  # candidates, where matrices have more than WIDE features
WORTH_KNOWING = 0.8  # of the damage: uneven widths that leave less are named


def make_plan(
    context: ScoringContext,
    scores: Scores,
    recipe: Recipe,
    trial: Trial | None = None,
    *,
    tries_uneven: bool = True,
    fits: Fits | None = None,
) -> PrunePlan:
    """The plan that a recipe makes of scores. Raises BudgetError if the ratio can't be reached.

    Predictions alone don't decide between layers, heads and neurons: the best few candidates are run, masked and
    repaired, on a part of the inputs, and the one whose output moves least is taken. `trial` remembers what
    was measured; of layers so wide that each refit takes a good part of a minute, the first two are tried (of uniform
    ones, those of least predicted cost). With `tries_uneven` a note tells what widths that differ between layers would
    be worth, but for layers so wide; `fits` says which candidates count.
    """
    graph, inside, budget = context.graph, inside_of(recipe.prune.within), budget_of(context, recipe.prune)
    found, notes = candidates(graph, scores, recipe.prune, budget, fits)
    if inside:
        notes.insert(0, f"only '{recipe.prune.within}' is pruned, and the ratio counts it alone")
    if recipe.prune.of == "units" and recipe.prune.ratio > 0:
        share = f"ratio {recipe.prune.ratio:g} is a share of the units of every space"
        notes.insert(0, f"{share}; prune.of=parameters makes it one of the parameters")
    if recipe.repair.is_refit and len(found) > 1 and _widest(context, found) > WIDE:
        notes.append(f"each refit of layers this wide takes long, so of {len(found)} plans {TRIED_IF_WIDE} were tried")
        found, tries_uneven = found[:TRIED_IF_WIDE], False
    uneven = uneven_candidate(graph, scores, recipe.prune, budget) if tries_uneven and len(found) > 1 else None
    chosen, measured = _best(trial or Trial(context), found, uneven, recipe)
    if recipe.prune.of != "units" and chosen.removed > recipe.prune.ratio + NOTED_ROUNDING:
        notes.append(
            f"ratio {recipe.prune.ratio:g} is rounded to {chosen.removed:.3f} of the {recipe.prune.of} by coarse units"
        )
    plan = PrunePlan(
        cuts=chosen.applied.cuts,
        base=graph.fingerprint,
        weights=digest(context.model),
        recipe=recipe.model_dump(mode="json"),
        predicted_cost=chosen.cost,
        uneven=_is_uneven(chosen.applied, context.model),
        notes=(*scores.notes, *notes, *measured, *_measure_note(context)),
        costs=chosen.costs,
        sensitivity=sensitivities(graph, scores, recipe.prune),
    )
    if recipe.prune.ratio > 0 and not plan.cuts:
        raise BudgetError(f"ratio {recipe.prune.ratio:g} is too small to remove a single unit; raise it")
    return counted(plan, chosen.applied, context.model)


def budget_of(context: ScoringContext, prune: Prune) -> Budget:
    """What a ratio counts: of a part that is pruned alone, that part."""
    graph, model = context.graph, context.model
    is_by_macs = prune.of == "macs"
    prices = macs_per_element(model, graph, context.batches[0]) if is_by_macs else non_embedding_prices(model, graph)
    inside = inside_of(prune.within)
    return Budget.of(model, {name: price for name, price in prices.items() if name.startswith(inside)})


def _widest(context: ScoringContext, found: Sequence[Candidate]) -> int:
    """Features of the widest matrix that reads what one of the candidates cuts."""
    model, graph, cut = context.model, context.graph, {c.space for f in found for c in f.applied.cuts}
    places = [place for place in places_of(model, graph) if place.space in cut]
    return max((reading_at(model, graph, place).matrix.shape[1] for place in places), default=0)


def counted(plan: PrunePlan, applied: AppliedCuts, model: nn.Module) -> PrunePlan:
    """The plan with parameter counts and `uneven` as its cuts have them; if these were edited, costs are unknown."""
    prices, shapes = parameter_prices(model), {n: tuple(p.shape) for n, p in model.named_parameters()}
    after = int(applied.price(prices, shapes))
    found = replace(
        plan,
        params_before=sum(math.prod(shape) for shape in shapes.values()),
        params_after=after,
        uneven=_is_uneven(applied, model),
        counted_cuts=fingerprint(plan.cuts),
    )
    notes = list(plan.notes)
    if plan.is_edited:
        notes = ["the plan was edited: its predicted cost is unknown"]
        found = replace(found, costs={}, predicted_cost=None, expected=None)
    if found.uneven and UNSAID not in notes:
        notes.append(UNSAID)
    return replace(
        found, notes=tuple(notes), rows=rows_of(applied, None if found.predicted_cost is None else found.costs, shapes)
    )


def _is_uneven(applied: AppliedCuts, model: nn.Module) -> bool:
    """Whether only `dnge_compress.load` can rebuild the result: its config, if it has one, can't say what was cut."""
    if getattr(model, "config", None) is None or not applied.cuts:
        return False
    return applied.graph.family == TRACED or not applied.reloads_plainly


def _best(
    trial: Trial, found: Sequence[Candidate], uneven: Candidate | None, recipe: Recipe
) -> tuple[Candidate, list[str]]:
    """The candidate whose output moves least, and what was measured; `uneven` is not to be had, but worth knowing."""
    if len(found) == 1:
        return found[0], []
    measured, context = [*found, uneven] if uneven else found, trial.context
    context.progress("compare plans", 0, len(measured))
    costs = list[float]()
    for i, candidate in enumerate(measured):
        costs.append(trial.one_shot(candidate.applied, recipe.repair).nats)
        context.progress("compare plans", i + 1, len(measured))
    best = min(range(len(found)), key=costs.__getitem__)
    for candidate in measured:
        if candidate.applied.cuts != found[best].applied.cuts:
            parts_under(context, candidate.applied, recipe.repair).let_go()
    rows = [f"{_describe(context, c)}: {d:.3g}" for c, d in zip(found, costs, strict=False)]
    rows[best] += " (chosen)"
    notes = [f"candidates by measured KL divergence on {trial.where}, in nats: {'; '.join(rows)}"]
    if uneven and costs[-1] < WORTH_KNOWING * costs[best]:
        notes.append(
            f"equal widths cost: with uneven: true a plan of this size leaves {costs[-1]:.3g} nats where this one "
            f"leaves {costs[best]:.3g} before the last repair; it loads with dnge_compress.load only"
        )
    return found[best], notes


def _measure_note(context: ScoringContext) -> list[str]:
    """What damage to a plain module means, whose outputs no class name tells."""
    model, inputs = context.model, context.example_inputs
    if getattr(model, "config", None) is not None or inputs is None:
        return []
    with torch.no_grad(), inference_mode_of(model):
        found = outputs(model, to_device(inputs, device_of(model)))
    first = main_output(found)
    count = len(found) if isinstance(found, tuple | list | Mapping) else 1
    which = f"the first of {count} outputs" if count > 1 else "the output"
    shape = f"[{', '.join(map(str, first.shape))}]"
    if are_scores(first, has_logits(model)):
        return [f"{which}, {shape}, is taken for scores of classes: damage is their KL divergence"]
    return [f"{which}, {shape}, is not taken for scores of classes: damage is its squared error"]


def _describe(context: ScoringContext, candidate: Candidate) -> str:
    """ "2 of 6 layers, 12 to 18 of 64 neurons": what a candidate keeps of each kind, in the spaces that it cuts."""
    kept: dict[str, list[tuple[int, int]]] = {}
    for cut in candidate.applied.cuts:
        space = context.graph.space(cut.space)
        kept.setdefault(space.kind, []).append((len(cut.keep), space.units))
    told = [(kind, *map(_span, zip(*counts, strict=True))) for kind, counts in kept.items()]
    return ", ".join(f"{some} of {units} {kind}s" for kind, some, units in told) or "nothing"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
