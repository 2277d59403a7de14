"""What peft does with our plans: one test per trap that a mixed-rank config can fall into."""

from __future__ import annotations

import copy
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.layer import LoraLayer
from peft.utils.hotswap import hotswap_adapter
from peft.utils.other import get_pattern_key
from test_lora import FEW, placed, trainable
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from dnge_compress import LoraPlan, compress, flatten_adapter, place_lora
from dnge_compress.core.errors import CheckpointError, PlanError, RecipeError
from dnge_compress.lora.adapters import Adapter, Site
from dnge_compress.lora.peft_config import patterns
from dnge_compress.lora.sites import lora_fingerprint
from dnge_compress.lora.verify import verify
from dnge_compress.recipes.lora_schema import LoraRecipe


def moved(model: nn.Module, config: LoraConfig, seed: int = 0) -> nn.Module:
    """The model with adapters whose weights are far from their start, as after training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return adapted.eval()


def scales(model: nn.Module) -> dict[str, float]:
    """The scale of every adapter by name."""
    return {n: m.scaling["default"] for n, m in model.named_modules() if isinstance(m, LoraLayer)}


def moe(kind: str = "mixtral") -> nn.Module:
    """A tiny mixture of experts."""
    torch.manual_seed(0)
    small = dict(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    if kind == "mixtral":
        config = MixtralConfig(**small, intermediate_size=20, num_local_experts=3, num_experts_per_tok=2)
        return with_strong_experts(MixtralForCausalLM(config))
    shared = Qwen2MoeConfig(
        **small, intermediate_size=20, moe_intermediate_size=12, shared_expert_intermediate_size=16, num_experts=3,
        num_experts_per_tok=2,
    )  # fmt: skip
    return with_strong_experts(Qwen2MoeForCausalLM(shared))


@torch.no_grad()
def with_strong_experts(model: nn.Module) -> nn.Module:
    """Roughened, with experts' matrices at the scale of all others, each by its own inputs."""
    for p in models.roughened(model).parameters():
        if p.dim() == 3:
            p.mul_((p[0].numel() / p.shape[-1]) ** 0.5)
    return model.eval()


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm", "vit"])
def test_an_adapter_loads_after_saving_and_answers_the_same(name: str, tmp_path: Path) -> None:
    model, plan = placed(name)
    adapted = moved(copy.deepcopy(model), plan.lora_config())
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    inputs = models.example_inputs(name)
    torch.testing.assert_close(models.outputs(again, inputs), models.outputs(adapted, inputs), rtol=0, atol=0)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(models.outputs(merged, inputs), models.outputs(again, inputs), rtol=1e-5, atol=1e-5)


def test_generate_works_on_an_adapted_model() -> None:
    model, plan = placed("llama")
    adapted = moved(model, plan.lora_config("CAUSAL_LM"))
    ids = adapted.generate(input_ids=torch.tensor([[1, 5, 7]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert 3 < ids.shape[1] <= 7


# 1. Saving sorts the keys of a pattern, so overlapping ones change their meaning.
@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_trap_1_no_name_matches_two_patterns_in_any_order(name: str) -> None:
    _, plan = placed(name, budget={"match_uniform_r": 5}, placer="encoder")
    config = plan.lora_config()
    assert config.rank_pattern
    for adapter in plan.placed:
        for prefix in ("", "base_model.model."):
            path = f"{prefix}{adapter.site.path}"
            assert sum(re.match(rf"(.*\.)?({k})$", path) is not None for k in config.rank_pattern) <= 1
            for order in (sorted(config.rank_pattern), sorted(config.rank_pattern, reverse=True)):
                key = get_pattern_key(order, path)
                assert config.rank_pattern.get(key, config.r) == adapter.rank


def test_trap_1_a_name_that_ends_another_is_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(6, 8)}) for _ in range(2)])
            if depth:
                self.decoder = Twice(depth - 1)

    model = Twice(1)
    paths = ["layers.0.fc", "layers.1.fc", "decoder.layers.0.fc", "decoder.layers.1.fc"]
    ranks = [3, 0, 1, 2]
    adapters = tuple(
        Adapter(site=Site(path=p, kind="module", inputs=6, outputs=8), rank=r)
        for p, r in zip(paths, ranks, strict=True)
    )
    plan = LoraPlan(
        adapters=adapters, base=lora_fingerprint(model), budget=10**6, recipe=LoraRecipe().model_dump(mode="json")
    )
    assert plan.verify(model) == plan.params
    swapped = tuple(
        Adapter(site=Site(path=p, kind="module", inputs=6, outputs=8), rank=r)
        for p, r in zip(paths, [3, 1, 0, 2], strict=True)
    )
    plan = LoraPlan(
        adapters=swapped, base=lora_fingerprint(model), budget=10**6, recipe=LoraRecipe().model_dump(mode="json")
    )
    assert plan.verify(model) == plan.params


# 2. Anchored keys break EVA's initialisation, which matches them against prefixed names.
def test_trap_2_patterns_are_not_anchored_and_eva_can_initialise() -> None:
    model, plan = placed("llama")
    config = plan.lora_config("CAUSAL_LM")
    assert not any("^" in k or "$" in k for k in config.rank_pattern)
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    adapted = get_peft_model(model, config)
    ids = torch.randint(61, (40, 16), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(4)]
    initialize_lora_eva_weights(adapted, rows, show_progress_bar=False)


# 3. Hotswapping ignores patterns for exact names: with one scale for all, what it falls back to is right.
def test_trap_3_hotswapping_keeps_every_scale(tmp_path: Path) -> None:
    model, plan = placed("llama")
    first = moved(copy.deepcopy(model), plan.lora_config(), seed=1)
    expected = models.outputs(first, models.example_inputs("llama"))
    first.save_pretrained(tmp_path)
    second = moved(copy.deepcopy(model), plan.lora_config(), seed=2)
    hotswap_adapter(second, str(tmp_path), adapter_name="default", torch_device="cpu")
    assert set(scales(second).values()) == {2.0}
    torch.testing.assert_close(models.outputs(second, models.example_inputs("llama")), expected)


# 4. Linear merges of mixed-rank adapters can't be reloaded (peft #3737): flat ones can.
def test_trap_4_flat_adapters_survive_a_weighted_merge(tmp_path: Path) -> None:
    model, plan = placed("llama")
    for i in (1, 2):
        moved(copy.deepcopy(model), plan.lora_config(), seed=i).save_pretrained(tmp_path / str(i))
        flatten_adapter(tmp_path / str(i), tmp_path / f"flat{i}")
    both = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "flat1", adapter_name="a")
    both.load_adapter(tmp_path / "flat2", adapter_name="b")
    both.add_weighted_adapter(["a", "b"], [0.5, 0.5], "mean", combination_type="linear")
    both.set_adapter("mean")
    both.save_pretrained(tmp_path / "merged", selected_adapters=["mean"])
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "merged" / "mean").eval()
    inputs = models.example_inputs("llama")
    torch.testing.assert_close(models.outputs(again, inputs), models.outputs(both.eval(), inputs))


# 5. Python caches 512 regular expressions; a key per module of a deep model takes peft seconds.
def test_trap_5_deep_models_have_few_patterns() -> None:
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    paths = [f"model.layers.{i}.{n}" for i in range(126) for n in names]
    ranks = {p: 1 + i % 7 % 4 for i, p in enumerate(paths)}
    started = time.process_time()
    found = patterns(ranks, paths)
    for path in paths:
        assert found[get_pattern_key(list(found), path)] == ranks[path]
    assert len(found) == 7 and time.process_time() - started < 5


# 6. Experts are parameters: other keys, no dropout, a false warning.
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("placer", ["uniform", "stable_rank", "fisher"])
def test_trap_6_experts_get_the_planned_ranks_and_scales(kind: str, placer: str, tmp_path: Path) -> None:
    model = moe(kind)
    plan = place_lora(model, placer=placer, budget={"match_uniform_r": 3}, **FEW)
    experts = [a for a in plan.placed if a.site.copies > 1]
    assert len(experts) == 4 and all(a.params == a.rank * 3 * (a.site.inputs + a.site.outputs) for a in experts)
    assert plan.verify(model) == plan.params <= plan.budget
    inputs = models.tokens()
    expected = models.outputs(model, inputs)
    adapted = get_peft_model(copy.deepcopy(model), plan.lora_config("CAUSAL_LM")).eval()
    torch.testing.assert_close(models.outputs(adapted, inputs), expected, rtol=1e-5, atol=1e-5)
    assert trainable(adapted) == plan.params and set(scales(adapted).values()) == {2.0}
    changed = moved(copy.deepcopy(model), plan.lora_config("CAUSAL_LM"))
    changed.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    torch.testing.assert_close(models.outputs(again, inputs), models.outputs(changed, inputs))
    merged = changed.merge_and_unload()
    torch.testing.assert_close(models.outputs(merged, inputs), models.outputs(again, inputs), rtol=1e-4, atol=1e-5)


def test_trap_6_dropout_on_experts_is_refused_before_anything_is_run() -> None:
    with pytest.raises(RecipeError, match="lora_dropout"):
        place_lora(moe(), lora_dropout=0.1, placer="uniform")


# 7. Engines differ in how they scale: the padded adapter with one alpha is right everywhere.
@pytest.mark.parametrize("alpha_rule", ["constant_scale", "constant_alpha"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_trap_7_a_flat_adapter_answers_the_same(name: str, alpha_rule: str, tmp_path: Path) -> None:
    model, plan = placed(name, alpha_rule=alpha_rule)
    adapted = moved(copy.deepcopy(model), plan.lora_config())
    adapted.save_pretrained(tmp_path / "mixed")
    flatten_adapter(tmp_path / "mixed", tmp_path / "flat")
    config = LoraConfig.from_pretrained(tmp_path / "flat")
    assert (config.r, config.rank_pattern, config.alpha_pattern) == (plan.max_rank, {}, {})
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "flat").eval()
    inputs = models.example_inputs(name)
    torch.testing.assert_close(models.outputs(again, inputs), models.outputs(adapted, inputs), rtol=1e-5, atol=1e-5)
    shown = json.loads(plan.export("flat_config"))
    assert (shown["r"], shown["lora_alpha"]) == (config.r, config.lora_alpha)


def test_trap_7_scales_follow_the_alpha_rule() -> None:
    model, plan = placed(lora_scale=1.5)
    assert set(scales(get_peft_model(copy.deepcopy(model), plan.lora_config())).values()) == {1.5}
    model, plan = placed(alpha_rule="constant_alpha", lora_scale=1.5)
    adapted = get_peft_model(model, plan.lora_config())
    found = {n.removeprefix("base_model.model."): s for n, s in scales(adapted).items()}
    assert found == pytest.approx({a.site.path: 1.5 * plan.max_rank / a.rank for a in plan.placed})


def test_flattening_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter_config.json"):
        flatten_adapter(tmp_path, tmp_path / "flat")
    model, plan = placed()
    moved(model, plan.lora_config()).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="exists"):
        flatten_adapter(tmp_path / "a", tmp_path / "a")
    experts = place_lora(moe(), placer="uniform", budget={"match_uniform_r": 2})
    moved(moe(), experts.lora_config()).save_pretrained(tmp_path / "moe")
    with pytest.raises(CheckpointError, match="experts"):
        flatten_adapter(tmp_path / "moe", tmp_path / "flat")


# 8. axolotl reads rank patterns; what it is told must be the config itself.
def test_trap_8_the_axolotl_fragment_says_what_the_config_says() -> None:
    import yaml

    _, plan = placed("gpt2")
    said, config = yaml.safe_load(plan.export("axolotl")), plan.lora_config()
    assert (said["lora_r"], said["lora_alpha"]) == (config.r, config.lora_alpha)
    assert set(said["lora_target_modules"]) == set(config.target_modules)
    assert (said["lora_rank_pattern"], said["lora_alpha_pattern"]) == (config.rank_pattern, config.alpha_pattern)
    assert said["lora_fan_in_fan_out"] is True


def test_the_peft_export_is_what_peft_saves(tmp_path: Path) -> None:
    model, plan = placed("llama")
    (tmp_path / "adapter_config.json").write_text(plan.export("peft"))
    config = LoraConfig.from_pretrained(tmp_path)
    assert trainable(get_peft_model(model, config)) == plan.params


# 9. Pruned models: ranks fit the smaller matrices, also where widths differ between layers.
@pytest.mark.parametrize("settings", [{}, {"allocation": "global", "uneven": True}])
def test_trap_9_a_pruned_model_can_be_placed_on_at_once(settings: dict[str, Any]) -> None:
    model = models.make("mistral")
    small = compress(model, ratio=0.4, scorer="magnitude", tokens=256, length=16, **settings)
    plan = place_lora(small, placer="encoder", budget={"match_uniform_r": 30}, **FEW)
    assert plan.verify(small) == plan.params <= plan.budget
    assert all(a.rank <= min(a.site.inputs, a.site.outputs) for a in plan.adapters)
    with pytest.raises(PlanError, match="another model"):
        plan.verify(model)
    adapted = get_peft_model(small, plan.lora_config("CAUSAL_LM")).eval()
    assert trainable(adapted) == plan.params


# 10. In mixtures of experts peft takes a shared expert's `up_proj` for an old name of the experts and rewrites it.
def test_trap_10_a_shared_expert_is_reached_as_a_parameter() -> None:
    plan = place_lora(moe("qwen2_moe"), placer="uniform", budget={"match_uniform_r": 2})
    shared = [a.site for a in plan.adapters if "shared_expert." in a.site.path]
    assert len(shared) == 6 and all(s.kind == "parameter" and s.path.endswith(".weight") for s in shared)


def test_targets_of_many_layers_are_still_the_planned_ones_when_peft_shortens_the_list() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**models.DECODER, "num_hidden_layers": 5}))
    plan = place_lora(model, placer="stable_rank", budget={"trainable_params": 2500}, **FEW)
    assert 20 <= len(plan.placed) < len(plan.adapters)
    assert plan.verify(model) == plan.params


def test_verify_finds_a_config_that_means_something_else() -> None:
    model, plan = placed()
    config = plan.lora_config()
    config.rank_pattern = {".*q_proj": 1, **config.rank_pattern}
    with pytest.raises(PlanError, match="q_proj"):
        verify(plan.adapters, config, model)


def test_starts_that_need_no_data_build_what_was_planned() -> None:
    for init in ("gaussian", "orthogonal", "pissa", "olora"):
        model, plan = placed(init_lora_weights=init, rank_multiple=2, budget={"match_uniform_r": 4})
        expected = models.outputs(model, models.example_inputs("llama"))
        adapted = get_peft_model(model, plan.lora_config()).eval()
        assert trainable(adapted) == plan.params
        found = models.outputs(adapted, models.example_inputs("llama"))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, msg=init)
