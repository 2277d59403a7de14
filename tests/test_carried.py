"""Models that only their plan describes: it goes along wherever the model is saved by others, and wrappers come off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import example_inputs, make, outputs, tokens
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

from dnge_compress import apply, build_graph, compress, load, open_model, place_lora, plan, save
from dnge_compress.checkpoint.outlines import DTYPES, inputs_of, outline
from dnge_compress.core.errors import CheckpointError, PlanError
from dnge_compress.graph.types import Cut
from dnge_compress.plans.prune_plan import PrunePlan

QUICK = {"scorer": "magnitude", "compensate": "none", "kinds": ["neuron"], "ratio": 0.2}
UNEVEN = {**QUICK, "ratio": 0.1, "uneven": True, "allocation": "global", "protected": ["*.0.*"]}


def uneven(name: str) -> Any:
    small: Any = compress(make(name), **UNEVEN)
    assert small.dnge.plan.uneven
    return small


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_save_pretrained_takes_the_plan_along(name: str, tmp_path: Path) -> None:
    small = uneven(name)
    small.save_pretrained(tmp_path / "plain")
    for loaded in (load(tmp_path / "plain"), open_model(tmp_path / "plain")):
        assert torch.equal(outputs(loaded, example_inputs(name)), outputs(small, example_inputs(name)))
        loaded.save_pretrained(tmp_path / "again")
        assert torch.equal(
            outputs(load(tmp_path / "again"), example_inputs(name)), outputs(small, example_inputs(name))
        )
    assert load(tmp_path / "plain").dnge.plan == small.dnge.plan
    out = save(load(tmp_path / "plain"), tmp_path / "ours")
    assert "dnge_compress" not in json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert hasattr(small.config, "dnge_compress")
    assert torch.equal(outputs(load(out), example_inputs(name)), outputs(small, example_inputs(name)))


def test_a_mixture_of_experts_keeps_its_own_names(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=61, hidden_size=24, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    small: Any = compress(MixtralForCausalLM(config).eval(), **UNEVEN, round_to=8)
    assert small.dnge.plan.uneven
    small.save_pretrained(tmp_path)
    assert torch.equal(outputs(load(tmp_path), tokens()), outputs(small, tokens()))


def test_a_trainers_checkpoint_is_read_with_what_was_trained(tmp_path: Path) -> None:
    small = uneven("llama")
    rows = [{"input_ids": row, "labels": row} for row in tokens()["input_ids"]]
    told = {"max_steps": 1, "save_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(small, TrainingArguments(str(tmp_path), learning_rate=0.1, **told), train_dataset=rows)
    before = outputs(small.eval(), tokens())
    trainer.train()
    trained = outputs(small.eval(), tokens())
    assert not torch.equal(before, trained)
    assert torch.equal(outputs(load(tmp_path / "checkpoint-1"), tokens()), trained)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(outputs(open_model(tmp_path / "saved"), tokens()), trained)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    "broken", [3, {"plan": {}}, {"plan": "{}", "base_config": {}}, {"base_config": {"model_type": 1}}]
)
def test_a_broken_plan_in_a_config_is_one_line(broken: Any, tmp_path: Path) -> None:
    uneven("llama").save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(raw | {"dnge_compress": broken}), encoding="utf-8")
    with pytest.raises((CheckpointError, PlanError), match="config.json") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_widths_that_no_config_says_are_cut_again_and_load_by_one_plan(name: str, tmp_path: Path) -> None:
    first, inputs = uneven(name), example_inputs(name)
    first.save_pretrained(tmp_path / "first")
    seen = []
    for given in (first, str(tmp_path / "first")):
        second: Any = compress(given, **{**UNEVEN, "ratio": 0.04})
        loaded = load(save(second, tmp_path / f"out{len(seen)}"))
        assert torch.allclose(outputs(loaded, inputs), outputs(second, inputs), atol=1e-6)
        made = second.dnge.plan
        assert made.uneven and made.base == first.dnge.plan.base and made.params_before == first.dnge.plan.params_before
        assert made.params_after == sum(p.numel() for p in second.parameters()) < first.dnge.plan.params_after
        seen.append(outputs(second, inputs))
    assert torch.allclose(*seen, atol=1e-6)


def test_blocks_heads_and_neurons_go_in_several_rounds(tmp_path: Path) -> None:
    small: Any = make("llama")
    sizes = [sum(p.numel() for p in small.parameters())]
    for kinds in (("neuron", "head"), ("layer",), ("neuron",), ("layer", "neuron")):
        small = compress(small, **{**UNEVEN, "kinds": kinds, "ratio": 0.15, "protected": ()})
        sizes.append(sum(p.numel() for p in small.parameters()))
        loaded = load(save(small, tmp_path / f"out{len(sizes)}"))
        assert torch.allclose(*(outputs(model, example_inputs("llama")) for model in (loaded, small)), atol=1e-6)
        small = loaded
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    assert small.dnge.plan.params_before == sizes[0]


def test_a_plain_module_is_compressed_again_and_loads_on_a_fresh_instance_by_one_plan(tmp_path: Path) -> None:
    inputs = example_inputs("cnn")
    first: Any = compress(make("cnn"), ratio=0.2, example_inputs=inputs)
    second: Any = compress(first, ratio=0.2, example_inputs=inputs)
    loaded = load(save(second, tmp_path / "out"), model=make("cnn"))
    assert torch.equal(outputs(loaded, inputs), outputs(second, inputs))
    made = second.dnge.plan
    assert made.base == first.dnge.plan.base != build_graph(first, inputs).fingerprint and not made.is_edited
    assert made.params_before == first.dnge.plan.params_before
    assert made.params_after == sum(p.numel() for p in second.parameters()) < first.dnge.plan.params_after
    assert {row.space: row.total for row in made.rows} == {row.space: row.total for row in first.dnge.plan.rows}
    assert {row.space: row.kept for row in made.rows if made.keep(row.space)} == {
        cut.space: len(cut.keep) for cut in made.cuts
    }
    third = apply(made, make("cnn"), example_inputs=inputs)
    assert all(p.shape == q.shape for p, q in zip(third.parameters(), second.parameters(), strict=True))


def test_a_second_compression_that_no_plan_can_tell_is_refused_at_once() -> None:
    inputs = example_inputs("cnn")
    first: Any = compress(make("cnn"), ratio=0.2, example_inputs=inputs)
    cuts = tuple(Cut(space=f"{cut.space}.gone", keep=cut.keep) for cut in first.dnge.plan.cuts)
    first.dnge = replace(first.dnge, plan=replace(first.dnge.plan, cuts=cuts))
    with pytest.raises(PlanError, match=r"gone', which can't be told in one plan.*original once"):
        plan(first, ratio=0.2, example_inputs=inputs)


def test_a_config_that_can_not_be_written_is_told_before_the_model_changes() -> None:
    model: Any = make("llama")
    model.config.extra = np.int64(3)
    before = outputs(model, tokens())
    with pytest.raises(CheckpointError, match=r"config of this LlamaForCausalLM can't be saved \(.*int64"):
        compress(model, **UNEVEN, inplace=True)
    assert torch.equal(outputs(model, tokens()), before) and not hasattr(model, "dnge")


def test_a_config_that_transformers_can_not_write_is_told(tmp_path: Path) -> None:
    small: Any = compress(make("llama"), **QUICK)
    small.config.extra = np.int64(3)
    with pytest.raises(CheckpointError, match="can't save this LlamaForCausalLM: .*int64"):
        save(small, tmp_path / "out")


def test_an_even_model_carries_nothing(tmp_path: Path) -> None:
    small: Any = compress(make("llama"), **QUICK)
    assert not small.dnge.plan.uneven and not hasattr(small.config, "dnge_compress")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_is_wrapped_around_a_result_comes_off_when_it_is_saved(wrap: Any, tmp_path: Path) -> None:
    small = compress(make("llama"), **QUICK)
    out = save(wrap(small), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(outputs(loaded, tokens()), outputs(small, tokens()))
    assert build_graph(wrap(small)) == build_graph(small)
    adapters = place_lora(small)
    assert adapters.verify(wrap(small)) == adapters.params


def test_what_an_edited_plan_costs_is_unknown(tmp_path: Path) -> None:
    raw = json.loads(plan(make("bert"), **QUICK).to_json())
    for space in raw["cuts"]:
        raw["cuts"][space] = list(range(3, 20))
    small: Any = apply(PrunePlan.from_json(json.dumps(raw)), make("bert"))
    report = small.dnge.report
    assert report.predicted_cost is None and report.expected is None
    assert {row.cost for row in report.rows if row.kept < row.total} == {None}
    assert "predicted cost –" in str(report)
    told = json.loads((save(small, tmp_path / "out") / "dnge_report.json").read_text(encoding="utf-8"))
    assert told["predicted_cost"] is None and {r["cost"] for r in told["rows"] if r["kept"] < r["total"]} == {None}
    assert load(tmp_path / "out").dnge.report == report
    assert PrunePlan.from_json(small.dnge.plan.to_json()) == small.dnge.plan


LARGE = {"shape": [1 << 27], "dtype": "float32"}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"tensor": {"shape": [10_000_000, 10_000_000], "dtype": "float32"}}, "is no shape of inputs"),
        ({"tensor": {"shape": [2], "dtype": "nonsense"}}, "'nonsense' is no type of inputs"),
        ({"tensor": {"shape": [2], "dtype": "qint8"}}, "'qint8' is no type of inputs"),
        ({"tuple": [LARGE, LARGE, LARGE]}, "more than 268,435,456 values"),
        ({"dict": dict.fromkeys("abc", LARGE)}, "more than 268,435,456 values"),
        ({}, "under one of"),
        ([1], "under one of"),
    ],
)
def test_inputs_that_nobody_traced_with_are_told_before_they_take_memory(raw: Any, told: str, tmp_path: Path) -> None:
    inputs = example_inputs("cnn")
    out = save(compress(make("cnn"), ratio=0.2, example_inputs=inputs), tmp_path / "out")
    (out / "dnge_inputs.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=told):
        load(out, model=make("cnn"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_every_type_are_made_again(dtype: str) -> None:
    made = inputs_of({"tensor": {"shape": [2, 3], "dtype": dtype}}, "the inputs")
    assert isinstance(made, torch.Tensor) and made.dtype == DTYPES[dtype] and made.shape == (2, 3)


def test_whole_numbers_are_made_in_their_range() -> None:
    ids, mask = torch.tensor([[5, 7, 9]]), torch.ones(1, 3, dtype=torch.bool)
    made: Any = inputs_of(json.loads(outline({"input_ids": ids, "attention_mask": mask})), "the inputs")
    assert made["attention_mask"].all() and ((made["input_ids"] >= 5) & (made["input_ids"] <= 9)).all()


def test_inputs_are_read_only_where_something_is_replayed(tmp_path: Path) -> None:
    out = save(compress(make("llama"), **QUICK), tmp_path / "out")
    (out / "dnge_inputs.json").write_text("[1]")
    assert load(out).dnge.inputs is None
