"""Targets beside a ratio: sizes that are reached and hardly undercut, and those that can't be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from dnge_compress import Recipe, compress, plan, score
from dnge_compress.cli.main import main
from dnge_compress.core.errors import BudgetError, DataError, RecipeError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.plans.targets import cache_bytes, smallest_ratio
from dnge_compress.recipes.library import resolve
from dnge_compress.report import speeds
from dnge_compress.signals.sampled_text import cache_name

OBS: dict[str, Any] = {"tokens": 64, "length": 16, "scorer": "obs"}


def bytes_of(model: nn.Module) -> int:
    """Of all parameters and buffers, tied ones once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.nbytes for t in tensors.values())


def params_of(model: nn.Module) -> int:
    """Unique parameters."""
    return sum(p.numel() for p in model.parameters())


def real_cache(model: Any, length: int, batch: int) -> int:
    """Bytes of the keys and values that a model writes."""
    with torch.no_grad():
        answer = model(input_ids=torch.ones(batch, length, dtype=torch.long), use_cache=True)
        cache = getattr(answer, cache_name(model))
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def mixtral() -> Any:
    """A tiny mixture of four experts, of which a token meets two."""
    torch.manual_seed(0)
    sizes = models.DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}
    return models.roughened(MixtralForCausalLM(MixtralConfig(**sizes))).eval()


@pytest.mark.parametrize("name", ["llama", "bert", "resnet_basic", "mlp"])
@pytest.mark.parametrize(("target", "counted"), [("params", params_of), ("bytes", bytes_of)])
def test_the_result_is_as_small_as_asked_and_a_smaller_ratio_is_not(name: str, target: str, counted: Any) -> None:
    model = models.make(name)
    settings = OBS | ({"example_inputs": models.example_inputs(name)} if name in models.PLAIN else {})
    goal = round(0.75 * counted(model))
    small: Any = compress(model, **settings, **{target: goal})
    assert counted(small) <= goal
    ratio = small.dnge.plan.recipe["prune"]["ratio"]
    assert target not in small.dnge.plan.recipe["prune"] and 0 < ratio < 1
    note = next(note for note in small.dnge.plan.notes if note.startswith(f"{target} "))
    assert f"reached at ratio {ratio:.4f}" in note
    again = plan(model, **settings, ratio=ratio)
    assert again.cuts == small.dnge.plan.cuts and again.params_after == small.dnge.plan.params_after
    less = compress(model, ratio=[ratio - 0.05], **settings)
    assert counted(less[0]) > goal or counted(less[0]) > counted(small)


def test_memory_is_that_of_weights_and_cache() -> None:
    model: Any = models.make("llama")
    length, batch = 30, 4
    goal = round(0.7 * (bytes_of(model) + real_cache(model, length, batch)))
    settings = OBS | {"cache_length": length, "cache_batch": batch}
    for kinds in (("neuron", "head", "layer"), ("layer",)):
        small: Any = compress(model, memory=goal, kinds=kinds, **settings)
        assert bytes_of(small) + real_cache(small, length, batch) <= goal
    found = plan(model, memory=goal, kinds=["neuron"], min_keep=0, **settings)
    less: Any = compress(model, ratio=found.recipe["prune"]["ratio"] - 0.03, kinds=["neuron"], min_keep=0, **OBS)
    assert bytes_of(less) + real_cache(less, length, batch) > goal


@pytest.mark.parametrize("recipe", ["prune/heads", "prune/layers", "prune/neurons"])
def test_a_cache_is_foretold_for_plans_of_every_kind(recipe: str) -> None:
    for name in ("llama", "llama_mqa", "qwen3", "gpt2"):
        model: Any = models.make(name)
        try:
            small: Any = compress(model, recipe, ratio=0.5, compensate="none", **OBS)
        except BudgetError:  # nothing of the kind can go there
            continue
        task_graph = score(model, **OBS).context.graph
        foretold = cache_bytes(model, task_graph, 12, 3)
        assert foretold(AppliedCuts(task_graph)) == real_cache(model, 12, 3)
        assert foretold(AppliedCuts(task_graph, small.dnge.plan.cuts)) >= real_cache(small, 12, 3)
        if name in ("llama", "qwen3"):
            assert foretold(AppliedCuts(task_graph, small.dnge.plan.cuts)) == real_cache(small, 12, 3)


def test_a_window_bounds_the_cache() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**models.DECODER, sliding_window=8)).eval()
    graph = score(model, **OBS).context.graph
    short, long = (cache_bytes(model, graph, n, 1)(AppliedCuts(graph)) for n in (8, 1000))
    assert short == long > 0
    bert = models.make("bert")
    assert cache_bytes(bert, score(bert, **OBS).context.graph, 100, 1)(AppliedCuts(graph)) == 0


def test_active_parameters_are_those_of_the_experts_that_a_token_goes_to() -> None:
    model = mixtral()

    def active(found: Any) -> float:
        experts = sum(p.numel() for n, p in found.named_parameters() if ".experts." in n)
        kept = found.config.num_local_experts
        return params_of(found) - experts * (1 - 2 / kept)

    goal = round(0.8 * active(model))
    for kinds in (("neuron", "layer"), ("expert", "neuron")):
        small: Any = compress(model, active_params=goal, kinds=kinds, **OBS)
        assert active(small) <= goal < active(model)
    with pytest.raises(DataError, match="has no experts that are known, so all of it is active; use params"):
        plan(models.make("llama"), active_params=1000, **OBS)


def test_a_latency_is_reached_by_measuring_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine on which time is the number of parameters."""
    monkeypatch.setattr(speeds, "_seconds", lambda model, batch: 1e-6 * params_of(model))
    model = models.make("llama")
    small: Any = compress(model, latency="0.8x", **OBS)
    assert 0.74 <= params_of(small) / params_of(model) <= 0.8
    note = next(note for note in small.dnge.plan.notes if note.startswith("latency 0.80x"))
    assert "measured here on 4 calibration examples" in note and "0.00: 1.00x" in note and note.count(": 0.") >= 4
    with pytest.raises(BudgetError, match=r"latency 0.01x can't be reached: at least 0.\d\dx with kinds"):
        plan(model, latency=0.01, **OBS)


def test_what_is_small_enough_stays_whole_and_needs_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnge_compress.tasks.task.run_scorer", lambda *a: pytest.fail("it was scored"))
    found = plan(models.make("llama"), params="4.2B", **OBS)
    assert found.cuts == () and found.params_before == found.params_after
    assert any("so nothing is removed" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("llama", {"params": 100}, r"params 100 can't be reached: at least [\d.]+ k with kinds"),
        ("llama", {"bytes": "1kB"}, r"bytes 1.00 kB can't be reached: at least [\d.]+ kB with"),
        ("llama", {"memory": "1kB"}, r"memory 1.00 kB can't be reached: at least [\d.]+ kB with"),
        ("bert", {"params": 100, "of": "units", "kinds": ["neuron"]}, "can't be reached: at least"),
        ("llama", {"params": 100, "uneven": True}, "can't be reached: at least"),
        ("llama", {"params": 100, "of": "macs"}, "can't be reached: at least"),
    ],
)
def test_what_cant_be_had_ends_with_the_smallest_that_can(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BudgetError, match=words) as error:
        plan(models.make(name), **OBS, **settings)
    assert "\n" not in str(error.value) and error.value.args


def test_the_smallest_that_can_be_had_is_had() -> None:
    model = models.make("llama")
    with pytest.raises(BudgetError) as error:
        plan(model, params=1, **OBS)
    shown = str(error.value).partition("at least ")[2].split(" with")[0]
    least = plan(model, params=round(1.02 * float(shown.split()[0]) * 1000), **OBS)
    assert least.params_after == pytest.approx(float(shown.split()[0]) * 1000, rel=0.03)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("params", "4.2B", 4_200_000_000),
        ("params", "350M", 350_000_000),
        ("params", 1e6, 1_000_000),
        ("params", "1_000", 1000),
        ("bytes", "8GB", 8_000_000_000),
        ("bytes", "8 GiB", 8 * 2**30),
        ("bytes", "512kb", 512_000),
        ("bytes", ".5 TB", 500_000_000_000),
        ("bytes", "8GBs", None),
        ("bytes", "-8GB", None),
        ("bytes", 0, None),
        ("bytes", True, None),
        ("memory", "many", None),
        ("memory", float("inf"), None),
        ("latency", "0.8x", 0.8),
        ("latency", "80%", 0.8),
        ("latency", 0.8, 0.8),
        ("latency", "1.2x", None),
        ("latency", "fast", None),
        ("latency", 0, None),
        ("active_params", "1.3b", 1_300_000_000),
    ],
)
def test_sizes_are_read_as_people_write_them(key: str, value: Any, wanted: Any) -> None:
    if wanted is None:
        with pytest.raises(RecipeError, match=key):
            resolve("prune/default", {key: value})
        return
    recipe = resolve("prune/default", {key: value})
    assert getattr(recipe.prune, key) == wanted and recipe.prune.target == key
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_one_of_ratio_and_targets_is_given_and_the_last_word_counts(tmp_path: Path) -> None:
    recipe = resolve("prune/default", {"params": "1M"})
    assert "ratio" not in recipe.model_dump()["prune"]
    assert resolve(recipe, {"ratio": 0.3}).prune.target == "" and resolve(recipe, {"bytes": 5}).prune.params is None
    for overrides in ({"ratio": 0.3, "params": 5}, {"params": 5, "prune.bytes": 5}):
        with pytest.raises(RecipeError, match="are both given, and one takes the place of the other; give one"):
            resolve("prune/default", overrides)
    file = tmp_path / "mine.yaml"
    file.write_text("prune:\n  params: 4.2B\n  kinds: [neuron]\n", encoding="utf-8")
    assert resolve(file).prune.params == 4_200_000_000 and resolve(file, {"ratio": 0.1}).prune.ratio == 0.1
    file.write_text("prune:\n  params: 4.2B\n  ratio: 0.3\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="should name one of ratio, params, bytes, .* not ratio and params"):
        resolve(file)
    with pytest.raises(RecipeError, match="both given"):
        compress(models.make("llama"), 0.3, params=5, **OBS)


def test_bisection_finds_the_smallest_ratio_of_steps() -> None:
    found = smallest_ratio(lambda r: 10 - int(10 * r), 7, (0, 0.95), 1e-4, lambda least: BudgetError(f"{least}"))
    assert found.ratio == pytest.approx(0.3, abs=2e-4) and 10 - int(10 * found.ratio) <= 7
    with pytest.raises(BudgetError, match="^1$"):
        smallest_ratio(lambda r: 10 - int(10 * r), 0, (0, 0.95), 1e-4, lambda least: BudgetError(f"{least}"))


def test_the_command_line_takes_targets_and_ends_with_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "model")
    models.make("llama").save_pretrained(model)  # type: ignore[operator]
    few = ("--scorer", "obs", "--set", "tokens=64", "--set", "length=16")
    before = params_of(models.make("llama"))
    assert main(["plan", model, "--params", str(round(0.8 * before)), "--json", *few]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["params_after"] <= 0.8 * before
    for code, words, options in (
        (3, "params 10 can't be reached: at least", ["--params", "10"]),
        (3, "memory 1.00 kB can't be reached", ["--memory", "1kB", "--set", "cache_length=16"]),
        (2, "override: 'prune.bytes' should be", ["--bytes", "much"]),
        (2, "'ratio' and 'params' are both given", ["--params", "1M", "--ratio", "0.3"]),
        (2, "'params' stands twice", ["--params", "1M", "--set", "params=2M"]),
    ):
        assert main(["compress", model, "-o", str(tmp_path / "out"), *few, *options]) == code
        out, err = capsys.readouterr()
        assert out == "" and words in err and err.count("dnge: error") == 1 and not (tmp_path / "out").exists()
