"""A part of a model is pruned alone: nothing outside it changes, the ratio counts it, and what can't go says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from tiny_architectures import ARCHITECTURES, inputs_of, main_output
from torch import nn

from dnge_compress import PrunePlan, apply, compress, load, plan, save
from dnge_compress.cli.main import main
from dnge_compress.core.errors import BudgetError, RecipeError, UnknownNameError
from dnge_compress.plans.held import full_path

QUICK: dict[str, Any] = {"scorer": "magnitude", "compensate": "none", "tokens": 64, "length": 16}


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    """Parameters that are gone, or have another shape or other values."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    return {n for n, p in old.items() if n not in new or not torch.equal(p, new[n])}


@pytest.mark.parametrize(
    ("name", "part", "path"),
    [
        ("llava", "language_model", "model.language_model"),
        ("qwen2_5_vl", "model.language_model", "model.language_model"),
        ("clip", "text_model", "text_model"),
        ("clip", "vision_model", "vision_model"),
        ("t5", "decoder", "decoder"),
        ("bart", "encoder", "model.encoder"),
        ("whisper", "decoder", "model.decoder"),
    ],
)
def test_a_part_alone_shrinks_and_the_whole_reloads_plainly(name: str, part: str, path: str, tmp_path: Path) -> None:
    tiny = ARCHITECTURES[name]
    model = tiny.build()
    small: Any = compress(model, ratio=0.3, within=part, tokens=256, length=16, scorer="obs")
    assert changed(model, small) and all(n.startswith(f"{path}.") for n in changed(model, small))
    assert not small.dnge.plan.uneven
    again = type(small).from_pretrained(save(small, tmp_path / "out"))
    with torch.no_grad():
        answers = [main_output(network(**inputs_of(tiny.inputs))) for network in (small, again)]
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_the_ratio_counts_the_part_alone(of: str) -> None:
    model = ARCHITECTURES["llava"].build()
    part = model.model.language_model.layers
    small: Any = compress(model, ratio=0.4, of=of, within="language_model", kinds=["neuron"], **QUICK)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (part, small.model.language_model.layers))
    assert 0.4 <= 1 - after / before < 0.43  # norms are the rest of the part; a token meets every weight once
    assert any("the ratio counts it alone" in note for note in small.dnge.plan.notes)


def test_a_width_that_the_config_counts_with_others_outside_shrinks_only_unevenly(tmp_path: Path) -> None:
    model = ARCHITECTURES["t5"].build()
    with pytest.raises(BudgetError, match=r"within 'decoder': decoder\.ffn\.0.*one number for them.*uneven: true"):
        plan(model, ratio=0.2, within="decoder", kinds=["neuron"], **QUICK)
    small = compress(model, ratio=0.2, within="decoder", kinds=["neuron"], uneven=True, **QUICK)
    assert all(n.startswith("decoder.") for n in changed(model, small))
    inputs = inputs_of("seq2seq")
    with torch.no_grad():
        torch.testing.assert_close(
            main_output(load(save(small, tmp_path / "out"))(**inputs)), main_output(small(**inputs))
        )


def test_a_block_of_a_written_family_is_a_part_too() -> None:
    model = models.make("llama")
    small = compress(model, ratio=0.2, within="layers.1", uneven=True, **QUICK)
    assert changed(model, small) and all(n.startswith("model.layers.1.") for n in changed(model, small))


def test_a_part_of_a_traced_module_shrinks_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 9), nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 8)), nn.Linear(8, 4)
    )
    small = compress(model, ratio=0.3, within="1", example_inputs=torch.randn(5, 6), **QUICK)
    assert changed(model, small) == {"1.0.weight", "1.0.bias", "1.2.weight"}


def test_a_space_that_reaches_out_of_the_part_stays_and_says_so() -> None:
    extra = {"example_inputs": models.example_inputs("mlp")}
    with pytest.raises(BudgetError, match=r"within '0': 0 stay: they reach out of '0'"):
        plan(models.make("mlp"), ratio=0.2, within="0", **QUICK, **extra)


def test_a_part_that_holds_nothing_to_cut_is_refused_before_anything_is_scored() -> None:
    model, stages = ARCHITECTURES["clip"].build(), []
    options = QUICK | {"scorer": "obs", "progress": lambda stage, *_: stages.append(stage)}
    with pytest.raises(BudgetError, match=r"nothing of the kinds .* can be removed within 'text_projection'"):
        plan(model, within="text_projection", **options)
    assert set(stages) <= {"open", "read"}
    plan(model, within="text_model", **options)
    assert stages


def test_a_ratio_that_a_part_can_not_reach_names_the_part() -> None:
    with pytest.raises(BudgetError, match=r"at most 0\.\d+ of the parameters of 'encoder\.layer' can go"):
        plan(models.make("bert"), ratio=0.95, within="encoder.layer", min_keep=0.5, **QUICK)


def test_a_part_is_named_by_its_path_or_by_an_end_that_only_it_has() -> None:
    params = ("a.text.encoder.weight", "a.vision.encoder.weight", "a.vision.head.0.weight", "bias")
    assert full_path("", params) == ""
    assert full_path("vision", params) == "a.vision"
    assert full_path("vision.encoder", params) == "a.vision.encoder"
    with pytest.raises(BudgetError, match=r"'encoder' names 2 modules.*write 'a.text.encoder' or 'a.vision.encoder'"):
        full_path("encoder", params)
    with pytest.raises(UnknownNameError, match=r"unknown part of the model 'a.visoin'; did you mean 'a.vision'"):
        full_path("a.visoin", params)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*.layer.0.*", "'*.layers.0.*'"),
        ("model.layer.1.mlp", "'model.layers.1.mlp'"),
        ("*.mpl.*", "'*.mlp.*'"),
        ("*.layers.9.*", "'*.layers.2.*'"),
        ("zzz", "known: lm_head, "),
    ],
)
def test_a_protected_pattern_that_matches_nothing_offers_the_nearest_that_does(pattern: str, meant: str) -> None:
    with pytest.raises(BudgetError) as caught:
        plan(models.make("llama"), protected=[pattern], scorer="magnitude", compensate="none")
    assert f"protected '{pattern}' matches no module of the model; " in str(caught.value)
    assert meant in str(caught.value)


@pytest.mark.parametrize("told", [{"kinds": ["channel"]}, {"kinds": ["expert"]}])
def test_kinds_that_the_model_does_not_have_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="channel|expert"):
        plan(models.make("llama"), scorer="magnitude", compensate="none", **told)


def test_a_plan_keeps_the_full_path_and_applies() -> None:
    model = ARCHITECTURES["llava"].build()
    made = PrunePlan.from_json(plan(model, ratio=0.3, within="language_model", **QUICK).to_json())
    assert made.recipe["prune"]["within"] == "model.language_model"
    assert all(n.startswith("model.language_model.") for n in changed(model, apply(made, model)))


def test_what_a_ratio_counts_is_not_taken_for_a_part() -> None:
    with pytest.raises(RecipeError, match=r"'prune.of' should be .* did you mean prune.within"):
        plan(models.make("llama"), of="language_model")


def test_the_command_line_prunes_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ARCHITECTURES["bart"].build().save_pretrained(tmp_path / "base")
    quick = ("--ratio", "0.3", "--scorer", "magnitude", "--set", "tokens=64", "--set", "length=16", "--json")

    def compressed(part: str) -> int:
        return main(
            ["compress", str(tmp_path / "base"), "-o", str(tmp_path / "out"), "--set", f"within={part}", *quick]
        )

    assert compressed("encoder") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["encoder_ffn_dim"] < 80 and config["decoder_ffn_dim"] == 72 and config["decoder_layers"] == 3
    capsys.readouterr()
    assert compressed("encodr") == 2 and "did you mean 'model.encoder'" in capsys.readouterr().err
    assert compressed("shared") == 3 and "within 'model.shared'" in capsys.readouterr().err
