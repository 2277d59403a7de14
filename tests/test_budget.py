"""Budgets: ratios are reached within a unit, roundings are explained, and what can't be reached says what can."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dnge_compress import build_graph, compress, load, plan, save
from dnge_compress.core.errors import BudgetError, RecipeError
from dnge_compress.graph.counting import is_embedding, non_embedding_prices
from dnge_compress.graph.types import ModelGraph, Scores, Space
from dnge_compress.plans.candidates import candidates
from dnge_compress.plans.greedy import shrunk_levels
from dnge_compress.plans.problem import Budget, Candidate
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.recipes.library import resolve
from dnge_compress.signals.work import macs_per_element

QUICK: dict[str, Any] = {"scorer": "magnitude", "compensate": "none", "tokens": 64, "length": 16}
NEURONS: dict[str, Any] = {"kinds": ["neuron", "channel"]}


def planned(name: str, recipe: str = "prune/default", **overrides: Any) -> tuple[PrunePlan, nn.Module, ModelGraph]:
    """A plan, its model and graph."""
    model = models.make(name)
    extra = {} if models.MODELS[name].family else {"example_inputs": models.example_inputs(name)}
    return plan(model, recipe, **QUICK | extra | overrides), model, models.graph_of(name, model)


def width(found: PrunePlan, space: Space) -> int:
    """Kept units."""
    keep = found.keep(space.name)
    return space.units if keep is None else len(keep)


def countable(model: nn.Module, graph: ModelGraph) -> int:
    """Non-embedding parameters."""
    return sum(p.numel() for n, p in model.named_parameters() if not is_embedding(graph, n))


def unit_size(model: nn.Module, graph: ModelGraph, kinds: tuple[str, ...]) -> int:
    """Parameters of one unit in every space of the kinds: what a uniform width is rounded by."""
    size = 0
    shapes = dict(model.named_parameters())
    for space in graph.of_kind(*kinds):
        for slot in graph.slots_of(space.name):
            if slot.param in shapes:
                size += shapes[slot.param].numel() // shapes[slot.param].shape[slot.axis] * slot.width
    return size


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.17])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert", "vit"])
def test_a_ratio_of_parameters_is_reached_within_a_unit(name: str, ratio: float) -> None:
    found, model, graph = planned(name, ratio=ratio, **NEURONS)
    whole = countable(model, graph)
    removed = found.params_before - found.params_after
    assert ratio * whole - 1 <= removed <= ratio * whole + unit_size(model, graph, ("neuron",))


@pytest.mark.parametrize("name", ["cnn", "cnn_plain", "mlp", "cnn_residual", "resnet_basic"])
def test_a_ratio_of_parameters_is_reached_where_widths_are_tied_differently(name: str) -> None:
    found, model, graph = planned(name, ratio=0.3, **NEURONS)
    whole = countable(model, graph)
    assert 0.3 <= (found.params_before - found.params_after) / whole < 0.5


@pytest.mark.parametrize("name", ["llama", "bert", "resnet_basic", "vit"])
def test_the_default_recipe_reaches_its_ratio_with_all_kinds(name: str) -> None:
    found, model, graph = planned(name)
    assert (found.params_before - found.params_after) / countable(model, graph) >= 0.2 - 1e-9


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", ["llama", "gpt2", "cnn", "mlp"])
def test_a_ratio_of_units_is_reached_in_every_space_within_half_a_unit(name: str, ratio: float) -> None:
    found, _, graph = planned(name, "prune/neurons", ratio=ratio)
    for space in graph.of_kind("neuron", "channel"):
        assert abs(width(found, space) - (1 - ratio) * space.units) <= 0.5 + 1e-9


@pytest.mark.parametrize("name", ["llama", "bert", "cnn"])
def test_a_ratio_of_macs_is_reached_within_a_unit(name: str) -> None:
    found, model, graph = planned(name, ratio=0.3, of="macs", **NEURONS)
    inputs = models.example_inputs(name)
    per = macs_per_element(model, graph, inputs)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    before = sum(per[n] * shapes[n].numel() for n in per)
    extra = {} if models.MODELS[name].family else {"example_inputs": inputs}
    small = compress(model, ratio=0.3, of="macs", **NEURONS, **QUICK, **extra)
    after = sum(per[n] * p.numel() for n, p in small.named_parameters() if n in per)
    assert [c.keep for c in small.dnge.plan.cuts] == [c.keep for c in found.cuts]
    assert 0.3 - 1e-9 <= 1 - after / before < 0.3 + 0.08


def test_macs_count_how_often_a_weight_is_used() -> None:
    """A conv on 16 × 16 pixels counts 256 times, after pooling 64 times, the head once; a linear per token."""
    model = models.make("cnn")
    per = macs_per_element(model, models.graph_of("cnn", model), models.example_inputs("cnn"))
    assert {n: per[n] for n in per} == {"0.weight": 256, "4.weight": 64, "9.weight": 1}
    bert = models.make("bert_mlm")
    per = macs_per_element(bert, models.graph_of("bert_mlm", bert), models.tokens())
    assert per["bert.encoder.layer.0.output.dense.weight"] == 11 and not any("embeddings" in n for n in per)


def test_llama_keeps_a_head_count_that_divides_the_hidden_size_and_says_so() -> None:
    """48 values, 12 heads in 6 groups of 2: of 2, 4, …, 12 query heads all but 10 divide 48."""
    torch.manual_seed(0)
    config = models.DECODER | {"num_attention_heads": 12, "num_key_value_heads": 6}
    model = LlamaForCausalLM(LlamaConfig(**config))
    for ratio in (0.2, 0.4, 0.6):
        small = compress(model, "prune/heads", ratio=ratio, **QUICK)
        assert 48 % small.config.num_attention_heads == 0
        assert small.config.num_attention_heads == 2 * small.config.num_key_value_heads
        assert any("num_attention_heads must divide 48" in note for note in small.dnge.plan.notes)
        assert LlamaForCausalLM(small.config)
    assert any("rounded to" in note for note in plan(model, "prune/heads", ratio=0.2, **QUICK).notes)


def test_qwen_may_keep_any_number_of_heads() -> None:
    torch.manual_seed(0)
    config = models.DECODER | {"num_attention_heads": 12, "num_key_value_heads": 6}
    small = compress(Qwen2ForCausalLM(Qwen2Config(**config)), "prune/heads", ratio=0.17, **QUICK)
    assert small.config.num_key_value_heads == 5 and small.config.num_attention_heads == 10


def test_heads_alone_reach_a_ratio_of_parameters_with_many_levels() -> None:
    torch.manual_seed(0)
    config = models.DECODER | {"num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 8}
    model = Qwen2ForCausalLM(Qwen2Config(**config, head_dim=4))
    found = plan(model, ratio=0.4, kinds=["head"], **QUICK)
    graph_heads = [len(c.keep) for c in found.cuts]
    assert len(set(graph_heads)) == 1 and 4 < graph_heads[0] < 12


def test_families_whose_heads_must_stay_say_why() -> None:
    with pytest.raises(BudgetError, match=r"nothing of the kinds head can be removed.*hidden size"):
        planned("gpt2", "prune/heads")
    assert any("heads stay" in note for note in planned("gpt2")[0].notes)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_widths_are_multiples_of_round_to(ratio: float) -> None:
    for recipe in ("prune/default", "prune/neurons"):
        found, _, graph = planned("llama", recipe, ratio=ratio, round_to=8)
        for space in graph.of_kind("neuron"):
            assert width(found, space) % 8 == 0


def test_rounding_a_ratio_of_units_is_explained() -> None:
    found, _, graph = planned("llama", "prune/neurons", ratio=0.3, round_to=8)
    assert {width(found, s) for s in graph.of_kind("neuron")} == {32}
    assert any("ratio 0.3 is rounded to 8 of 40 neurons of each layer" in note for note in found.notes)
    assert not any("rounded" in note for note in planned("llama", "prune/neurons", ratio=0.3)[0].notes)


@pytest.mark.parametrize("of", ["parameters", "units", "macs"])
def test_every_space_keeps_min_keep(of: str) -> None:
    found, _, graph = planned("llama", ratio=0.2, of=of, min_keep=0.6)
    for space in graph.of_kind("neuron", "head", "layer"):
        assert width(found, space) >= 0.6 * space.units - 1e-9


@pytest.mark.parametrize("recipe", ["prune/neurons", "prune/layers"])
def test_a_ratio_of_units_beyond_min_keep_is_an_error_that_names_the_largest(recipe: str) -> None:
    with pytest.raises(BudgetError, match=r"ratio 0.5 can't be reached: at most 0.400 of the units.*min_keep 0.6"):
        planned("llama", recipe, ratio=0.5, min_keep=0.6)


@pytest.mark.parametrize("extra", [{}, {"allocation": "global", "uneven": True}])
def test_an_impossible_ratio_names_the_largest_possible_and_that_one_works(extra: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"ratio 0.95 can't be reached: at most 0\.\d+ of the parameters") as error:
        planned("bert", ratio=0.95, min_keep=0.5, **extra)
    largest = float(str(error.value).split("at most ")[1].split()[0]) - 0.001
    found, model, graph = planned("bert", ratio=largest, min_keep=0.5, **extra)
    assert (found.params_before - found.params_after) / countable(model, graph) >= largest


def test_a_ratio_too_small_for_a_unit_says_so() -> None:
    with pytest.raises(BudgetError, match="too small to remove a single unit"):
        planned("mlp", "prune/neurons", ratio=0.01)


def test_protected_modules_stay_whole() -> None:
    found, _, _ = planned("cnn", "prune/neurons", ratio=0.4, protected=["0"])
    assert found.keep("0") is None and found.keep("4") is not None
    found, _, _ = planned("llama", ratio=0.3, uneven=True, protected=["*.layers.1"])
    kept = found.keep("layers")
    assert found.keep("ffn.1") is None and found.keep("heads.1") is None and (kept is None or 1 in kept)
    assert any("protected" in note for note in found.notes)


def test_protecting_one_layer_of_a_uniform_width_protects_all_and_says_so() -> None:
    with pytest.raises(BudgetError, match=r"one of them is protected.*uneven: true"):
        planned("bert", "prune/neurons", ratio=0.3, protected=["encoder.layer.0"])


def test_protecting_what_no_module_is_called_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(BudgetError, match=r"'model\.layer\.0' matches no module.*'model\.layers\.0'"):
        planned("llama", "prune/neurons", ratio=0.3, protected=["model.layer.0"])


def test_global_allocation_needs_uneven_widths_and_a_price() -> None:
    with pytest.raises(RecipeError, match="needs uneven: true"):
        planned("llama", allocation="global")
    with pytest.raises(RecipeError, match="counts parameters or macs"):
        planned("llama", allocation="global", uneven=True, of="units")


@pytest.mark.parametrize("name", ["llama", "llama_mqa", "gpt2", "bert", "resnet_basic"])
def test_global_uneven_widths_work_from_plan_to_load(name: str, tmp_path: Path) -> None:
    settings = QUICK | {"scorer": "obs", "compensate": "lstsq", "allocation": "global", "uneven": True}
    model, inputs = models.make(name), models.example_inputs(name)
    small = compress(model, ratio=0.2, **settings)
    removed = small.dnge.plan.params_before - small.dnge.plan.params_after
    assert removed / countable(model, models.graph_of(name, model)) >= 0.2
    assert sum(p.numel() for p in small.parameters()) == small.dnge.plan.params_after
    widths = {len(c.keep) for c in small.dnge.plan.cuts if models.graph_of(name, model).space(c.space).kind != "layer"}
    assert len(widths) > 1 and small.dnge.plan.uneven
    again = load(save(small, tmp_path / "out"))
    torch.testing.assert_close(models.outputs(again, inputs), models.outputs(small, inputs), rtol=1e-5, atol=1e-5)


def test_global_allocation_honours_round_to_and_min_keep() -> None:
    found, _, graph = planned(
        "llama", ratio=0.3, allocation="global", uneven=True, round_to=8, min_keep=0.3, scorer="obs"
    )
    for space in graph.of_kind("neuron"):
        assert width(found, space) % 8 == 0 and width(found, space) >= 12
    for space in graph.of_kind("head", "layer"):
        assert width(found, space) >= 0.3 * space.units


def test_global_allocation_takes_the_cheapest_units_per_parameter_first() -> None:
    model = models.make("mlp")
    with torch.no_grad():
        model[0].weight[3:] *= 1e-3
        model[2].weight[:, 3:] *= 1e-3
    found = plan(
        model, ratio=0.2, allocation="global", uneven=True, example_inputs=models.example_inputs("mlp"), **QUICK
    )
    assert found.keep("2") is None and set(found.keep("0") or ()) >= {0, 1, 2}


@pytest.mark.parametrize("name", ["llama", "resnet_basic", "mlp"])
def test_ratio_zero_is_the_identity(name: str) -> None:
    model, inputs = models.make(name), models.example_inputs(name)
    extra = {} if models.MODELS[name].family else {"example_inputs": inputs}
    for of in ("parameters", "units", "macs"):
        small = compress(model, ratio=0, of=of, tokens=64, length=16, **extra)
        assert small is not model and small.dnge.plan.cuts == ()
        assert small.dnge.plan.params_before == small.dnge.plan.params_after
        assert torch.equal(models.outputs(small, inputs), models.outputs(model, inputs))


@pytest.mark.parametrize("ratio", [0.34, 0.5, 0.67])
def test_layers_that_go_are_counted_and_rounding_is_explained(ratio: float) -> None:
    found, _, graph = planned("llama", "prune/layers", ratio=ratio)
    gone = 3 - width(found, graph.space("layers"))
    assert gone == {0.34: 1, 0.5: 2, 0.67: 2}[ratio]
    assert any("rounded to 2 of 3 layers" in note for note in found.notes) == (ratio == 0.5)


def test_a_dear_large_block_does_not_come_on_top_of_cheap_ones_that_it_makes_needless() -> None:
    config = ConvNextConfig(hidden_sizes=[4, 8, 64], depths=[3, 3, 2], num_stages=3, num_labels=5, image_size=32)
    model = ConvNextForImageClassification(config)
    graph = build_graph(model)
    first, second, third = (s.name for s in graph.of_kind("layer"))
    costs = {first: torch.tensor([9.0, 1, 2]), second: torch.tensor([9.0, 3, 4]), third: torch.tensor([9.0, 5])}
    scores = Scores(units=costs, scorer="obs", fingerprint=graph.fingerprint)
    prune = resolve("prune/layers", {"ratio": 0.3, "of": "parameters"}).prune
    found, _ = candidates(graph, scores, prune, Budget.of(model, non_embedding_prices(model, graph)))
    assert {c.space: len(c.keep) for c in found[0].applied.cuts} == {third: 1}  # the cheapest of all


def test_a_model_never_loses_its_last_layer() -> None:
    found, _, graph = planned("llama", "prune/layers", ratio=0.9, min_keep=0)
    assert width(found, graph.space("layers")) == 1


def test_levels_shrink_towards_their_mean() -> None:
    items = [(1.0, "a", 0), (math.e, "a", 1), (math.e**4, "b", 0), (math.e**5, "b", 1)]
    assert shrunk_levels(items, shrinkage=0) == items
    for shrinkage, gap in ((0.5, 2.0), (1.0, 0.0)):
        found = {(name, i): value for value, name, i in shrunk_levels(items, shrinkage)}
        assert found["b", 0] - found["a", 0] == pytest.approx(gap)
        assert found["a", 1] - found["a", 0] == pytest.approx(1)  # inside a space nothing moves


def test_scores_below_zero_keep_their_order_at_any_shrinkage() -> None:
    items = [(-3.0, "a", 0), (-1.0, "a", 1), (2.0, "a", 2)]
    for shrinkage in (0.0, 0.5, 1.0):
        values = [value for value, _, _ in shrunk_levels(items, shrinkage)]
        assert values == sorted(values) and len(set(values)) == 3


@pytest.mark.parametrize("ratio", [0.2, 0.35, 0.5])
def test_a_block_too_coarse_for_the_rest_of_the_budget_stays(ratio: float) -> None:
    found, _, _ = planned("llama", ratio=ratio, allocation="global", uneven=True, scorer="obs")
    removed = 1 - found.params_after / found.params_before
    assert removed < ratio + 0.15


def test_scores_that_correct_obs_offer_its_own_global_plan_too() -> None:
    model = models.make("bert")
    graph = models.graph_of("bert", model)
    generator = torch.Generator().manual_seed(0)
    spaces = graph.of_kind("neuron", "head", "layer")
    uncorrected = {s.name: torch.rand(s.units, generator=generator) + 0.1 for s in spaces}
    corrected = {name: values * (1 + 5 * i) for i, (name, values) in enumerate(uncorrected.items())}
    budget = Budget.of(model, non_embedding_prices(model, graph))
    prune = resolve("prune/default", {"ratio": 0.3, "allocation": "global", "uneven": True}).prune

    def plans(units: dict[str, torch.Tensor], uncorrected: dict[str, torch.Tensor]) -> list[Candidate]:
        scores = Scores(units=units, scorer="any", fingerprint=graph.fingerprint, uncorrected=uncorrected)
        return candidates(graph, scores, prune, budget)[0]

    its_own, without, offered = plans(uncorrected, {})[0], plans(corrected, {}), plans(corrected, uncorrected)
    assert its_own.applied.cuts not in [c.applied.cuts for c in without]
    (added,) = [c for c in offered if c.applied.cuts not in [x.applied.cuts for x in without]]
    assert added.applied.cuts == its_own.applied.cuts and added.cost != its_own.cost  # at the corrected costs
    assert offered[0].applied.cuts == without[0].applied.cuts and len(offered) == len(without) + 1


def test_align_keeps_the_multiples_that_other_programs_want() -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**models.DECODER, "intermediate_size": 1024, "num_key_value_heads": 6}))
    for align, multiple in (("gguf", 256), ("vllm", 128), ("tensor_parallel=3", 3)):
        found = plan(model, ratio=0.3, of="units", kinds=["neuron", "head"], align=align, scorer="random", tokens=64)
        assert all(len(c.keep) % multiple == 0 for c in found.cuts if c.space.startswith("ffn"))
        assert align != "tensor_parallel=3" or {len(c.keep) for c in found.cuts if "heads" in c.space} == {3}


@pytest.mark.parametrize(("align", "kept"), [("none", 5), ("gguf", 4), ("vllm", 6)])
def test_align_holds_for_the_columns_that_read_heads(align: str, kept: int) -> None:
    """8 heads of 64 values: 256 columns are 4 heads, 128 are 2."""
    config = models.DECODER | {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    found = plan(Qwen3ForCausalLM(Qwen3Config(**config)), "prune/heads", ratio=0.36, align=align, **QUICK)
    assert {len(c.keep) for c in found.cuts} == {kept}


def test_align_that_no_width_satisfies_is_one_clear_line() -> None:
    with pytest.raises(BudgetError, match="align gguf"):
        planned("llama", "prune/neurons", ratio=0.3, align="gguf")
    with pytest.raises(RecipeError, match="align"):
        planned("llama", "prune/neurons", ratio=0.3, align="tensor_parallel=0")
