"""What every public verb keeps to: torch stays as it was set, wrong types get the call that works, progress shows."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import dnge_compress
from dnge_compress import (
    PrunePlan,
    apply,
    build_graph,
    compress,
    load,
    open_model,
    place_lora,
    plan,
    preview,
    save,
    score,
)
from dnge_compress.core.errors import CheckpointError, DngeError, PlanError, RecipeError, UnsupportedModelError
from dnge_compress.core.torch_state import plain_torch

FEW: dict[str, Any] = {"tokens": 64, "length": 16}
OBS: dict[str, Any] = FEW | {"scorer": "obs"}
QUICK: dict[str, Any] = FEW | {"scorer": "magnitude", "compensate": "none"}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New numbers of a kind."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Only algorithms that give the same every time."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "bfloat16": partial(default_dtype, torch.bfloat16),
    "float64": partial(default_dtype, torch.float64),
    "another device": partial(torch.device, "meta"),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "deterministic": deterministic,
}


def state() -> tuple[Any, ...]:
    """All that a caller may have switched."""
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize("switched", STATES)
@pytest.mark.parametrize("name", ["llama", "cnn"])
def test_whatever_is_switched_in_torch_the_result_is_the_same_and_the_switch_stays(name: str, switched: str) -> None:
    model, inputs = models.make(name), models.example_inputs(name)
    settings = OBS | ({} if name == "llama" else {"example_inputs": inputs})
    expected = models.outputs(compress(model, 0.3, **settings), inputs)
    with STATES[switched]():
        before = state()
        small = compress(model, 0.3, **settings)
        assert state() == before
    assert torch.equal(models.outputs(small, inputs), expected)
    assert not any(t.is_inference() for t in small.state_dict().values())


@pytest.mark.parametrize("switched", ["inference mode", "bfloat16", "another device"])
def test_every_verb_gives_the_switches_back(switched: str, tmp_path: Path) -> None:
    model = models.make("llama")
    model.save_pretrained(tmp_path / "base")
    with STATES[switched]():
        before = state()
        opened = open_model(tmp_path / "base")
        found = plan(opened, 0.3, **OBS)
        assert score(opened, **OBS).units and place_lora(opened, placer="fisher", **FEW).placed
        small = apply(found, opened)
        save(small, tmp_path / "out")
        again = load(tmp_path / "out")
        preview(found, opened)
        with pytest.raises(DngeError):
            compress(opened, 2.0)
        assert state() == before
    assert torch.equal(models.outputs(again, models.tokens()), models.outputs(small, models.tokens()))
    assert all(not t.is_inference() and t.dtype == torch.float32 for t in opened.state_dict().values())


@pytest.mark.parametrize("switched", ["inference mode", "bfloat16"])
def test_a_model_that_was_built_under_a_switch_is_compressed(switched: str) -> None:
    with STATES[switched]():
        model = models.make("llama")
    small = compress(model, 0.3, inplace=True, **OBS)
    assert small is model and small.dnge.plan.cuts
    small.train()(models.tokens()["input_ids"]).logits.float().sum().backward()  # its weights can be trained


def test_inputs_that_were_made_under_a_switch_are_taken() -> None:
    def batches() -> Iterator[Tensor]:
        for seed in range(2):
            yield torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    with torch.inference_mode():
        images = list(batches())
    small = compress(models.make("cnn"), 0.3, data=images, example_inputs=images[0], scorer="obs")
    assert small.dnge.plan.cuts
    half = models.make("cnn").to(torch.bfloat16)
    with STATES["bfloat16"]():  # the generator is run in the torch that it was written for
        small = compress(half, 0.3, data=batches(), example_inputs=images[0].to(torch.bfloat16), scorer="obs")
    assert small.dnge.plan.cuts


def test_deterministic_algorithms_stay_on_without_failing_where_torch_has_none() -> None:
    with STATES["deterministic"](), plain_torch():
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()


def test_every_public_function_is_a_verb() -> None:
    for name in dnge_compress.__all__:
        found = getattr(dnge_compress, name)
        assert not inspect.isfunction(found) or hasattr(found, "__wrapped__"), name


def test_the_second_argument_may_be_a_ratio() -> None:
    model = models.make("llama")
    assert plan(model, 0.3, **QUICK) == plan(model, ratio=0.3, **QUICK)
    with pytest.raises(RecipeError, match=r"given twice, 0\.3 and 0\.2"):
        compress(model, 0.3, ratio=0.2)


def test_recipes_of_both_kinds_may_be_mappings() -> None:
    model = models.make("llama")
    assert plan(model, {"scorer": "magnitude", "prune": {"ratio": 0.3}}, **QUICK).cuts
    assert place_lora(model, {"lora": {"placer": "stable_rank"}}).placed
    with pytest.raises(RecipeError, match="is a prune recipe, not a lora recipe"):
        place_lora(model, {"recipe": "prune"})


def test_a_plan_may_be_a_path(tmp_path: Path) -> None:
    model, file = models.make("llama"), tmp_path / "plan.json"
    found = plan(model, 0.3, **QUICK)
    file.write_text(found.to_json(), encoding="utf-8")
    for given in (file, str(file)):
        assert apply(given, model).dnge.plan.cuts == found.cuts
        assert isinstance(preview(given, model), nn.Module)
    with pytest.raises(PlanError, match=r"none\.json' is missing; make or fetch it again"):
        apply(tmp_path / "none.json", model)


class Pipeline:
    """Holds a model inside, as pipelines do."""

    model = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        (None, r'compress\(model\), compress\("folder"\)'),
        (nn.Linear, r"make one of it first: compress\(Linear\(…\)\)"),
        (AutoModelForCausalLM, r"compress\(AutoModelForCausalLM\.from_pretrained\("),
        (nn.Linear(2, 2).state_dict(), r"load_state_dict\(…\), compress\(module\)"),
        (Pipeline(), r"compress\(….model\)"),
    ],
)
def test_what_is_no_model_gets_the_call_that_works(value: Any, way_out: str) -> None:
    for verb in (compress, plan, score, place_lora):
        with pytest.raises(UnsupportedModelError, match=f"is no torch module; .*{way_out}") as error:
            verb(value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m, p: compress(m, None), RecipeError, r"not a NoneType; leave it out, or write compress\(model"),
        (lambda m, p: compress(m, True), RecipeError, "not a bool"),
        (lambda m, p: compress("prune/default", m), RecipeError, "not a LlamaForCausalLM"),
        (lambda m, p: compress(m, p), PlanError, r"apply\(plan, model\)"),
        (lambda m, p: apply(m, p), PlanError, r"change places: apply\(plan, model\)"),
        (lambda m, p: apply(m, "folder"), PlanError, r"change places: apply\(plan, model\)"),
        (lambda m, p: apply(json.loads(p.to_json()), m), PlanError, r"not a dict: apply\(plan, model\)"),
        (lambda m, p: preview(None, m), PlanError, "not a NoneType"),
        (lambda m, p: save(m, m), CheckpointError, r'save\(model, "folder"\)'),
        (lambda m, p: save("out", m), CheckpointError, r'save\(model, "folder"\)'),
        (lambda m, p: load(m), CheckpointError, r'load\("folder"\)'),
        (lambda m, p: open_model(m), CheckpointError, r'open_model\("folder"\)'),
        (lambda m, p: place_lora(m, 16), RecipeError, "budget="),
    ],
)
def test_wrong_types_get_one_line_with_the_call_that_works(call: Any, kind: type[DngeError], words: str) -> None:
    model = models.make("llama")
    with pytest.raises(kind, match=words) as error:
        call(model, plan(model, 0.3, **QUICK))
    assert "\n" not in str(error.value)


def test_adapters_are_refused_by_every_verb_with_the_way_out() -> None:
    model = models.make("llama")
    found = plan(model, 0.3, **QUICK)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    verbs: list[Callable[[], object]] = [
        *(partial(verb, adapted) for verb in (compress, plan, score, place_lora, build_graph)),
        *(partial(verb, found, adapted) for verb in (apply, preview)),
        lambda: save(get_peft_model(compress(model, 0.3, **QUICK), LoraConfig(target_modules=["q_proj"])), "out"),
    ]
    for verb in verbs:
        with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
            verb()


def test_a_wrapped_model_is_saved_as_itself(tmp_path: Path) -> None:
    small = compress(models.make("llama"), 0.3, **QUICK)
    save(nn.DataParallel(small), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.state_dict().keys() == small.state_dict().keys()


def test_progress_is_drawn_when_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    compress(models.make("llama"), 0.3, **OBS)
    assert capsys.readouterr() == ("", "")
    compress(models.make("llama"), 0.3, progress=True, **OBS)
    out, err = capsys.readouterr()
    assert out == "" and "dnge: calibrate" in err and "dnge: score" in err


def test_a_plan_reads_its_file(tmp_path: Path) -> None:
    found = plan(models.make("llama"), 0.3, **QUICK)
    (tmp_path / "ü.json").write_text(found.to_json(), encoding="utf-8")
    assert PrunePlan.read(tmp_path / "ü.json") == found
