"""The public verb of LoRA placement: where adapters go and with what rank, as an ordinary peft config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from dnge_compress.checkpoint import opened
from dnge_compress.checkpoint.again import graph_of
from dnge_compress.core.errors import RecipeError
from dnge_compress.core.progress import Progress, reporter
from dnge_compress.core.verbs import verb
from dnge_compress.data.given import given_data
from dnge_compress.graph.tracing.running import trainable
from dnge_compress.lora.export import flatten_adapter
from dnge_compress.lora.placers import PlacingContext
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.lora.planner import make_lora_plan
from dnge_compress.recipes.library import resolve
from dnge_compress.recipes.lora_schema import LoraBudget, LoraRecipe
from dnge_compress.signals.inference import Inputs

__all__ = ["flatten_adapter", "place_lora"]

Model: TypeAlias = nn.Module | str | Path


@verb
def place_lora(
    model: Model,
    recipe: str | Path | Mapping[str, Any] | LoraRecipe = "lora/default",
    *,
    budget: Mapping[str, int | float] | None = None,
    data: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | bool = False,
    **overrides: Any,
) -> LoraPlan:
    """Which matrices get a LoRA adapter, and of what rank, within a budget of trainable parameters.

    `model` is an nn.Module, a Hugging Face model (pruned or not), or the path or hub id of one; it is only read.
    `budget` is {"match_uniform_r": 16}, {"trainable_params": 4_000_000} or {"trainable_fraction": 0.01}. `data`, an
    iterable of model inputs, takes the place of synthetic ones where the placer looks at any; `example_inputs` and
    `progress` are as in `compress`. Further keywords override leaves of the recipe (placer="fisher", max_rank=32).

    Raises a DngeError.

        model = get_peft_model(model, place_lora(model).lora_config("CAUSAL_LM"))
    """
    if budget is not None:
        if not isinstance(budget, Mapping):
            known = ", ".join(LoraBudget.model_fields)
            raise RecipeError(f"budget should be a mapping with one of {known}, not {budget!r}")
        overrides["lora.budget"] = dict(budget)
    if isinstance(recipe, int | float):
        raise RecipeError(
            "a number is no recipe; a budget has a name: place_lora(model, budget={'match_uniform_r': 16})"
        )
    settings = resolve(recipe, overrides, LoraRecipe)
    found = trainable(opened(model))
    given = None if data is None else given_data(data, found, settings.calibration)
    context = PlacingContext(
        model=found,
        calibration=settings.calibration,
        data=None if given is None else given.batches,
        example_inputs=example_inputs,
        read_graph=partial(graph_of, found, example_inputs),
        progress=reporter(progress),
    )
    made = make_lora_plan(context, settings)
    return made if given is None else replace(made, notes=(*given.notes, *made.notes))
