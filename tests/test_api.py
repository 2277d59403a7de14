"""The calls a user makes, on tiny models."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny_architectures import ARCHITECTURES, inputs_of
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification

import dnge_compress
from dnge_compress import PrunePlan, apply, build_graph, compress, load, plan, preview, save, score
from dnge_compress.core.errors import (
    BudgetError,
    DataError,
    DngeError,
    PlanError,
    RecipeError,
    UnknownNameError,
    UnsupportedModelError,
    WeightError,
)
from dnge_compress.surgery.exactness import relative_difference

FEW: dict[str, Any] = {"tokens": 64, "length": 16}
QUICK: dict[str, Any] = FEW | {"scorer": "magnitude", "compensate": "none"}
OBS: dict[str, Any] = FEW | {"scorer": "obs"}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def batches(n: int = 3) -> list[dict[str, Tensor]]:
    """Different batches of token ids."""
    return [
        {"input_ids": torch.randint(4, models.VOCABULARY, (4, 11), generator=torch.Generator().manual_seed(i))}
        for i in range(n)
    ]


def answer(model: nn.Module, name: str) -> Tensor:
    """The model's output on its example inputs."""
    return models.outputs(model, models.example_inputs(name))


@pytest.mark.parametrize("name", models.FAMILIES)
def test_compress_returns_a_smaller_model_of_the_same_class_and_leaves_its_own(name: str) -> None:
    model = models.make(name)
    before, config, output = state_of(model), model.config.to_dict(), answer(model, name)
    small = compress(model, **OBS)
    assert type(small) is type(model) and not small.training
    assert sum(p.numel() for p in small.parameters()) == small.dnge.plan.params_after < small.dnge.plan.params_before
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and len(before) == len(state_of(model))
    assert model.config.to_dict() == config and torch.equal(answer(model, name), output)
    assert not hasattr(model, "dnge") and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert answer(small, name).shape == output.shape and torch.isfinite(answer(small, name)).all()
    assert "ratio" in small.dnge.plan.recipe["prune"] and str(small.dnge.report)


@pytest.mark.parametrize("name", models.PLAIN)
def test_compress_takes_a_plain_module_with_example_inputs(name: str) -> None:
    model = models.make(name)
    output = answer(model, name)
    small = compress(model, ratio=0.3, example_inputs=models.example_inputs(name), **OBS)
    assert sum(p.numel() for p in small.parameters()) == small.dnge.plan.params_after < small.dnge.plan.params_before
    assert torch.equal(answer(model, name), output) and answer(small, name).shape == output.shape


def test_the_default_scorer_is_the_pretrained_encoder() -> None:
    small = compress(models.make("llama"), **FEW)
    assert small.dnge.plan.recipe["scorer"] == small.dnge.report.scorer == "encoder"
    assert small.dnge.plan.recipe["prune"]["ratio"] == 0.2


def test_the_repair_brings_outputs_closer() -> None:
    """Thirty per cent of the neurons of each layer, the same ones, with and without repair."""
    model = models.make("mlp")
    inputs = torch.randn(256, 9, generator=torch.Generator().manual_seed(3))
    expected, found = models.outputs(model, inputs), {}
    for mode in ("none", "bias", "lstsq"):
        settings = {"scorer": "magnitude", "compensate": mode, "tokens": 4096, "example_inputs": inputs[:4]}
        small = compress(model, "prune/neurons", ratio=0.3, **settings)
        found[mode] = relative_difference(models.outputs(small, inputs), expected)
    assert found["lstsq"] < found["bias"] < found["none"]


def test_a_recipe_may_be_a_name_a_path_or_a_value(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scorer: magnitude\nprune: {ratio: 0.3, of: units, kinds: [neuron]}\n", encoding="utf-8")
    named = compress(models.make("bert"), "prune/neurons", ratio=0.3, kinds=["neuron"], **QUICK)
    value = dnge_compress.Recipe.model_validate(named.dnge.plan.recipe)
    for recipe in (path, str(path), value):
        small = compress(models.make("bert"), recipe, **QUICK)
        assert small.dnge.plan.cuts == named.dnge.plan.cuts


def test_a_model_may_be_a_path(tmp_path: Path) -> None:
    model = models.make("llama")
    model.save_pretrained(tmp_path / "base")
    from_path, from_model = (compress(m, ratio=0.3, **OBS) for m in (tmp_path / "base", model))
    assert torch.equal(answer(from_path, "llama"), answer(from_model, "llama"))
    assert torch.equal(answer(compress(str(tmp_path / "base"), ratio=0.3, **OBS), "llama"), answer(from_model, "llama"))


def test_the_same_seed_gives_the_same_model_and_another_one_other_inputs() -> None:
    def one(seed: int) -> Tensor:
        torch.manual_seed(123 + seed)
        return answer(compress(models.make("llama"), ratio=0.2, seed=seed, **OBS), "llama")

    assert torch.equal(one(0), one(0)) and not torch.equal(one(0), one(1))


def test_compress_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    compress(models.make("llama"), ratio=0.2, **OBS)
    assert torch.equal(torch.get_rng_state(), before)


def test_data_take_the_place_of_synthetic_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnge_compress.tasks.task.synthesize", lambda *a: pytest.fail("synthetic inputs were made"))
    for scorer in ("obs", "fisher", "flap"):
        small = compress(models.make("llama"), ratio=0.2, scorer=scorer, data=batches())
        assert torch.isfinite(answer(small, "llama")).all()


def test_data_may_be_a_generator_of_dicts_or_tensors() -> None:
    def stream() -> Iterator[dict[str, Tensor]]:
        yield from batches()

    found = [compress(models.make("llama"), ratio=0.2, scorer="obs", data=d) for d in (stream(), batches())]
    assert torch.equal(*(answer(m, "llama") for m in found))
    images = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    small = compress(models.make("cnn"), ratio=0.3, scorer="obs", data=images, example_inputs=images[0])
    assert torch.isfinite(answer(small, "cnn")).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a text", "a text' doesn't exist"),
        (["a text"], "give text, but a Sequential doesn't read any; give its inputs as tensors"),
        ([["a text"]], "batch 0 holds a str; batches are tensors"),
        (torch.zeros(2, 3), "not one batch"),
        ([], "data is empty"),
        ([torch.full((2, 9), float("nan"))], "batch 0 holds NaN"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_one_line(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        compress(models.make("mlp"), data=data, example_inputs=models.example_inputs("mlp"), scorer="obs")
    assert "\n" not in str(error.value)


def test_an_iterable_that_is_used_up_or_of_numbers_is_a_data_error() -> None:
    used = iter(batches())
    list(used)
    with pytest.raises(DataError, match="data is empty"):
        compress(models.make("llama"), data=used, scorer="obs")
    with pytest.raises(DataError, match="batch 0 holds a int"):
        compress(models.make("llama"), data=[1, 2], scorer="obs")
    with pytest.raises(DataError, match="iterable of batches .*, not a int"):
        compress(models.make("llama"), data=3, scorer="obs")


def test_token_ids_that_the_model_has_no_row_for_are_refused_wherever_they_stand() -> None:
    strange, rows = batches(), models.make("llama").config.vocab_size
    strange[-1]["input_ids"][-1, -1] = rows
    words = f"data batch {len(strange) - 1} holds token {rows}, but the model has {rows} rows; use the tokenizer"
    for given in (strange, [batch["input_ids"] for batch in strange]):
        with pytest.raises(DataError, match=words):
            compress(models.make("llama"), data=given, scorer="obs")


@pytest.mark.parametrize("name", ["t5", "whisper"])
@pytest.mark.parametrize("beyond", [0, -100])
def test_token_ids_that_a_decoder_has_no_row_for_are_refused(name: str, beyond: int) -> None:
    tiny = ARCHITECTURES[name]
    model, batch = tiny.build(), inputs_of(tiny.inputs)
    strange = {"decoder_input_ids": torch.zeros(2, 6, dtype=torch.long)} | batch
    wrong = strange["decoder_input_ids"].clone()
    wrong[-1, -1] = beyond or model.config.vocab_size
    why = "and ids begin at 0" if beyond else "but the model has"
    with pytest.raises(DataError, match=f"data batch 1 holds token {int(wrong[-1, -1])}, {why}"):
        compress(model, data=[strange, strange | {"decoder_input_ids": wrong}], scorer="obs")


def test_scores_can_be_used_again_at_another_ratio_but_not_for_another_model() -> None:
    model = models.make("bert")
    scores = score(model, **OBS)
    plans = [plan(model, scores=scores, ratio=r, **OBS) for r in (0.1, 0.2)]
    assert plans[0].params_after > plans[1].params_after
    assert plans[1] == plan(model, ratio=0.2, **OBS)
    with pytest.raises(PlanError, match="scores were made for another model"):
        plan(models.make("vit"), scores=scores, **QUICK)


def test_plan_and_apply_give_what_compress_gives() -> None:
    model = models.make("llama")
    found = plan(model, ratio=0.25, **OBS)
    expected = compress(models.make("llama"), ratio=0.25, **OBS)
    assert found == expected.dnge.plan
    assert torch.equal(answer(apply(found, model), "llama"), answer(expected, "llama"))


@pytest.mark.parametrize("name", ["llama", "resnet_basic"])
def test_a_plan_survives_json(name: str) -> None:
    found = plan(models.make(name), ratio=0.25, **QUICK)
    text = found.to_json()
    assert PrunePlan.from_json(text) == found and PrunePlan.from_json(text).to_json() == text
    assert all(any(f'"{c.space}": [' in line for line in text.splitlines()) for c in found.cuts)


def test_an_edited_plan_replays_on_a_fresh_copy_with_equal_outputs() -> None:
    raw = json.loads(plan(models.make("bert"), "prune/neurons", ratio=0.3, **OBS).to_json())
    for space in ("ffn.0", "ffn.1"):
        raw["cuts"][space] = list(range(3, 20))
    edited = PrunePlan.from_json(json.dumps(raw))
    found = [apply(edited, models.make("bert")) for _ in range(2)]
    assert found[0].encoder.layer[0].intermediate.dense.weight.shape[0] == 17 == found[0].config.intermediate_size
    assert torch.equal(*(answer(m, "bert") for m in found))
    assert found[0].dnge.plan.keep("ffn.0") == tuple(range(3, 20))


def test_a_plan_repaired_on_other_inputs_than_it_was_made_on_expects_its_damage_anew() -> None:
    model, data = models.make("llama"), [models.example_inputs("llama")]
    found = plan(model, ratio=0.3, data=data, **OBS)
    assert found.expected is not None and found.expected.inputs == "your data"
    with_data, without = apply(found, model, data=data).dnge, apply(found, model).dnge
    assert with_data.plan == found and with_data.report.expected == found.expected
    assert without.plan.expected.inputs == without.report.expected.inputs == "text that the model writes"
    assert without.plan.notes[0] == (
        "the plan was made on your data, and is repaired on text that the model writes: what it says of repair and "
        "damage below is of then"
    )
    unrepaired = apply(found, model, data=data, compensate="none").dnge.plan
    assert unrepaired.expected is None and "and is not repaired:" in unrepaired.notes[0]
    lesser = apply(found, model, data=data, compensate="bias").dnge.plan
    assert lesser.expected.nats > found.expected.nats


def test_an_edited_plan_has_the_damage_of_its_own_cuts() -> None:
    model = models.make("llama")
    found = plan(model, "prune/neurons", ratio=0.2, **OBS)
    raw = json.loads(found.to_json())
    raw["cuts"] |= {space: keep[:3] for space, keep in raw["cuts"].items()}
    edited = apply(PrunePlan.from_json(json.dumps(raw)), model).dnge.plan
    assert edited.predicted_cost is None and edited.expected.nats > 2 * found.expected.nats  # type: ignore[union-attr]


def test_the_report_and_plan_of_an_edited_plan_count_what_is_there() -> None:
    raw = json.loads(plan(models.make("bert"), "prune/neurons", ratio=0.3, **QUICK).to_json())
    for space in ("ffn.0", "ffn.1"):
        raw["cuts"][space] = list(range(3, 20))
    small = apply(PrunePlan.from_json(json.dumps(raw)), models.make("bert"))
    actual = sum(p.numel() for p in small.parameters())
    assert small.dnge.report.totals.params[1] == small.dnge.plan.params_after == actual


def test_an_edited_plan_of_differing_widths_is_saved_as_uneven(tmp_path: Path) -> None:
    raw = json.loads(plan(models.make("bert"), "prune/neurons", ratio=0.3, **QUICK).to_json())
    raw["cuts"]["ffn.0"] = list(range(9))
    small = apply(PrunePlan.from_json(json.dumps(raw)), models.make("bert"))
    assert small.dnge.plan.uneven
    again = load(save(small, tmp_path / "out"))
    torch.testing.assert_close(answer(again, "bert"), answer(small, "bert"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": [{"space": "ffn.0", "kind": "neuron", "layer": 0, "kept": 5, "total": 3}]}, "5 of 3 units"),
        ({"rows": [{"space": "ffn.0"}]}, r"rows\[0\]: 'kind' is missing"),
        ({"params_before": "x"}, "params_before should be a whole number, not 'x'"),
        ({"costs": [1]}, r"costs should hold keys, not \[1\]"),
        ({"recipe": 5}, "recipe should hold keys, not 5"),
        ({"cuts": {"ffn.0": [0, True]}}, r"cuts.ffn.0\[1\] should be a whole number, not True"),
        ({"cuts": {"ffn.0": []}}, "keeps no unit"),
        ({"uneven": 1}, "uneven should be true or false, not 1"),
    ],
)
def test_a_malformed_plan_says_where_and_what_to_do(change: dict[str, Any], words: str) -> None:
    raw = {"dnge_plan": 1, "base": "a", "weights": "b", "cuts": {}} | change
    with pytest.raises(PlanError, match=f"^'bad.json'.*{words}.*make a plan with `dnge plan`"):
        PrunePlan.from_json(json.dumps(raw), "'bad.json'")


@pytest.mark.parametrize("settings", [{"scorer": "magnitude"}, {"scorer": "random"}])
def test_scores_of_weights_alone_run_no_model(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnge_compress.scorers.calibration_inputs", None)
    assert dnge_compress.score(models.make("llama"), **settings).units


def test_a_plan_that_removes_nothing_runs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnge_compress.scorers.calibration_inputs", None)
    assert plan(models.make("llama"), ratio=0.0).cuts == ()


def test_a_plan_refuses_another_base() -> None:
    found = plan(models.make("llama"), ratio=0.2, **QUICK)
    with pytest.raises(PlanError, match="another model.*fingerprint"):
        apply(found, models.make("llama_bias"))


def test_a_plan_refuses_other_weights_unless_told() -> None:
    found, other = plan(models.make("llama"), ratio=0.2, **QUICK), models.roughened(models.make("llama"), seed=9)
    with pytest.raises(PlanError, match="any_weights=True"):
        apply(found, other)
    assert apply(found, other, any_weights=True).dnge.plan.cuts == found.cuts


def test_a_plan_fits_its_base_in_another_dtype() -> None:
    found = plan(models.make("llama"), ratio=0.2, **QUICK)
    assert apply(found, models.make("llama").to(torch.bfloat16)).dtype == torch.bfloat16


def test_a_plan_whose_recipe_is_broken_is_refused_in_one_line() -> None:
    found = plan(models.make("bert"), ratio=0.2, **QUICK)
    with pytest.raises(RecipeError, match="the plan's recipe.*'scorrer'.*did you mean 'scorer'") as error:
        apply(replace(found, recipe={**found.recipe, "scorrer": "x"}), models.make("bert"))
    assert "\n" not in str(error.value)


def test_a_preview_is_the_masked_model_and_changes_nothing() -> None:
    model, inputs = models.make("llama"), models.example_inputs("llama")
    found = plan(model, ratio=0.3, **QUICK)
    before, output, config = state_of(model), answer(model, "llama"), model.config.to_dict()
    masked = models.outputs(preview(found, model), inputs)
    assert relative_difference(answer(apply(found, model), "llama"), masked) < 1e-5
    assert not torch.allclose(masked, output)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(answer(model, "llama"), output) and model.config.to_dict() == config
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_preview_of_a_plain_module_is_traced_and_another_base_refused() -> None:
    model, inputs = models.make("cnn"), models.example_inputs("cnn")
    found = plan(model, ratio=0.3, example_inputs=inputs, **QUICK)
    small = apply(found, model, example_inputs=inputs)
    assert (
        relative_difference(models.outputs(preview(found, model, inputs), inputs), models.outputs(small, inputs)) < 1e-5
    )
    with pytest.raises(PlanError, match="another model"):
        preview(found, models.make("bert"))


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("llama", AutoModelForCausalLM),
        ("qwen3", AutoModelForCausalLM),
        ("gpt2", AutoModelForCausalLM),
        ("bert", AutoModel),
        ("vit", AutoModelForImageClassification),
        ("resnet_basic", AutoModelForImageClassification),
    ],
)
def test_save_pretrained_writes_what_plain_transformers_loads(name: str, loader: Any, tmp_path: Path) -> None:
    small = compress(models.make(name), ratio=0.25, **OBS)
    small.save_pretrained(tmp_path / "plain")
    again = loader.from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(answer(again, name), answer(small, name), rtol=1e-5, atol=1e-5)


def test_save_and_load_bring_plan_and_report_back(tmp_path: Path) -> None:
    small = compress(models.make("llama"), ratio=0.25, **OBS)
    again = load(save(small, tmp_path / "out"))
    assert again.dnge.plan == small.dnge.plan and again.dnge.report.totals == small.dnge.report.totals
    torch.testing.assert_close(answer(again, "llama"), answer(small, "llama"), rtol=1e-5, atol=1e-5)


def test_a_loaded_model_generates_with_a_cache(tmp_path: Path) -> None:
    small = compress(models.make("llama"), ratio=0.3, **OBS)
    again = AutoModelForCausalLM.from_pretrained(save(small, tmp_path / "out"))
    ids = models.tokens()["input_ids"][:, :5]
    kinds = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(again.generate(ids, **kinds), small.generate(ids, use_cache=False, **kinds))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named_and_nothing_done(value: float) -> None:
    model = models.make("bert")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0, 0] = value
    with pytest.raises(WeightError, match="encoder.layer.1.output.dense.weight"):
        compress(model, **QUICK)


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(BudgetError, match="at least 0 and below 1"):
        compress(models.make("bert"), ratio=ratio, **QUICK)


def test_unknown_names_offer_the_nearest() -> None:
    model = models.make("bert")
    with pytest.raises(UnknownNameError, match="'prune/neurons'"):
        compress(model, "prune/neuron", **QUICK)
    with pytest.raises(UnknownNameError, match="'ratio'"):
        compress(model, ratoi=0.2)
    with pytest.raises(UnknownNameError, match="did you mean 'obs'"):
        compress(model, **FEW, scorer="obsi")


def test_a_plain_module_without_inputs_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match="example_inputs"):
        compress(models.make("mlp"))


def test_a_missing_path_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DngeError) as error:
        compress(tmp_path / "none")
    assert "\n" not in str(error.value) and "none" in str(error.value)


def test_progress_reports_stages_that_end() -> None:
    seen: list[tuple[str, int, int]] = []
    compress(models.make("bert"), ratio=0.2, progress=lambda *step: seen.append(step), **OBS)
    assert {"calibrate", "score"} <= {stage for stage, _, _ in seen}
    for stage in {stage for stage, _, _ in seen}:
        assert [(d, t) for s, d, t in seen if s == stage][-1][0] == [t for s, _, t in seen if s == stage][-1]


def test_applying_without_repair_makes_only_a_couple_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from dnge_compress.tasks import task

    asked: list[int] = []
    original = task.synthesize

    def watched(model: nn.Module, settings: Any, example: Any) -> Any:
        asked.append(settings.tokens)
        return original(model, settings, example)

    found = plan(models.make("llama"), ratio=0.2, tokens=4096, length=16, scorer="magnitude", compensate="none")
    monkeypatch.setattr(task, "synthesize", watched)
    apply(found, models.make("llama"))
    apply(replace(found, cuts=()), models.make("llama"))
    assert asked and max(asked) <= 64  # two texts, twice as long as the recipe says


def test_the_graph_can_be_read_alone() -> None:
    graph = build_graph(models.make("llama"))
    assert graph.family == "llama" and {s.kind for s in graph.spaces} >= {"neuron", "head", "layer"}


def test_a_compression_can_be_copied() -> None:
    small = compress(models.make("bert"), ratio=0.2, **QUICK)
    assert torch.equal(answer(copy.deepcopy(small), "bert"), answer(small, "bert"))


def test_a_batch_with_labels_beside_the_inputs_is_refused_in_one_line() -> None:
    model, images = models.make("cnn"), models.example_inputs("cnn")
    with pytest.raises(DataError, match="data batch 0 doesn't fit"):
        compress(model, data=[[images, torch.zeros(len(images))]], example_inputs=images, scorer="obs")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_a_compiled_or_parallel_model_is_compressed_as_itself(tmp_path: Path) -> None:
    model = models.make("llama")
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        small = compress(wrapped, ratio=0.2, **QUICK)
        assert type(small) is type(model)
        assert not any("_orig_mod" in name or name.startswith("module.") for name in small.state_dict())
    save(small, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_model_with_adapters_is_refused_with_the_way_out() -> None:
    model = models.make("llama")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    for verb in (compress, plan, score):
        with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
            verb(adapted)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "a NoneType is no torch module"), (5, "a int is no torch"), (nn.Linear, "a class Linear is no torch")],
)
def test_what_is_no_model_is_refused(value: Any, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        compress(value)


def test_of_wide_layers_fewer_plans_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_measured() -> bool:
        return any(n.startswith("candidates by measured") for n in plan(models.make("llama"), 0.3, **OBS).notes)

    monkeypatch.setattr("dnge_compress.plans.planner.TRIED_IF_WIDE", 1)
    assert is_measured()
    monkeypatch.setattr("dnge_compress.plans.planner.WIDE", 1)
    assert not is_measured()


def test_only_matrices_that_read_what_is_cut_make_layers_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnge_compress.plans.planner.TRIED_IF_WIDE", 1)
    notes = {}
    for wide in (39, 40):  # features behind the neurons are 40, those of heads and of the residual stream 48
        monkeypatch.setattr("dnge_compress.plans.planner.WIDE", wide)
        notes[wide] = plan(models.make("llama"), 0.4, kinds=("neuron", "layer"), **OBS).notes
    assert [any(n.startswith("candidates by measured") for n in notes[wide]) for wide in (39, 40)] == [False, True]


def test_the_chosen_candidate_is_marked() -> None:
    note = next(n for n in plan(models.make("llama"), 0.3, **OBS).notes if n.startswith("candidates by measured"))
    costs = {float(cost): mark for cost, mark in re.findall(r": ([\d.e-]+)( \(chosen\))?(?:;|$)", note)}
    assert len(costs) > 1 and [cost for cost, mark in costs.items() if mark] == [min(costs)]


def test_candidates_of_unlike_widths_are_told_by_their_ends() -> None:
    found = plan(models.make("llama"), 0.3, uneven=True, allocation="global", kinds=["neuron"], **OBS)
    kept = sorted(len(c.keep) for c in found.cuts)
    note = next(n for n in found.notes if n.startswith("candidates by measured"))
    assert kept[0] < kept[-1] and f" {kept[0]} to {kept[-1]} of 40 neurons" in note.replace(": ", ": ;", 1).replace(
        ";", " "
    )


def test_a_recipe_may_be_a_mapping() -> None:
    found = plan(models.make("llama"), {"prune": {"ratio": 0.3, "kinds": ["neuron"]}}, **QUICK)
    assert found.keep("ffn.0") is not None
    with pytest.raises(RecipeError, match="prunes"):
        plan(models.make("llama"), {"prunes": {}}, **QUICK)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_a_classifier_without_a_padding_token_is_compressed(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(**{**models.DECODER, "pad_token_id": None}, num_labels=3)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    small = compress(model, 0.3, **OBS)
    assert small.config.pad_token_id is None and model.config.pad_token_id is None
    ids = torch.randint(4, 60, (1, 9))
    assert small(ids).logits.shape == (1, 3)


@pytest.mark.parametrize("progress", [1, "yes"])
def test_a_progress_that_can_not_be_called_is_told(progress: Any) -> None:
    with pytest.raises(DataError, match=f"progress is {progress!r}; pass True, False, or a function"):
        compress(models.make("llama"), 0.3, scorer="magnitude", progress=progress)


def test_numbers_of_numpy_are_ratios_and_no_progress_is_none() -> None:
    quick = {"scorer": "magnitude", "compensate": "none", "progress": None}
    wanted = compress(models.make("llama"), 0.25, **quick).dnge.plan.cuts
    assert compress(models.make("llama"), np.float32(0.25), **quick).dnge.plan.cuts == wanted
    assert compress(models.make("llama"), ratio=np.float32(0.25), **quick).dnge.plan.cuts == wanted
