"""One model under one recipe, from its scores to its plans and results."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from dnge_compress import __version__
from dnge_compress.checkpoint import Compression, check_weights, opened
from dnge_compress.checkpoint.again import again, graph_to_cut
from dnge_compress.checkpoint.carried import attach, own_config
from dnge_compress.core.errors import PlanError, RecipeError
from dnge_compress.core.memory import available_bytes
from dnge_compress.core.paging import Shelf, as_it_is
from dnge_compress.core.parts import NOTHING_KEPT, Parts
from dnge_compress.core.progress import Progress, reporter
from dnge_compress.core.strict_json import json_values
from dnge_compress.core.wording import kind
from dnge_compress.data.given import given_data
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.tracing.running import copied, trainable
from dnge_compress.graph.types import Cut, Scores
from dnge_compress.plans.basis import Header, named
from dnge_compress.plans.expected import Expected, expected, on_held_out
from dnge_compress.plans.held import full_path
from dnge_compress.plans.legal_widths import refuse_all_fixed
from dnge_compress.plans.planner import budget_of, make_plan
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.scoring import Scoring, basis_of, carried_on, digest_of, read_scoring, scoring_of
from dnge_compress.plans.targets import reach, shown
from dnge_compress.plans.trial import Repaired, Trial, best_repair
from dnge_compress.recipes.library import resolve
from dnge_compress.recipes.methods import SCORERS
from dnge_compress.recipes.schema import Recipe
from dnge_compress.report.report import build_report
from dnge_compress.scorers import ScoringContext
from dnge_compress.scorers import score as run_scorer
from dnge_compress.signals.calibration import length_note, synthesize
from dnge_compress.signals.comparison import Damage
from dnge_compress.signals.doubts import doubts, kind_of_inputs
from dnge_compress.signals.held_out import LEAST_HELD, fitted_and_held_out, said
from dnge_compress.signals.inference import Inputs, device_of, first_examples, to_device
from dnge_compress.signals.tokenizer import tokenizer_fault
from dnge_compress.signals.user_data import refuse_without_pictures
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.exactness import check
from dnge_compress.surgery.placement import become, spread_like
from dnge_compress.surgery.repair import apply_repair
from dnge_compress.tasks.latency import TIMED_ROWS, ratio_for_latency

Model: TypeAlias = nn.Module | str | Path
AnyRecipe: TypeAlias = str | Path | Mapping[str, Any] | Recipe | float
AnyScores: TypeAlias = Scores | str | Path
T = TypeVar("T")
DEFAULT = "prune/default"
RESULT_SHARE = 0.5  # of the memory that is free: as many smaller weights lie there, where larger ones may be mapped
CHECK_ROWS = 2  # examples for the exactness check


class Task:
    """One model under one recipe: opened, checked, read as a graph, with calibration inputs, signals and scores made on
    first use, or taken from `scores`; `parts` keep what is finished."""

    def __init__(
        self,
        model: Model,
        recipe: AnyRecipe,
        overrides: dict[str, Any],
        *,
        data: Iterable[Any] | None = None,
        example_inputs: Inputs | None = None,
        scores: AnyScores | None = None,
        progress: Progress | bool = False,
        parts: Parts = NOTHING_KEPT,
    ) -> None:
        self.example_inputs, self.progress = example_inputs, reporter(progress)
        found = resolve(*_with_ratio(recipe, overrides))
        SCORERS.usable(found.scorer, data is not None or _have_data(scores, found))
        self.is_own = isinstance(model, str | Path)  # nobody else has the model
        self.given = self._during("open", opened, model) if self.is_own else opened(model)
        self.model = trainable(self.given)
        check_weights(self.model)
        part = full_path(found.prune.within, (n for n, _ in self.model.named_parameters(remove_duplicate=False)))
        self.recipe = found.model_copy(update={"prune": found.prune.model_copy(update={"within": part})})
        self.graph = self._during("read", graph_to_cut, self.model, self.example_inputs)
        given = None if data is None else given_data(data, self.model, self.recipe.calibration)
        if given is not None:
            refuse_without_pictures(given.batches, self.model, self.graph, part)
        fitted, held_out = (None, ()) if given is None else fitted_and_held_out(given.batches)
        self.context = ScoringContext(
            graph=self.graph,
            model=self.model,
            calibration=self.recipe.calibration,
            kinds=frozenset(self.recipe.prune.kinds),
            data=fitted,
            held_out=held_out,
            example_inputs=example_inputs,
            repair=self.recipe.repair,
            progress=self.progress,
        )
        self.notes = self._calibration_notes() if given is None else (*given.notes, *said(given.batches, held_out))
        if scores is not None:
            self._take(scores)
        if parts.are_kept:
            self._begin(parts)
        self.trial = Trial(self.context)
        self._repaired: tuple[tuple[Cut, ...], Repaired] | None = None

    def _during(self, stage: str, work: Callable[..., T], *arguments: Any) -> T:
        self.progress(stage, 0, 1)
        found = work(*arguments)
        self.progress(stage, 1, 1)
        return found

    def _take(self, scores: AnyScores) -> None:
        """Go on from scores that were made before, and from their inputs and signals, if they have them."""
        if isinstance(scores, str | Path):
            scores = read_scoring(Path(scores), self.context, self.recipe)
            self.context = replace(scores.context, progress=self.progress, watch=self.context.watch)
        elif isinstance(scores, Scoring):
            self.context = carried_on(scores, self.context, self.recipe, "the scores")
        elif not isinstance(scores, Scores):
            raise PlanError(f"scores are what score(model) returns, or the folder of saved ones, not a {kind(scores)}")
        elif scores.fingerprint != self.graph.fingerprint:
            raise PlanError("the scores were made for another model; score this one")
        if isinstance(scores, Scoring) and self.context.data is not None:
            self.notes = scores.data_notes
        self.scores = scores

    def _begin(self, parts: Parts) -> None:
        """Keep what is finished among these parts, and go on from those that rest on the same."""
        shown = () if self.example_inputs is None else (to_device(self.example_inputs, torch.device("cpu")),)
        note = parts.begin(
            {
                **json_values(basis_of(self.context, self.recipe)),
                "kinds": sorted(self.context.kinds),
                "example_inputs": digest_of(shown),
                "device": str(getattr(self.model, "hf_device_map", device_of(self.model))),
                "version": __version__,
                "torch": torch.__version__,
            }
        )
        self.notes = (*self.notes, *([note] if note else []))
        self.context = replace(self.context, parts=parts)

    @cached_property
    def scores(self) -> Scores:
        """What every removal costs."""
        return run_scorer(self.recipe.scorer, self.context)

    def scoring(self) -> Scoring:
        """The scores with what they rest on; blocks are tried as well, for recipes that let them go."""
        self.context = replace(self.context, kinds=self.context.kinds | {"layer"})
        self.trial = Trial(self.context)
        return scoring_of(self.scores, self.context, self.recipe, () if self.context.data is None else self.notes)

    @cached_property
    def few_inputs(self) -> Inputs:
        """A couple of examples for the exactness check, without making all the calibration inputs for it."""
        known = self.context.data or self.context.made or vars(self.context).get("batches")
        if known is not None:
            return first_examples(known, CHECK_ROWS)[0]
        calibration = self.recipe.calibration
        few = calibration.model_copy(update={"tokens": 2 * CHECK_ROWS * calibration.length})
        return first_examples(synthesize(self.model, few, self.example_inputs), CHECK_ROWS)[0]

    def at(self, ratio: float) -> Recipe:
        """The recipe at another ratio. Raises BudgetError for one out of range."""
        return resolve(self.recipe, {"prune.ratio": ratio})

    def plan(self, recipe: Recipe | None = None) -> PrunePlan:
        """What the recipe, or another one that differs only in what is removed, would keep and cut."""
        found = self.unrepaired(recipe or self.recipe)
        return self.noted(self._with_expected(found))

    def unrepaired(self, recipe: Recipe, tries_uneven: bool = True) -> PrunePlan:
        """The plan without what the repair will leave of its damage; see `make_plan`."""
        if recipe.prune.target:
            return self._reaching(recipe, tries_uneven)
        scores: Scores | None = None
        if recipe.prune.ratio == 0:
            scores = Scores(units={}, scorer=recipe.scorer, fingerprint=self.graph.fingerprint)
        else:
            refuse_all_fixed(self.graph, recipe.prune)
        with self.context.watch.stage("plan"):
            return make_plan(self.context, scores or self.scores, recipe, self.trial, tries_uneven=tries_uneven)

    def _reaching(self, recipe: Recipe, tries_uneven: bool) -> PrunePlan:
        """The plan that reaches the recipe's target, with a note on how that was found; of several, the one whose
        output moves least."""
        prune, target = recipe.prune, recipe.prune.target
        asked, fits = shown(target, getattr(prune, target)), None
        refuse_all_fixed(self.graph, prune)
        if target == "latency":
            found = ratio_for_latency(self.context, self.scores, recipe, self.trial)
            steps = ", ".join(f"{ratio:.2f}: {shown(target, left)}" for ratio, left in sorted(found.tried.items()))
            how = f"measured here on {TIMED_ROWS} calibration examples, time over the original's by ratio: {steps}"
            ratios: tuple[float, ...] = (found.ratio,)
        else:
            reached = reach(self.model, self.graph, lambda: self.scores, prune, budget_of(self.context, prune))
            how, ratios, fits = f"of {shown(target, reached.whole)}", reached.ratios, reached.fits
        tries_uneven &= target in ("params", "bytes")  # what it would leave of other things, the ratio doesn't say
        plans: dict[float, PrunePlan] = {}
        for ratio in ratios:
            at = recipe.model_copy(update={"prune": prune.at(ratio)})
            if ratio == 0:
                plan = self.unrepaired(at)
                return replace(plan, notes=(f"{target} {asked}: {how}, so nothing is removed", *plan.notes))
            plans[ratio] = make_plan(self.context, self.scores, at, self.trial, tries_uneven=tries_uneven, fits=fits)
        damages = {ratio: self.one_shot(plan).nats if len(plans) > 1 else 0.0 for ratio, plan in plans.items()}
        best = min(plans, key=damages.__getitem__)
        note = f"{target} {asked}: {how}, reached at ratio {best:.4f}"
        return replace(plans[best], notes=(note, *plans[best].notes))

    def one_shot(self, plan: PrunePlan) -> Damage:
        """The damage under a plan and the one-shot repair."""
        return self.trial.one_shot(AppliedCuts(self.graph, plan.cuts), self.recipe.repair)

    def noted(self, plan: PrunePlan) -> PrunePlan:
        """The plan with what is to be known about this run's inputs and tokenizer."""
        fault = tokenizer_fault(str(getattr(self.model, "name_or_path", "") or ""))
        notes = (*self.notes, *([f"the tokenizer is copied as it is, but: {fault}"] if fault else []))
        return replace(plan, notes=(*(note for note in notes if note not in plan.notes), *plan.notes))

    def _calibration_notes(self) -> tuple[str, ...]:
        note = length_note(self.model, self.recipe.calibration, self.example_inputs)
        return (note,) if note else ()

    def repaired(self, cuts: tuple[Cut, ...]) -> Repaired:
        """The best repair under some cuts; made once."""
        if self._repaired is None or self._repaired[0] != cuts:
            with self.context.watch.stage("repair"):
                found = best_repair(self.context, AppliedCuts(self.graph, cuts), self.recipe.repair, self.trial)
            self._repaired = cuts, found
        return self._repaired[1]

    def _with_expected(self, plan: PrunePlan) -> PrunePlan:
        """The plan with what it will cost, if it is repaired, and why that may be wrong."""
        repaired = self.repaired(plan.cuts)
        if not repaired.damages:
            return plan
        calibration, is_real = self.recipe.calibration, self.context.data is not None
        inputs = kind_of_inputs(self.model, self.context.batches, calibration, self.example_inputs, is_real)
        found = doubts(self.model, self.context.batches, calibration, inputs)
        guess = self.foreseen(repaired.damage, inputs, found)
        return replace(plan, expected=guess, notes=(*found, repaired.note, *plan.notes))

    def expected_anew(self, plan: PrunePlan, made: Recipe) -> PrunePlan:
        """A plan that was made before, by the recipe `made`, with the damage that its repair leaves here: a plan holds
        no data, it may have been edited, and the repair may be asked for otherwise."""
        before = plan.expected
        found = self._with_expected(replace(plan, expected=None))
        if before is None:
            return found
        now, is_same = found.expected, (made.calibration, made.repair) == (self.recipe.calibration, self.recipe.repair)
        if is_same and now is not None and now.inputs == before.inputs:
            return plan
        how = f"is repaired on {now.inputs}" if now is not None else "is not repaired"
        note = f"the plan was made on {before.inputs}, and {how}: what it says of repair and damage below is of then"
        return replace(plan, expected=now, notes=(note, *plan.notes))

    def foreseen(self, damage: Damage, inputs: str, found: tuple[str, ...]) -> Expected | None:
        """What damage measured here means for real inputs of a kind, with doubts that were found."""
        # Where a batch counts as one, its examples tell nothing of their spread.
        has_spread = self.context.held_out and damage.examples >= LEAST_HELD
        return on_held_out(damage, found) if has_spread else expected(damage.nats, inputs, found)

    def apply(
        self, plan: PrunePlan, *, inplace: bool = False, shares: bool = False, before: Mapping[str, float] | None = None
    ) -> Any:
        """The smaller model: the one given, if it is changed `inplace`; else a copy, which `shares` memory with it
        where it isn't cut. Its report counts the seconds since the watch was as `before`."""
        dense, watch = self.model, self.context.watch
        applied = AppliedCuts(self.graph, plan.cuts)
        with torch.no_grad(), watch.stage("cut"):
            found = self.repaired(plan.cuts)
            inputs = self.few_inputs
            self.progress("cut", 0, 1)
            small: Any = copied(dense, shares=inplace or shares)
            small.__dict__.pop("dnge", None)
            room = int(RESULT_SHARE * available_bytes())
            keep = Shelf("the smaller weights", room).keep if inplace or shares else as_it_is
            cut(small, applied, keep)
            if self.recipe.check:
                check(small, dense, applied, inputs)
            apply_repair(small, applied, found.values, keep)
            spread_like(small, dense, applied)
        timings = watch.since(before or {})
        report = build_report(plan, self.graph, before=dense, after=small, inputs=inputs, timings=timings)
        self.progress("cut", 1, 1)
        config = getattr(dense, "config", None)
        attached = Compression(
            plan=plan,
            report=report,
            base_config=own_config(config.to_dict()) if config is not None else None,
            inputs=inputs,
        )
        attach(small, again(dense, self.graph, attached))
        if inplace:  # references to the model see the smaller network
            become(self.given, small)
            small = self.given
        return small


def _have_data(scores: Any, recipe: Recipe) -> bool:
    """Whether scores were made on a user's data; saved ones that don't fit the recipe are refused."""
    if scores is None:
        return False
    if isinstance(scores, str | Path):
        basis = Header.read(Path(scores)).basis
        basis.refuse_recipe(recipe, named(Path(scores)))
        return bool(basis.data)
    return not isinstance(scores, Scoring) or bool(scores.basis.data)


def _with_ratio(recipe: Any, overrides: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Recipe and overrides, of which the recipe may be a plain ratio."""
    if isinstance(recipe, PrunePlan):
        raise PlanError("a plan is carried out by apply(plan, model)")
    if not isinstance(recipe, numbers.Real) or isinstance(recipe, bool):
        return recipe, overrides
    recipe = float(recipe)
    if overrides.get("ratio") is not None:
        raise RecipeError(f"the ratio is given twice, {recipe:g} and {overrides['ratio']}; leave one out")
    return DEFAULT, overrides | {"ratio": recipe}
