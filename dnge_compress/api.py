"""The public verbs. `compress` is the whole line in a few calls; each of them works alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from dnge_compress.checkpoint import Compression, check_weights, load, opened, save
from dnge_compress.checkpoint.carried import attach, own_config
from dnge_compress.core.errors import PlanError, RecipeError
from dnge_compress.core.progress import Progress, reporter
from dnge_compress.core.verbs import verb
from dnge_compress.core.wording import kind
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.digest import digest
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.tracing.running import copied, trainable
from dnge_compress.graph.types import Cut, ModelGraph, Scores
from dnge_compress.plans.expected import expected
from dnge_compress.plans.held import full_path
from dnge_compress.plans.legal_widths import refuse_all_fixed
from dnge_compress.plans.planner import counted, make_plan
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.trial import Repaired, best_repair
from dnge_compress.plans.vocabulary_plan import VocabularyPlan
from dnge_compress.recipes.library import resolve
from dnge_compress.recipes.library import validate as validate_recipe
from dnge_compress.recipes.methods import SCORERS
from dnge_compress.recipes.schema import Recipe
from dnge_compress.report.report import build_report
from dnge_compress.scorers import ScoringContext
from dnge_compress.scorers import score as run_scorer
from dnge_compress.signals.calibration import length_note, synthesize
from dnge_compress.signals.doubts import doubts, kind_of_inputs
from dnge_compress.signals.inference import Inputs, first_examples
from dnge_compress.signals.tokenizer import tokenizer_fault
from dnge_compress.signals.user_data import checked_data, refuse_without_pictures
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.exactness import check
from dnge_compress.surgery.repair import apply_repair
from dnge_compress.vocabulary.trim import apply_vocabulary

__all__ = ["apply", "build_graph", "compress", "load", "plan", "preview", "save", "score"]

Model: TypeAlias = nn.Module | str | Path
AnyRecipe: TypeAlias = str | Path | Mapping[str, Any] | Recipe | float
T = TypeVar("T")
DEFAULT = "prune/default"
CHECK_ROWS = 2  # examples for the exactness check


@verb
def compress(
    model: Model,
    recipe: AnyRecipe = DEFAULT,
    *,
    ratio: float | None = None,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    inplace: bool = False,
    **overrides: Any,
) -> nn.Module:
    """A smaller, faster copy of `model` that answers nearly as before. No data is needed.

    `model` is an nn.Module, a Hugging Face model, or the path or hub id of one; `torch.compile` and data parallelism
    around it are taken off. `ratio` (0 <= ratio < 1) is the fraction to remove, of the non-embedding parameters
    unless the recipe says otherwise. The model is calibrated on
    `data`, an iterable of its inputs, or on synthetic ones. `example_inputs` lets a plain module be traced;
    `recipe` is the name of one that comes with the package (`dnge recipes ls`), the path of a YAML file, a value, or a
    mapping; a number in its place is the ratio. Further keywords override leaves of it (scorer="magnitude",
    compensate="none", seed=1). `progress` is called along the way (core/progress.py), or draws bars if it is True.
    `inplace` lets the object `model` itself become the smaller network, so that what isn't
    cut exists once: parameters, optimizers and submodules taken from it before are no longer its own. The result
    carries `.dnge.plan` and `.dnge.report`.

    Raises a DngeError (core/errors.py) and leaves the model as it was.

        small = compress(AutoModelForCausalLM.from_pretrained("gpt2"), 0.3)
    """
    started = time.perf_counter()
    job = _Job(model, recipe, overrides | {"ratio": ratio}, data, example_inputs, progress)
    found = job.plan()
    planned = time.perf_counter()
    return job.apply(found, inplace, {"plan": planned - started})


@verb
def score(
    model: Model,
    recipe: AnyRecipe = DEFAULT,
    *,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    **overrides: Any,
) -> Scores:
    """Predicted cost of removing each unit, by the recipe's scorer. The model is only read; arguments as in `compress`.

    Raises a DngeError.

        scores = score(model, scorer="obs")
    """
    job = _Job(model, recipe, overrides, data, example_inputs, progress)
    job.kinds |= {"layer"}  # the scores may be planned from with another recipe
    return job.scores()


@verb
def plan(
    model: Model,
    recipe: AnyRecipe = DEFAULT,
    *,
    ratio: float | None = None,
    scores: Scores | None = None,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    **overrides: Any,
) -> PrunePlan:
    """What a recipe would keep and cut, as a value: print it, edit it, `apply` it. The model is only read.

    `scores` from `score` are used again if given (at another ratio, say); the other arguments are as in `compress`.

        Path("plan.json").write_text(plan(model, ratio=0.3).to_json())
    """
    return _Job(model, recipe, overrides | {"ratio": ratio}, data, example_inputs, progress).plan(scores)


@verb
def apply(
    plan: PrunePlan | VocabularyPlan | str | Path,
    model: Model,
    *,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    inplace: bool = False,
    any_weights: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Carry out a plan, or the one in a file, on its base model, and repair as the plan's recipe says; a
    `VocabularyPlan` needs no more.

    Raises PlanError if the model's names, shapes or (unless `any_weights`) values are not those the plan was made for.

        small = apply("plan.json", model)
    """
    if isinstance(plan, VocabularyPlan):
        return apply_vocabulary(plan, model, inplace=inplace)
    plan = _given(plan, model)
    recipe: Recipe = validate_recipe(plan.recipe, "the plan's recipe")
    job = _Job(model, recipe, overrides, data, example_inputs, progress)
    if (job.recipe.prune, job.recipe.scorer) != (recipe.prune, recipe.scorer):
        raise PlanError(
            "a plan's cuts are made; only calibration, repair and check can be overridden, or make a new plan"
        )
    plan = replace(plan, recipe=job.recipe.model_dump(mode="json"))
    _refuse_other_base(plan, job.graph, job.model)
    if not any_weights and plan.weights != digest(job.model):
        raise PlanError(
            "the plan was made for a model of the same shape with other weights; pass any_weights=True "
            "(--any-weights) to apply it all the same"
        )
    applied = AppliedCuts(job.graph, plan.cuts)
    return job.apply(job.noted(counted(plan, applied, job.model)), inplace, {})


@verb
def preview(plan: PrunePlan | str | Path, model: Model, example_inputs: Inputs | None = None) -> nn.Module:
    """The base model under a plan (or the one in a file), masked, without surgery or repair: call it as the model.

    Nothing is changed.
    Raises PlanError if the model's names or shapes are not those the plan was made for.

        damaged = preview(plan, model)(**inputs)
    """
    plan = _given(plan, model)
    model = opened(model)
    graph = build_graph(model, example_inputs)
    _refuse_other_base(plan, graph, model)
    return MaskedModel(model, AppliedCuts(graph, plan.cuts))


def _given(plan: Any, model: Any) -> PrunePlan:
    """The plan that was passed, or the one in a file."""
    if isinstance(model, PrunePlan) or (isinstance(plan, nn.Module) and isinstance(model, str | Path)):
        raise PlanError("plan and model change places: apply(plan, model)")
    if isinstance(plan, str | Path):
        return PrunePlan.read(Path(plan))
    if not isinstance(plan, PrunePlan):
        raise PlanError(
            f"a plan is what plan(model) returns, or the path of its file, not a {kind(plan)}: apply(plan, model)"
        )
    return plan


def _with_ratio(recipe: Any, overrides: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Recipe and overrides, of which the recipe may be a plain ratio."""
    if isinstance(recipe, PrunePlan):
        raise PlanError("a plan is carried out by apply(plan, model)")
    if not isinstance(recipe, int | float) or isinstance(recipe, bool):
        return recipe, overrides
    if overrides.get("ratio") is not None:
        raise RecipeError(f"the ratio is given twice, {recipe:g} and {overrides['ratio']}; leave one out")
    return DEFAULT, overrides | {"ratio": recipe}


def _refuse_other_base(plan: PrunePlan, graph: ModelGraph, model: nn.Module) -> None:
    if plan.base != graph.fingerprint:
        raise PlanError(
            f"the plan was made for another model (fingerprint {plan.base}, this {type(model).__name__} has "
            f"{graph.fingerprint}); make a plan for this one"
        )


class _Job:
    """One model under one recipe: opened, checked, read as a graph, with calibration inputs made on first use."""

    def __init__(
        self,
        model: Model,
        recipe: AnyRecipe,
        overrides: dict[str, Any],
        data: Iterable[Any] | None,
        example_inputs: Inputs | None,
        progress: Progress | bool,
    ) -> None:
        self.example_inputs, self.progress = example_inputs, reporter(progress)
        found = resolve(*_with_ratio(recipe, overrides))
        SCORERS.usable(found.scorer, data is not None)
        self.is_own = isinstance(model, str | Path)  # nobody else has the model
        self.given = self._during("open", opened, model) if self.is_own else opened(model)
        self.model = trainable(self.given)
        check_weights(self.model)
        part = full_path(found.prune.within, (n for n, _ in self.model.named_parameters(remove_duplicate=False)))
        self.recipe = found.model_copy(update={"prune": found.prune.model_copy(update={"within": part})})
        self.graph = self._during("read", build_graph, self.model, self.example_inputs)
        given = None if data is None else checked_data(data, self.model)
        self.data = None if given is None else given.batches
        if self.data is not None:
            refuse_without_pictures(self.data, self.model, self.graph, part)
        self.notes = given.notes if given is not None else self._calibration_notes()
        self.kinds = frozenset(self.recipe.prune.kinds)
        self._repaired: tuple[tuple[Cut, ...], Repaired] | None = None

    def _during(self, stage: str, work: Callable[..., T], *arguments: Any) -> T:
        self.progress(stage, 0, 1)
        found = work(*arguments)
        self.progress(stage, 1, 1)
        return found

    @cached_property
    def context(self) -> ScoringContext:
        return ScoringContext(
            graph=self.graph,
            model=self.model,
            calibration=self.recipe.calibration,
            kinds=self.kinds,
            data=self.data,
            example_inputs=self.example_inputs,
            repair=self.recipe.repair,
            progress=self.progress,
        )

    @cached_property
    def few_inputs(self) -> Inputs:
        """A couple of examples for the exactness check, without making all the calibration inputs for it."""
        made = self.data if self.data is not None else self.context.__dict__.get("batches")
        if made is not None:
            return first_examples(made, CHECK_ROWS)[0]
        calibration = self.recipe.calibration
        few = calibration.model_copy(update={"tokens": 2 * CHECK_ROWS * calibration.length})
        return first_examples(synthesize(self.model, few, self.example_inputs), CHECK_ROWS)[0]

    def scores(self) -> Scores:
        return run_scorer(self.recipe.scorer, self.context)

    def plan(self, scores: Scores | None = None) -> PrunePlan:
        if self.recipe.prune.ratio == 0:
            scores = Scores(units={}, scorer=self.recipe.scorer, fingerprint=self.graph.fingerprint)
        else:
            refuse_all_fixed(self.graph, self.recipe.prune)
        if scores is not None and scores.fingerprint != self.graph.fingerprint:
            raise PlanError("the scores were made for another model; score this one")
        found = make_plan(self.context, scores if scores is not None else self.scores(), self.recipe)
        return self.noted(self._with_expected(found))

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
            self._repaired = cuts, best_repair(self.context, AppliedCuts(self.graph, cuts), self.recipe.repair)
        return self._repaired[1]

    def _with_expected(self, plan: PrunePlan) -> PrunePlan:
        """The plan with what it will cost, if it is repaired, and why that may be wrong."""
        repaired = self.repaired(plan.cuts)
        if not repaired.damages:
            return plan
        calibration = self.recipe.calibration
        kind = kind_of_inputs(self.model, self.context.batches, calibration, self.example_inputs, self.data is not None)
        found = doubts(self.model, self.context.batches, calibration, kind)
        return replace(
            plan, expected=expected(repaired.damage, kind, found), notes=(*found, repaired.note, *plan.notes)
        )

    def apply(self, plan: PrunePlan, inplace: bool, timings: dict[str, float]) -> nn.Module:
        started = time.perf_counter()
        dense, inputs = self.model, self.few_inputs
        applied = AppliedCuts(self.graph, plan.cuts)
        with torch.no_grad():
            found = self.repaired(plan.cuts)
            repaired = time.perf_counter()
            self.progress("cut", 0, 1)
            small: Any = copied(dense, shares=inplace or self.is_own)
            small.__dict__.pop("dnge", None)
            cut(small, applied)
            if self.recipe.check:
                check(small, dense, applied, inputs)
            apply_repair(small, applied, found.values)
        timings = timings | {"repair": repaired - started, "surgery": time.perf_counter() - repaired}
        report = build_report(plan, self.graph, before=dense, after=small, inputs=inputs, timings=timings)
        self.progress("cut", 1, 1)
        config = getattr(dense, "config", None)
        attached = Compression(
            plan=plan,
            report=report,
            base_config=own_config(config.to_dict()) if config is not None else None,
            inputs=inputs,
        )
        if inplace:  # references to the model see the smaller network
            self.given.__dict__.clear()
            self.given.__dict__.update(small.__dict__)
            small = self.given
        attach(small, attached)
        return small
