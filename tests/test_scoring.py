"""Scores are made once: plans at any ratio, and their repairs, come from them as they would without; saved ones too."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from dnge_compress import apply, compress, plan, score
from dnge_compress.cli.main import main
from dnge_compress.core.errors import BudgetError, DngeError, PlanError, RecipeError
from dnge_compress.graph.types import Scores
from dnge_compress.plans.basis import HEADER
from dnge_compress.plans.scoring import Scoring

FEW: dict[str, Any] = {"tokens": 256, "length": 16}
OBS: dict[str, Any] = FEW | {"scorer": "obs"}
RATIOS = (0.3, 0.1)


def batches(name: str, seed: int = 0) -> list[Any]:
    """Inputs of a tiny model, other ones than it makes itself."""
    generator = torch.Generator().manual_seed(seed)
    if name == "llama":
        return [{"input_ids": torch.randint(4, models.VOCABULARY, (4, 11), generator=generator)} for _ in range(3)]
    return [torch.randn((16, 9), generator=generator), (torch.randn((7, 9), generator=generator),)]


def make(name: str) -> nn.Module:
    """A tiny model; besides those of all tests a mixture of experts, and a conv of two groups."""
    torch.manual_seed(0)
    if name == "mixtral":
        sizes = models.DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}
        return models.roughened(MixtralForCausalLM(MixtralConfig(**sizes))).eval()
    if name == "grouped":
        convs = (
            nn.Conv2d(3, 12, 3),
            nn.ReLU(),
            nn.Conv2d(12, 8, 3, groups=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        return models.roughened(nn.Sequential(*convs, nn.Flatten(), nn.Linear(8 * 16, 5))).eval()
    return models.make(name)


def settings_of(name: str) -> dict[str, Any]:
    """What a tiny model is scored with."""
    if name == "grouped":
        return OBS | {"example_inputs": torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(1))}
    return OBS | ({"example_inputs": models.example_inputs(name)} if name in models.PLAIN else {})


def are_equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are so, bit by bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """No inputs are made and no signals are gathered."""
    for what in ("scorers.calibration_inputs", "scorers.gather_signals", "tasks.task.run_scorer"):
        monkeypatch.setattr(f"dnge_compress.{what}", lambda *a: pytest.fail("something was made again"))


@pytest.mark.parametrize("name", ["llama", "bert", "resnet_basic", "mlp", "grouped"])
@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "in memory"])
def test_plans_and_repaired_weights_from_scores_are_those_without(
    name: str, is_saved: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, settings = make(name), settings_of(name)
    wanted = [compress(model, ratio=r, **settings) for r in RATIOS]
    scores: Any = score(model, **settings)
    if is_saved:
        scores = scores.save(tmp_path / "scores")
    request.getfixturevalue("no_pass")
    for ratio, expected in zip(RATIOS, wanted, strict=True):
        found = plan(model, ratio=ratio, scores=scores, **settings)
        assert found == expected.dnge.plan
        assert are_equal(
            apply(found, model, scores=scores, **{k: v for k, v in settings.items() if "ex" in k}), expected
        )
        assert are_equal(compress(make(name), ratio=ratio, scores=scores, **settings), expected)


@pytest.mark.parametrize("name", ["llama", "mlp"])
def test_scores_on_a_users_data_bring_them_along(name: str, tmp_path: Path) -> None:
    model, settings = make(name), settings_of(name) | {"scorer": "flap"}
    expected = compress(model, ratio=0.3, data=batches(name), **settings)
    made = score(model, data=batches(name), **settings)
    folder = made.save(tmp_path / "scores")
    for scores in (made, folder):
        for data in (None, batches(name)):
            small = compress(model, ratio=0.3, scores=scores, data=data, **settings)
            assert small.dnge.plan == expected.dnge.plan and are_equal(small, expected)
        with pytest.raises(PlanError, match="made on other data; leave data out"):
            plan(model, scores=scores, data=batches(name, 1), **settings)


def test_scores_of_experts_are_saved_and_needed_where_they_may_go(tmp_path: Path) -> None:
    model = make("mixtral")
    kinds = {"kinds": ["expert", "neuron"], "ratio": 0.25}
    expected = compress(model, **OBS, **kinds)
    folder = score(model, **OBS, **kinds).save(tmp_path / "scores")
    assert are_equal(compress(model, scores=folder, **OBS, **kinds), expected)
    score(model, **OBS).save(folder)
    with pytest.raises(PlanError, match="without whole experts"):
        plan(model, scores=folder, **OBS, **kinds)


def test_scores_of_another_model_recipe_or_format_are_refused_in_one_line(tmp_path: Path) -> None:
    model: Any = models.make("llama")
    made = score(model, **OBS)
    folder = made.save(tmp_path / "scores")
    trained: Any = models.make("llama")
    with torch.no_grad():
        trained.lm_head.weight[0] += 1
    for scores in (made, folder):
        for words, other, settings in (
            ("with tokens 256, and the recipe says 128; write tokens=256", model, OBS | {"tokens": 128}),
            ("with seed 0, and the recipe says 1", model, OBS | {"seed": 1}),
            ("with scorer obs, and the recipe says encoder", model, FEW),
            ("with ridge 0.003, and the recipe says 0.1", model, OBS | {"ridge": 0.1}),
            ("for a model of the same shape with other weights", trained, OBS),
            ("for another model", models.make("bert"), OBS),
            ("made in float32, and this model is in float64", models.make("llama").double(), OBS),
            ("made on synthetic inputs; leave data out", model, OBS | {"data": batches("llama")}),
        ):
            with pytest.raises(PlanError, match=words) as error:
                plan(other, scores=scores, **settings)
            assert "\n" not in str(error.value) and ("score again" in str(error.value) or "another model" in words)
    header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    (folder / HEADER).write_text(json.dumps(header | {"dnge_scores": 0}), encoding="utf-8")
    with pytest.raises(PlanError, match="are of format 0, and this dnge reads 2"):
        plan(model, scores=folder, **OBS)


def test_scores_that_are_none_or_damaged_are_named(tmp_path: Path) -> None:
    model = models.make("llama")
    folder = score(model, **OBS).save(tmp_path / "scores")
    with pytest.raises(PlanError, match="is no folder; make them with `dnge score"):
        plan(model, scores=tmp_path / "none", **OBS)
    with pytest.raises(PlanError, match="scores are what score"):
        plan(model, scores=3, **OBS)  # type: ignore[arg-type]
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(PlanError, match="truncated or corrupt"):
            plan(model, scores=folder, **OBS)
        file.write_bytes(content)
    (folder / HEADER).write_text('{"dnge_scores": 1, "basis"', encoding="utf-8")
    with pytest.raises(PlanError, match="truncated or corrupt"):
        plan(model, scores=folder, **OBS)


def test_scores_take_no_place_that_holds_something_else(tmp_path: Path) -> None:
    scores = score(models.make("llama"), **OBS)
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(DngeError, match="something else than scores|is a file"):
            scores.save(place)
    assert scores.save(tmp_path / "scores") == scores.save(tmp_path / "scores")
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_scores_without_what_they_rest_on_are_planned_from_as_well() -> None:
    model = models.make("llama")
    made = score(model, **OBS)
    bare = Scores(units=made.units, scorer="mine", fingerprint=made.fingerprint)
    assert (
        isinstance(made, Scoring)
        and plan(model, ratio=0.2, scores=bare, **OBS).cuts == plan(model, ratio=0.2, **OBS).cuts
    )


def test_several_ratios_give_what_each_of_them_gives_from_one_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make("llama")
    before: dict[str, Tensor] = {k: v.clone() for k, v in model.state_dict().items()}
    alone = [compress(model, ratio=r, **OBS) for r in (0.1, 0.4, 0.2)]
    from dnge_compress.tasks import task

    scored, original = [], task.run_scorer
    monkeypatch.setattr(task, "run_scorer", lambda *a: scored.append(1) or original(*a))
    found = compress(model, ratio=[0.1, 0.4, 0.2], **OBS)
    assert len(scored) == 1 and [s.dnge.plan for s in found] == [s.dnge.plan for s in alone]
    assert all(are_equal(one, other) for one, other in zip(found, alone, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():  # no result shares memory with another
        next(iter(found[0].parameters())).add_(1)
    assert are_equal(found[1], alone[1])


def test_wrong_lists_of_ratios_are_refused() -> None:
    model = models.make("llama")
    with pytest.raises(RecipeError, match="a number, or a list of some"):
        compress(model, ratio=[], **OBS)
    with pytest.raises(RecipeError, match="a number, or a list of some"):
        compress(model, ratio=[0.1, "x"], **OBS)  # type: ignore[list-item]
    with pytest.raises(BudgetError, match="below 1"):
        compress(model, ratio=[0.1, 1.5], **OBS)
    with pytest.raises(RecipeError, match="leave one of both out"):
        compress(model, ratio=[0.1, 0.2], inplace=True, **OBS)
    with pytest.raises(BudgetError, match="can't be reached"):
        compress(model, ratio=[0.1, 0.99], **OBS)


def test_the_command_line_saves_scores_and_goes_on_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scores = str(tmp_path / "model"), str(tmp_path / "scores")
    models.make("llama").save_pretrained(model)  # type: ignore[operator]
    obs = ("--scorer", "obs", "--set", "tokens=256", "--set", "length=16")
    assert main(["score", model, "-o", scores, *obs]) == 0
    told = capsys.readouterr().err.splitlines()[-1].removeprefix("next       dnge ")
    assert main([*shlex.split(told), "-o", str(tmp_path / "told.json")]) == 0  # it holds what the scores were made with
    plans = [str(tmp_path / f"{name}.json") for name in ("with", "without")]
    for path, more in zip(plans, (("--scores", scores), ()), strict=True):
        assert main(["plan", model, "-o", path, "--ratio", "0.3", *obs, *more]) == 0
    assert Path(plans[0]).read_bytes() == Path(plans[1]).read_bytes()
    assert main(["apply", plans[0], model, "-o", str(tmp_path / "one"), "--scores", scores]) == 0
    assert main(["compress", model, "-o", str(tmp_path / "two"), "--ratio", "0.3", *obs, "--scores", scores]) == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    capsys.readouterr()
    for words, command in (
        ("with scorer obs, and the recipe says encoder", ["plan", model, "--scores", scores]),
        ("it is no folder", ["plan", model, "--scores", str(tmp_path / "none"), *obs]),
        ("holds something else than scores", ["score", model, "-o", model, *obs]),
    ):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert words in err and out == "" and err.count("dnge: error") == 1
