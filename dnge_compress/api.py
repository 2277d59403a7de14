"""The public verbs. `compress` is the whole line in a few calls; each of them works alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from torch import nn

from dnge_compress.checkpoint import load, opened, save
from dnge_compress.core.errors import PlanError, RecipeError
from dnge_compress.core.parts import Parts, kept_parts
from dnge_compress.core.progress import Progress
from dnge_compress.core.verbs import verb
from dnge_compress.core.wording import kind
from dnge_compress.data.given import JUDGED, given_data
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.digest import digest
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import ModelGraph
from dnge_compress.plans.planner import counted
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.scoring import Scoring
from dnge_compress.plans.vocabulary_plan import VocabularyPlan, read_plan_of_cuts, refuse_beside_tokens
from dnge_compress.recipes.library import validate as validate_recipe
from dnge_compress.recipes.schema import Recipe
from dnge_compress.report.curve import RatioCurve
from dnge_compress.signals.inference import Inputs
from dnge_compress.tasks.curve import curve_of
from dnge_compress.tasks.task import DEFAULT, AnyRecipe, AnyScores, Model, Task
from dnge_compress.vocabulary.trim import apply_vocabulary

__all__ = ["apply", "build_graph", "compress", "curve", "load", "plan", "preview", "save", "score"]

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of a curve


@overload
def compress(
    model: Model, recipe: AnyRecipe = ..., *, ratio: Sequence[float], inplace: bool = ..., **settings: Any
) -> list[nn.Module]: ...
@overload
def compress(
    model: Model, recipe: AnyRecipe = ..., *, ratio: float | None = ..., inplace: bool = ..., **settings: Any
) -> nn.Module: ...
@verb
def compress(
    model: Model,
    recipe: AnyRecipe = DEFAULT,
    *,
    ratio: float | Sequence[float] | None = None,
    scores: AnyScores | None = None,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    work: str | Path | Parts | None = None,
    inplace: bool = False,
    **overrides: Any,
) -> nn.Module | list[nn.Module]:
    """A smaller, faster copy of `model` that answers nearly as before. No data is needed.

    `model` is an nn.Module, a Hugging Face model, or the path or hub id of one; `torch.compile` and data parallelism
    around it are taken off. `ratio` (0 <= ratio < 1) is the fraction to remove, of the non-embedding parameters
    unless the recipe says otherwise; of several ratios there are as many results, in their order, from one scoring.
    The model is calibrated on `data`, an iterable of its inputs, or on synthetic ones, unless `scores` from `score`, or
    the folder of saved ones, are given: then on those that they were made on. `example_inputs` lets a plain module be
    traced; `recipe` is the name of one that comes with the package (`dnge recipes ls`), the path of a YAML file, a
    value, or a mapping; a number in its place is the ratio. Further keywords override leaves of it (scorer="magnitude",
    compensate="none", seed=1). `progress` is called along the way (core/progress.py), or draws bars if it is True.
    `work` is a folder for finished parts (inputs, signals of a block, refitted matrices), from which the same call goes
    on after it was stopped, to the same result; it is taken away at the end. `inplace` lets the object `model` itself
    become the smaller network, so that what isn't cut exists once: parameters, optimizers and submodules taken from it
    before are no longer its own. The result carries `.dnge.plan` and `.dnge.report`.

    Raises a DngeError (core/errors.py) and leaves the model as it was.

        small = compress(AutoModelForCausalLM.from_pretrained("gpt2"), 0.3)
    """
    ratios = _several(ratio, inplace)
    overrides |= {"ratio": max(ratios) if ratios else ratio}
    given: dict[str, Any] = {"data": data, "example_inputs": example_inputs, "scores": scores, "progress": progress}
    with kept_parts(work) as parts:
        task = Task(model, recipe, overrides, parts=parts, **given)
        if not ratios:
            return task.apply(task.plan(), inplace=inplace, shares=task.is_own)
        recipes = {r: task.at(r) for r in sorted(set(ratios), reverse=True)}  # what can't be reached ends it at once
        found = dict[float, nn.Module]()
        for r, recipe in recipes.items():
            before = dict(task.context.watch.seconds)
            found[r] = task.apply(task.plan(recipe), before=before)
        return [found[r] for r in ratios]


def _several(ratio: float | Sequence[float] | None, inplace: bool) -> Sequence[float]:
    """The ratios of a list; none if it isn't one. Raises RecipeError."""
    if not isinstance(ratio, Sequence) or isinstance(ratio, str):
        return ()
    if not ratio or any(isinstance(r, bool) or not isinstance(r, int | float) for r in ratio):
        raise RecipeError(f"ratio should be a number, or a list of some, not {list(ratio)!r:.80}")
    if inplace:
        raise RecipeError("inplace makes one model smaller, and several ratios give several; leave one of both out")
    return ratio


@verb
def score(
    model: Model,
    recipe: AnyRecipe = DEFAULT,
    *,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    **overrides: Any,
) -> Scoring:
    """Predicted cost of removing each unit, by the recipe's scorer, with what planning needs besides. The model is only
    read; arguments as in `compress`.

    `plan`, `apply` and `compress` take the result, or the folder that its `save` writes, and then need no pass over the
    inputs. Raises a DngeError.

        score(model, scorer="obs").save("scores")
    """
    return Task(model, recipe, overrides, data=data, example_inputs=example_inputs, progress=progress).scoring()


@verb
def plan(
    model: Model,
    recipe: AnyRecipe = DEFAULT,
    *,
    ratio: float | None = None,
    scores: AnyScores | None = None,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    **overrides: Any,
) -> PrunePlan:
    """What a recipe would keep and cut, as a value: print it, edit it, `apply` it. The model is only read.

    `scores` from `score`, or the folder of saved ones, are used again if given (at another ratio, say), with the inputs
    they were made on; the other arguments are as in `compress`. Raises PlanError for scores of another model or recipe.

        Path("plan.json").write_text(plan(model, ratio=0.3).to_json())
    """
    overrides = overrides | {"ratio": ratio}
    return Task(
        model, recipe, overrides, data=data, example_inputs=example_inputs, scores=scores, progress=progress
    ).plan()


@verb
def curve(
    model: Model,
    recipe: AnyRecipe = DEFAULT,
    *,
    ratios: Sequence[float] = RATIOS,
    held_out: Iterable[Any] | None = None,
    scores: AnyScores | None = None,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    **overrides: Any,
) -> RatioCurve:
    """How much of a model may go before it costs: plans at several ratios from one scoring, each with its size, its
    expected and measured damage and its speed, and the knee behind which damage grows. The model is only read.

    `held_out`, an iterable of inputs as `data` is one, judges the smaller models as well: by the perplexity of a causal
    language model, the accuracy where inputs hold `labels`, else the divergence from the whole model's answers. The
    other arguments are as in `compress`. Raises BudgetError for a ratio that can't be reached, and other DngeErrors.

        print(curve(model, ratios=[0.1, 0.2, 0.3, 0.4]))
    """
    task = Task(model, recipe, overrides, data=data, example_inputs=example_inputs, scores=scores, progress=progress)
    judged = () if held_out is None else given_data(held_out, task.model, JUDGED).batches
    return curve_of(task, ratios, judged)


@verb
def apply(
    plan: PrunePlan | VocabularyPlan | str | Path,
    model: Model,
    *,
    scores: AnyScores | None = None,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    inplace: bool = False,
    any_weights: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Carry out a plan, or the one in a file, on its base model, and repair as the plan's recipe says; a plan of tokens
    takes no further arguments but `inplace`. With `scores`, the repair takes their inputs and signals.

    Raises PlanError if the model's names, shapes or (unless `any_weights`) values are not those the plan was made for,
    or an argument doesn't go with the plan.

        small = apply("plan.json", model)
    """
    plan = _given(plan, model)
    if isinstance(plan, VocabularyPlan):
        given = {"data": data is not None, "example_inputs": example_inputs is not None}
        given |= {"scores": scores is not None, "any_weights": any_weights}
        refuse_beside_tokens(*(name for name, is_given in given.items() if is_given), *overrides)
        return apply_vocabulary(plan, model, inplace=inplace)
    recipe: Recipe = validate_recipe(plan.recipe, "the plan's recipe")
    task = Task(model, recipe, overrides, data=data, example_inputs=example_inputs, scores=scores, progress=progress)
    if (task.recipe.prune, task.recipe.scorer) != (recipe.prune, recipe.scorer):
        raise PlanError(
            "a plan's cuts are made; only calibration, repair and check can be overridden, or make a new plan"
        )
    plan = replace(plan, recipe=task.recipe.model_dump(mode="json"))
    _refuse_other_base(plan, task.graph, task.model)
    if not any_weights and plan.weights != digest(task.model):
        raise PlanError(
            "the plan was made for a model of the same shape with other weights; pass any_weights=True "
            "(--any-weights) to apply it all the same"
        )
    applied = AppliedCuts(task.graph, plan.cuts)
    plan = task.noted(task.expected_anew(counted(plan, applied, task.model), recipe))
    return task.apply(plan, inplace=inplace, shares=task.is_own)


@verb
def preview(plan: PrunePlan | str | Path, model: Model, example_inputs: Inputs | None = None) -> nn.Module:
    """The base model under a plan (or the one in a file), masked, without surgery or repair: call it as the model.

    Nothing is changed.
    Raises PlanError if the model's names or shapes are not those the plan was made for.

        damaged = preview(plan, model)(**inputs)
    """
    found = _given(plan, model)
    if isinstance(found, VocabularyPlan):
        raise PlanError("a plan of tokens can't be previewed; apply(plan, model) leaves the model as it is")
    model = opened(model)
    graph = build_graph(model, example_inputs)
    _refuse_other_base(found, graph, model)
    return MaskedModel(model, AppliedCuts(graph, found.cuts))


def _given(plan: Any, model: Any) -> PrunePlan | VocabularyPlan:
    """The plan that was passed, or the one in a file."""
    if isinstance(model, PrunePlan | VocabularyPlan) or (isinstance(plan, nn.Module) and isinstance(model, str | Path)):
        raise PlanError("plan and model change places: apply(plan, model)")
    if isinstance(plan, str | Path):
        return read_plan_of_cuts(Path(plan))
    if not isinstance(plan, PrunePlan | VocabularyPlan):
        raise PlanError(
            f"a plan is what plan(model) returns, or the path of its file, not a {kind(plan)}: apply(plan, model)"
        )
    return plan


def _refuse_other_base(plan: PrunePlan, graph: ModelGraph, model: nn.Module) -> None:
    if plan.base != graph.fingerprint:
        raise PlanError(
            f"the plan was made for another model (fingerprint {plan.base}, this {type(model).__name__} has "
            f"{graph.fingerprint}); make a plan for this one"
        )
