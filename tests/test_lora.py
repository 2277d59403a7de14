"""LoRA plans: the value itself, and that what is placed is within its limits on every model."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import models
import pytest
import torch
from peft import get_peft_model
from torch import nn

from dnge_compress import LoraPlan, place_lora
from dnge_compress.core.errors import (
    BudgetError,
    DngeError,
    PlanError,
    RecipeError,
    UnknownNameError,
    UnsupportedModelError,
)

FEW = {"tokens": 128, "length": 16}
LANGUAGE = ("llama", "llama_mqa", "llama_bias", "mistral", "qwen2", "qwen3", "gpt2")


def placed(name: str = "llama", **settings: Any) -> tuple[nn.Module, LoraPlan]:
    """A tiny model and a plan for it."""
    model = models.make(name)
    return model, place_lora(model, **({"placer": "stable_rank", "budget": {"match_uniform_r": 3}} | FEW | settings))


def trainable(model: nn.Module) -> int:
    """Parameters that training would change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [n for n in models.FAMILIES if n != "resnet_bare"])
@pytest.mark.parametrize("placer", ["uniform", "stable_rank", "encoder"])
def test_what_peft_builds_is_what_was_planned_on_every_family(name: str, placer: str) -> None:
    model, plan = placed(name, placer=placer)
    assert plan.verify(model) == plan.params == trainable(get_peft_model(model, plan.lora_config()))
    assert plan.params <= plan.budget
    for adapter in plan.adapters:
        assert 0 <= adapter.rank <= min(64, adapter.site.size)


def test_a_placement_changes_nothing_before_training() -> None:
    model, plan = placed()
    inputs, before = models.example_inputs("llama"), copy.deepcopy(model.state_dict())
    expected = models.outputs(model, inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    adapted = get_peft_model(model, plan.lora_config("CAUSAL_LM")).eval()
    torch.testing.assert_close(models.outputs(adapted, inputs), expected, rtol=0, atol=0)


def test_placing_only_reads_the_model() -> None:
    model = models.make("llama")
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    plan = place_lora(model, placer="encoder", budget={"match_uniform_r": 2}, **FEW)
    plan.verify(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()} and not model.training


def test_uniform_at_a_uniform_budget_is_that_rank_everywhere() -> None:
    _, plan = placed(placer="uniform")
    assert {a.rank for a in plan.adapters} == {3} and plan.params == plan.budget
    assert plan.lora_config().rank_pattern == {}


def test_the_same_seed_gives_the_same_plan() -> None:
    first, second = (placed(placer="encoder")[1] for _ in range(2))
    assert first.to_json() == second.to_json()


@pytest.mark.parametrize(("placer", "stage"), [("fisher", "measure gradients"), ("stable_rank", "compute spectra")])
def test_progress_is_reported_and_the_rank_of_the_budget_is_no_callback(placer: str, stage: str) -> None:
    seen: list[tuple[Any, ...]] = []
    reported = place_lora(models.make("llama"), placer=placer, progress=lambda *step: seen.append(step), **FEW)
    assert seen and {name for name, *_ in seen} - {"make inputs"} == {stage} and seen[-1][1] == seen[-1][2]
    assert reported == place_lora(models.make("llama"), placer=placer, **FEW)


def test_a_plan_survives_json_and_reads_one_line_per_adapter() -> None:
    _model, plan = placed()
    text = plan.to_json()
    assert LoraPlan.from_json(text) == plan
    lines = [line for line in text.splitlines() if '"path"' in line]
    assert len(lines) == len(plan.adapters) == 21
    assert json.loads(lines[0].rstrip(","))["rank"] == plan.adapters[0].rank


def test_an_edited_rank_is_what_counts() -> None:
    model, plan = placed()
    raw = plan.to_dict()
    raw["adapters"][0]["rank"] = 0
    edited = LoraPlan.from_json(json.dumps(raw))
    assert edited.verify(model) == plan.params - plan.adapters[0].params


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.update(colour="red"), "unknown key 'colour'"),
        (lambda raw: raw["adapters"][0].update(colour="red"), "unknown key 'colour'"),
        (lambda raw: raw.pop("base"), "'base' is missing; correct it, or make a plan with `dnge place`"),
        (lambda raw: raw["adapters"][0].pop("rank"), r"adapters\[0\]: 'rank' is missing"),
        (lambda raw: raw["adapters"][0].update(rank=2.5), "rank should be a whole number, not 2.5"),
        (lambda raw: raw["adapters"][0].update(rank=1000), "from 0 to 48"),
        (lambda raw: raw["adapters"][0].update(rank=-1), "from 0 to 48"),
        (lambda raw: raw["adapters"][0].update(kind="layer"), "should be one of module, parameter, not 'layer'"),
        (lambda raw: raw["adapters"].append(raw["adapters"][0]), "at most one adapter per matrix"),
        (lambda raw: [a.update(rank=0) for a in raw["adapters"]], "places no adapter"),
        (lambda raw: raw.update(adapters="all"), "adapters should be a list, not 'all'"),
        (lambda raw: raw.update(dnge_lora_plan=99), "version 1"),
    ],
)
def test_a_broken_plan_says_what_is_wrong(change: Any, said: str) -> None:
    raw = placed()[1].to_dict()
    change(raw)
    with pytest.raises(PlanError, match=said):
        LoraPlan.from_json(json.dumps(raw))


def test_a_plan_is_refused_on_another_model() -> None:
    _, plan = placed("llama")
    with pytest.raises(PlanError, match="another model"):
        plan.verify(models.make("llama_mqa"))


@pytest.mark.parametrize(
    "budget",
    [{"match_uniform_r": 1}, {"trainable_params": 1234}, {"trainable_params": 5000}, {"trainable_fraction": 0.05}],
)
@pytest.mark.parametrize("placer", ["uniform", "stable_rank", "encoder"])
def test_a_budget_is_never_exceeded_and_nearly_used_up(budget: dict[str, Any], placer: str) -> None:
    model, plan = placed(budget=budget, placer=placer)
    asked = {
        "match_uniform_r": plan.budget,
        "trainable_params": budget.get("trainable_params"),
        "trainable_fraction": int(0.05 * sum(p.numel() for p in model.parameters())),
    }[next(iter(budget))]
    assert plan.budget == asked
    cheapest = min(a.site.price for a in plan.adapters if a.score > 0)
    assert plan.budget - cheapest < plan.params <= plan.budget


def test_ranks_keep_to_the_recipes_limits() -> None:
    _, plan = placed(min_rank=2, max_rank=6, rank_multiple=2, budget={"match_uniform_r": 4})
    assert {a.rank for a in plan.adapters} <= {0, 2, 4, 6}
    _, plan = placed(max_rank=2, budget={"match_uniform_r": 4})
    assert {a.rank for a in plan.adapters} == {2} and "unused" in plan.notes[0]


@pytest.mark.parametrize("budget", [{"match_uniform_r": 5000}, {"trainable_params": 10**9}])
def test_a_budget_above_every_matrix_says_how_much_is_used(budget: dict[str, int]) -> None:
    _, plan = placed(max_rank=10**6, budget=budget)
    assert all(a.rank == a.site.size for a in plan.adapters)
    said = [note for note in plan.notes if f"{plan.params:,}" in note]
    assert len(said) == 1 and ("match_uniform_r 5000 is above" in said[0] or "parameters unused" in said[0])
    _, plan = placed(budget={"match_uniform_r": 4})
    assert not any("match_uniform_r" in note or "unused" in note for note in plan.notes)


def test_a_rank_above_that_of_some_matrices_says_how_much_those_have() -> None:
    _, plan = placed("llama_mqa", budget={"match_uniform_r": 20})
    assert "match_uniform_r 20 is above the rank of 6 of 21 matrices (at most 8)" in plan.notes[0]


def test_an_impossible_budget_says_the_smallest_possible() -> None:
    with pytest.raises(BudgetError, match="smallest possible here is 64"):
        placed(budget={"trainable_params": 63})
    _, plan = placed(budget={"trainable_params": 64})
    assert (plan.params, len(plan.placed)) == (64, 1)
    with pytest.raises(BudgetError, match="smallest possible here is 256"):
        placed(budget={"trainable_params": 255}, min_rank=4)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"placer": "uniforn"}, UnknownNameError, "uniform"),
        ({"target_modules": ["q_prj"]}, UnknownNameError, "q_proj"),
        ({"exclude_modules": ["nothing"]}, UnknownNameError, "unknown target"),
        ({"exclude_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
         UnsupportedModelError, "no matrix"),
        ({"target_modules": ["lm_head"]}, PlanError, "shares its weight"),
        ({"budget": {"match_uniform_r": 4, "trainable_params": 9}}, RecipeError, "exactly one"),
        ({"budget": {"rank": 4}}, RecipeError, "rank"),
        ({"budget": {"trainable_fraction": 1e-9}}, BudgetError, "less than one"),
        ({"colour": 3}, UnknownNameError, "colour"),
        ({"min_rank": 50, "max_rank": 60}, BudgetError, "min_rank"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(settings: dict[str, Any], error: type[DngeError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        placed(**settings)
    assert "\n" not in str(caught.value)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no matrix"):
        placed("resnet_bare")


def test_a_model_with_adapters_is_refused() -> None:
    model, plan = placed()
    with pytest.raises(UnsupportedModelError, match="merge"):
        place_lora(get_peft_model(model, plan.lora_config()), placer="uniform")


def test_targets_match_as_in_peft() -> None:
    _, plan = placed(target_modules=["q_proj", "mlp.up_proj"], exclude_modules=["1.self_attn.q_proj"])
    names = [a.site.path.removeprefix("model.layers.") for a in plan.adapters]
    assert names == ["0.self_attn.q_proj", "0.mlp.up_proj", "1.mlp.up_proj", "2.self_attn.q_proj", "2.mlp.up_proj"]


def test_an_untied_output_embedding_is_no_target_unless_named() -> None:
    _, plan = placed("mistral")
    assert not any("lm_head" in a.site.path for a in plan.adapters)
    model, plan = placed("mistral", target_modules=["lm_head"])
    assert plan.verify(model) == plan.params


def test_an_unknown_family_places_by_weights_but_not_by_the_encoder() -> None:
    model = models.make("mlp")
    plan = place_lora(model, placer="stable_rank", budget={"match_uniform_r": 2})
    assert plan.verify(model) == plan.params
    with pytest.raises(UnsupportedModelError, match="stable_rank"):
        place_lora(model, placer="encoder", budget={"match_uniform_r": 2})


def test_peft_has_nothing_to_warn_about() -> None:
    for name in LANGUAGE:
        model, plan = placed(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", FutureWarning)  # transformers about peft's own calls
            get_peft_model(model, plan.lora_config("CAUSAL_LM"))
