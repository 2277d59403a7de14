"""What a recipe makes of a placer's weights: a LoRA plan within the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from dnge_compress.core.errors import BudgetError, RecipeError
from dnge_compress.lora.adapters import Adapter, Site
from dnge_compress.lora.placers import PlacingContext, weigh_by
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.lora.ranks import allocate, ladder
from dnge_compress.lora.sites import find_sites, lora_fingerprint
from dnge_compress.recipes.lora_schema import Lora, LoraBudget, LoraRecipe
from dnge_compress.recipes.methods import PLACERS


def make_lora_plan(context: PlacingContext, recipe: LoraRecipe) -> LoraPlan:
    """Where the recipe puts adapters on the context's model, which is only read.

    Raises BudgetError for a budget that can't be met, UnknownNameError for an unknown placer or target, and whatever
    the placer raises.
    """
    lora = recipe.lora
    PLACERS.usable(lora.placer, context.data is not None)
    sites = find_sites(context.model, lora.target_modules, lora.exclude_modules)
    if lora.lora_dropout and any(s.kind == "parameter" for s in sites):
        raise RecipeError("lora_dropout must be 0: peft can't drop the inputs of adapters on experts' parameters")
    budget = params_of(lora.budget, sites, context.model)
    allocate(sites, {s.path: 1.0 for s in sites}, budget, lora)  # an impossible budget fails before anything is run
    context = replace(context, uniform_rank=budget / sum(s.price for s in sites))
    return plan_of_weights(context.model, sites, weigh_by(lora.placer, sites, context), recipe)


def plan_of_weights(
    model: nn.Module, sites: Sequence[Site], judged: Mapping[str, float], recipe: LoraRecipe
) -> LoraPlan:
    """The plan in which ranks follow given weights; sites without one get the mean. Raises BudgetError."""
    lora = recipe.lora
    budget = params_of(lora.budget, sites, model)
    weights = dict.fromkeys((s.path for s in sites), sum(judged.values()) / len(judged)) | dict(judged)
    ranks = allocate(sites, weights, budget, lora)
    return LoraPlan(
        adapters=tuple(
            Adapter(site=s, rank=ranks[s.path], score=weights[s.path], reason=_reason(s, ranks, weights, lora))
            for s in sites
        ),
        base=lora_fingerprint(model),
        budget=budget,
        recipe=recipe.model_dump(mode="json"),
        notes=tuple(_notes(sites, ranks, weights, budget, lora, [s.path for s in sites if s.path not in judged])),
    )


def params_of(budget: LoraBudget, sites: Sequence[Site], model: nn.Module) -> int:
    """The budget in trainable parameters. Raises BudgetError if it's less than one."""
    if budget.match_uniform_r is not None:
        return sum(s.price * min(budget.match_uniform_r, s.size) for s in sites)
    if budget.trainable_params is not None:
        return budget.trainable_params
    assert budget.trainable_fraction is not None  # the schema takes exactly one of the three
    total = sum(p.numel() for p in model.parameters())
    params = int(budget.trainable_fraction * total)
    if params < 1:
        raise BudgetError(f"trainable_fraction {budget.trainable_fraction:g} of {total:,} parameters is less than one")
    return params


def _reason(site: Site, ranks: Mapping[str, int], weights: Mapping[str, float], lora: Lora) -> str:
    rank, steps = ranks[site.path], ladder(site, lora)
    mean = sum(weights.values()) / len(weights)
    share = f"{weights[site.path] / mean:.2g} × the mean weight" if mean else "no weight"
    if not steps:
        return "too small for min_rank"
    if rank == steps[-1]:
        return f"{share}; {'the matrix has no more' if site.size < lora.max_rank else 'max_rank'}"
    return share if rank else f"{share}: too little for a first rank"


def _notes(
    sites: Sequence[Site],
    ranks: Mapping[str, int],
    weights: Mapping[str, float],
    budget: int,
    lora: Lora,
    unjudged: Sequence[str],
) -> Iterator[str]:
    used = sum(s.price * ranks[s.path] for s in sites)
    wanted = lora.budget.match_uniform_r
    small = [s for s in sites if wanted is not None and s.size < wanted]
    if small:
        most = max(s.size for s in small)
        which = "every matrix" if len(small) == len(sites) else f"{len(small)} of {len(sites)} matrices"
        yield (
            f"match_uniform_r {wanted} is above the rank of {which} (at most {most}): counted with their own, it is "
            f"{budget:,} parameters"
        )
    full = all(ranks[s.path] == (ladder(s, lora) or [0])[-1] for s in sites if weights[s.path] > 0)
    if full and used < budget:
        yield (
            f"max_rank {lora.max_rank} and the matrices' sizes leave {budget - used:,} parameters unused: {used:,} of "
            f"{budget:,} are trained"
        )
    without = sum(1 for s in sites if not ranks[s.path])
    if without:
        yield f"{without} of {len(sites)} matrices get no adapter"
    if unjudged:
        yield f"placer '{lora.placer}' can't judge {', '.join(unjudged)}: mean weight there"
