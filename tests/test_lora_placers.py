"""Every placer on every model, what each is meant to prefer, and how ranks follow from weights."""

from __future__ import annotations

import copy
import random
from typing import Any

import models
import pytest
import torch
from peft.helpers import find_kappa_target_modules
from test_lora import FEW
from torch import nn

from dnge_compress import place_lora
from dnge_compress.core.errors import BudgetError, DataError, UnsupportedModelError, WeightError
from dnge_compress.lora import placers
from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, weigh_by
from dnge_compress.lora.ranks import allocate
from dnge_compress.lora.sites import find_sites, matrix_of
from dnge_compress.recipes.lora_schema import Lora, LoraBudget
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.gradients import mean_square_gradients, real_labels

NAMES = placers.PLACERS.names()


def context_of(name: str = "llama", *, seed: int = 0, real: bool = False) -> PlacingContext:
    """A tiny model with a few calibration inputs, which may pass for real data."""
    model = models.make(name)
    settings = Calibration(tokens=128, length=16, seed=seed)
    return PlacingContext(
        model=model, calibration=settings, data=tuple(synthesize(model, settings)) if real else None, uniform_rank=3
    )


def data_of(model: nn.Module) -> list[Any]:
    """A few batches."""
    return synthesize(model, Calibration(tokens=128, length=16))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm", "vit"])
@pytest.mark.parametrize("placer", NAMES)
def test_every_placer_makes_a_plan_that_peft_builds(name: str, placer: str) -> None:
    model = models.make(name)
    if placer == "kappa" and name == "gpt2":
        with pytest.raises(UnsupportedModelError, match="choose another"):  # it knows nn.Linear only
            place_lora(model, placer=placer, **FEW)
        return
    plan = place_lora(model, placer=placer, data=data_of(model), budget={"match_uniform_r": 3}, **FEW)
    assert plan.verify(model) == plan.params <= plan.budget


@pytest.mark.parametrize("placer", NAMES)
def test_a_placer_gives_the_same_each_time_whatever_the_global_seed(placer: str) -> None:
    first = weigh_by(placer, find_sites(models.make("llama")), context_of(real=True))
    torch.manual_seed(77)
    second = weigh_by(placer, find_sites(models.make("llama")), context_of(real=True))
    assert first == pytest.approx(second, rel=1e-5)


def test_placers_with_data_ask_for_it() -> None:
    for placer in NAMES:
        if placer in ("gradient", "eva"):
            with pytest.raises(DataError, match="needs real data"):
                place_lora(models.make("llama"), placer=placer)


def test_stable_rank_is_the_textbooks() -> None:
    context = context_of("gpt2")
    sites = find_sites(context.model)
    found = weigh_by("stable_rank", sites, context)
    for site in sites:
        values = torch.linalg.svdvals(context.model.get_parameter(f"{site.path}.weight").detach())
        assert found[site.path] == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-4)


def test_kappa_chooses_what_peft_chooses() -> None:
    context = context_of("mistral")
    sites = find_sites(context.model)
    found = {path for path, weight in weigh_by("kappa", sites, context).items() if weight}
    theirs = find_kappa_target_modules(context.model, top_p=0.2, show_progress=False)["target_modules"]
    assert {p for p in theirs if p != "lm_head"} <= found and len(found) == 4


def test_a_measured_gradient_is_autograds() -> None:
    context = context_of(real=True)
    model = copy.deepcopy(context.model)
    batch = context.batches[0]
    names = [s.weight for s in find_sites(model)]
    found = mean_square_gradients(model, names, [batch], real_labels(0))
    assert all(p.grad is None for p in model.parameters())
    ids = batch["input_ids"]
    labels = ids[:, 1:].numel()
    (model(input_ids=ids, labels=ids).loss * labels).backward()
    for name in names:
        expected = float(model.get_parameter(name).grad.square().mean()) / labels
        assert found[name] == pytest.approx(expected, rel=1e-3)


def test_given_labels_count_where_they_are_not_ignored() -> None:
    context = context_of(real=True)
    ids = context.batches[0]["input_ids"]
    labels = ids.clone()
    labels[:, :8] = -100
    names = [find_sites(context.model)[0].weight]
    whole = mean_square_gradients(context.model, names, [{"input_ids": ids, "labels": ids}], real_labels(0))
    part = mean_square_gradients(context.model, names, [{"input_ids": ids, "labels": labels}], real_labels(0))
    assert part != whole and part[names[0]] > 0


@pytest.mark.parametrize("placer", ["fisher", "gradient"])
def test_a_matrix_behind_which_nothing_is_read_gets_no_gradient(placer: str) -> None:
    context = context_of(real=True)
    with torch.no_grad():
        context.model.get_parameter("model.layers.1.mlp.down_proj.weight").zero_()
    found = weigh_by(placer, find_sites(context.model), context)
    assert found["model.layers.1.mlp.up_proj"] == found["model.layers.1.mlp.gate_proj"] == 0
    assert found["model.layers.1.mlp.down_proj"] > 0


@pytest.mark.parametrize("placer", ["fisher", "encoder"])
def test_weights_of_a_symmetric_model_do_not_depend_on_the_order_of_its_neurons(placer: str) -> None:
    context = context_of()
    sites = find_sites(context.model)
    before = weigh_by(placer, sites, context)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        mlp = context.model.get_submodule("model.layers.0.mlp")
        for module, axis in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
            module.weight.copy_(module.weight.index_select(axis, order))
    after = weigh_by(placer, sites, PlacingContext(model=context.model, calibration=context.calibration))
    assert after == pytest.approx(before, rel=1e-3)


def test_attention_and_mlp_share_out_the_blocks() -> None:
    for name in ("llama", "gpt2", "bert", "vit"):
        context = context_of(name)
        sites = find_sites(context.model)
        both = [weigh_by(placer, sites, context) for placer in ("attention", "mlp")]
        for site in sites:
            inside = any(part.isdigit() for part in site.path.split("."))
            assert sum(weights[site.path] for weights in both) == inside, site.path


def test_eva_counts_components_that_explain_most() -> None:
    context = context_of(real=True)
    sites = find_sites(context.model)
    found = weigh_by("eva", sites, context)
    assert sum(found.values()) == 3 * len(sites) and max(found.values()) <= 6
    block = "model.layers.0.self_attn"
    assert found[f"{block}.q_proj"] == pytest.approx(found[f"{block}.k_proj"], abs=1)  # they read the same


def test_quantized_weights_are_refused_where_values_matter() -> None:
    model = models.make("llama")
    projection = model.get_submodule("model.layers.0.self_attn.q_proj")
    projection.weight = nn.Parameter(torch.zeros(48, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(WeightError, match="quantized"):
        place_lora(model, placer="stable_rank")
    assert place_lora(model, placer="uniform", budget={"match_uniform_r": 2}).params > 0


def test_matrices_come_as_outputs_by_inputs() -> None:
    for name in ("llama", "gpt2"):
        model = models.make(name)
        for site in find_sites(model):
            assert matrix_of(model, site).shape == (1, site.outputs, site.inputs)


def random_problem(seed: int) -> tuple[list[Site], dict[str, float], int, Lora]:
    """Sites, weights, a budget and limits, all drawn."""
    rng = random.Random(seed)
    sites = [
        Site(path=f"m.{i}", kind="module", inputs=rng.randint(4, 40), outputs=rng.randint(4, 40))
        for i in range(rng.randint(1, 12))
    ]
    weights = {s.path: rng.choice([0.0, 1.0, rng.random(), 10 * rng.random()]) for s in sites}
    weights[sites[0].path] = 1.0
    low = rng.randint(1, 3)
    step = rng.randint(1, 2)
    lora = Lora(
        min_rank=low, max_rank=rng.randint(low + 1, 20), rank_multiple=step, budget=LoraBudget(match_uniform_r=1)
    )
    return sites, weights, rng.randint(300, 6000), lora


@pytest.mark.parametrize("seed", range(60))
def test_allocation_keeps_every_promise(seed: int) -> None:
    sites, weights, budget, lora = random_problem(seed)
    ranks = allocate(sites, weights, budget, lora)
    used = sum(s.price * ranks[s.path] for s in sites)
    assert used <= budget
    for site in sites:
        rank = ranks[site.path]
        assert rank % lora.rank_multiple == 0 and (rank == 0 or lora.min_rank <= rank <= min(lora.max_rank, site.size))
        assert rank == 0 or weights[site.path] > 0
        following = rank + lora.rank_multiple if rank else -(-lora.min_rank // lora.rank_multiple) * lora.rank_multiple
        if weights[site.path] > 0 and following <= min(lora.max_rank, site.size):
            assert site.price * (following - rank) > budget - used, "a further step would have fitted"


@pytest.mark.parametrize("seed", range(20))
def test_scaling_all_weights_changes_nothing(seed: int) -> None:
    sites, weights, budget, lora = random_problem(seed)
    assert allocate(sites, weights, budget, lora) == allocate(
        sites, {k: 8 * v for k, v in weights.items()}, budget, lora
    )


def test_ranks_go_with_weights() -> None:
    sites = [Site(path=f"m.{i}", kind="module", inputs=100, outputs=100) for i in range(3)]
    weights = {"m.0": 1.0, "m.1": 2.0, "m.2": 5.0}
    assert allocate(sites, weights, 200 * 16, Lora()) == {"m.0": 2, "m.1": 4, "m.2": 10}


def test_no_weight_at_all_is_an_error() -> None:
    with pytest.raises(BudgetError):
        allocate([Site(path="m", kind="module", inputs=4, outputs=4)], {"m": 0.0}, 100, Lora())
