"""Examples that no fit sees: which they are, what damage on them says, and that nothing else looks at them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from dnge_compress import compress, curve, plan, score
from dnge_compress.core.errors import PlanError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import Cut
from dnge_compress.plans.expected import on_held_out
from dnge_compress.signals.comparison import Comparison, Damage
from dnge_compress.signals.divergence import divergence
from dnge_compress.signals.held_out import HELD_EVERY, LEAST_HELD, fitted_and_held_out
from dnge_compress.signals.inference import examples_in, has_logits
from dnge_compress.signals.side_by_side import SideBySide

MANY = HELD_EVERY * LEAST_HELD
OBS: dict[str, Any] = {"scorer": "obs", "example_inputs": torch.zeros(2, 9)}


def numbered(rows: int, size: int) -> list[Tensor]:
    """Batches of a number each."""
    return list(torch.arange(rows, dtype=torch.float32)[:, None].split(size))


def of_mlp(rows: int, seed: int = 0, size: int = 32) -> list[Tensor]:
    """Inputs of the tiny perceptron."""
    return list(torch.randn(rows, 9, generator=torch.Generator().manual_seed(seed)).split(size))


@pytest.mark.parametrize("size", [1, 3, 8, 32, MANY])
def test_every_eighth_is_held_out_whatever_the_batches(size: int) -> None:
    fitted, held = fitted_and_held_out(numbered(MANY, size))
    ours, theirs = (torch.cat(list(part)).flatten().tolist() for part in (fitted, held))
    assert theirs == list(range(7, MANY, 8)) and sorted(ours + theirs) == list(range(MANY))
    assert len(held) == 1  # together, so that a model runs once


def test_masked_texts_and_tuples_are_divided_with_all_they_hold() -> None:
    ids = torch.arange(2 * MANY).view(-1, 2)
    texts = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(16)]
    pairs = [(part, part[:, 0], torch.ones(1, 5)) for part in ids.split(16)]
    for batches in (texts, pairs):
        fitted, held = fitted_and_held_out(batches)  # type: ignore[arg-type]
        for batch in (*fitted, *held):
            tensors = list(batch.values()) if isinstance(batch, dict) else list(batch)
            rows = {len(t) for t in tensors if len(t) > 1}
            assert len(rows) == 1 and (isinstance(batch, dict) or torch.equal(tensors[0][:, 0], tensors[1]))
        assert sum(map(examples_in, held)) == LEAST_HELD


def test_what_has_no_row_for_every_example_keeps_its_batch_whole() -> None:
    graph = (torch.zeros(MANY * 2, 3), torch.zeros(2, 700))  # nodes and edges
    assert fitted_and_held_out([graph]) == ((graph,), ())


def test_few_examples_are_all_fitted_on() -> None:
    batches = numbered(MANY - 1, 32)
    fitted, held = fitted_and_held_out(batches)
    assert held == () and all(ours is theirs for ours, theirs in zip(fitted, batches, strict=True))


def test_a_batch_whose_examples_cannot_be_told_apart_stays_whole() -> None:
    pictured = {
        "pixel_values": torch.zeros(90, 4),
        "image_grid_thw": torch.ones(32, 3),
        "input_ids": torch.zeros(32, 5),
    }
    fitted, held = fitted_and_held_out([pictured, *numbered(2 * MANY, 32)])
    assert fitted[0] is pictured and sum(map(examples_in, held)) == 2 * LEAST_HELD


def test_the_error_is_that_of_a_mean_over_examples_of_unequal_length() -> None:
    model: Any = models.make("llama")
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, models.VOCABULARY, (40, 12), generator=generator)
    mask = (torch.arange(12) < torch.randint(2, 13, (40, 1), generator=generator)).long()
    space = models.graph_of("llama", model).of_kind("neuron")[0]
    applied = AppliedCuts(models.graph_of("llama", model), (Cut(space.name, tuple(range(space.units // 2))),))
    batches = [{"input_ids": ids[i : i + 16], "attention_mask": mask[i : i + 16]} for i in (0, 16, 32)]
    with torch.no_grad():
        small = MaskedModel(model, applied)
        found = Comparison(model, batches).damage(small)
        sums, labels = [], mask.sum(1).double()
        for i in range(40):
            row = {"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]}
            one, other = (m(**row).logits[mask[i : i + 1].bool()] for m in (model, small))
            sums.append(float(divergence(other, one, True)) * len(one))
    total = torch.tensor(sums, dtype=torch.float64)
    assert found.examples == 40 and found.nats == pytest.approx(float(total.sum() / labels.sum()), rel=1e-4)
    # The spread of the ratio over samples drawn anew.
    drawn = torch.randint(40, (4000, 40), generator=generator)
    spread = float((total[drawn].sum(1) / labels[drawn].sum(1)).std())
    assert found.error == pytest.approx(spread, rel=0.1)


def test_a_ratio_of_units_says_so_where_something_goes() -> None:
    told = "ratio 0.3 is a share of the units of every space; prune.of=parameters makes it one of the parameters"
    for recipe, ratio, wanted in (
        ("prune/neurons", 0.3, [told]),
        ("prune/neurons", 0.0, []),
        ("prune/default", 0.3, []),
    ):
        notes = plan(models.make("llama"), recipe, ratio=ratio, scorer="obs", tokens=256, length=16).notes
        assert [note for note in notes if "share of the units" in note] == wanted


@pytest.mark.parametrize("classes", [2, 5])
def test_damage_is_that_of_all_answers_however_they_are_batched(classes: int) -> None:
    """Two scores of one example often look like probabilities."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, classes))
    model.config = type("Config", (), {"num_labels": classes, "architectures": ["XForSequenceClassification"]})()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight += 0.05 * torch.randn(16, 9)
    inputs = torch.randn(256, 9)
    found = [Comparison(model, list(inputs.split(size))).damage(other) for size in (256, 8, 1)]
    assert all(f.nats == pytest.approx(found[0].nats, rel=1e-4) for f in found)
    assert all(f.error == pytest.approx(found[0].error, rel=1e-3) and f.examples == 256 for f in found)
    with torch.no_grad():
        ours, theirs = model(inputs), other(inputs)
    kinds = [float(divergence(theirs, ours, has_scores)) for has_scores in (False, True)]
    assert found[0].nats == pytest.approx(kinds[has_logits(model)], rel=1e-2)


def test_answers_that_never_differ_have_no_damage() -> None:
    model = models.make("mlp")
    with torch.no_grad():
        model[-1].weight.zero_()  # type: ignore[index, operator, union-attr]
    assert Comparison(model, of_mlp(64)).damage(model) == Damage(0.0, 0.0, 64)
    small: Any = compress(model, ratio=0.3, data=of_mlp(MANY), **OBS)
    assert small.dnge.plan.expected.nats == 0


def test_where_a_batch_counts_as_one_the_zoo_gives_the_band() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).squeeze(-1)

    torch.manual_seed(0)
    found = plan(Squeezed(), ratio=0.3, data=[torch.randn(256, 9)], **OBS)
    assert (
        found.expected is not None and found.expected.inputs == "your data" and found.expected.low < found.expected.high
    )


def test_a_model_that_answers_no_numbers_has_infinite_damage() -> None:
    model = models.make("mlp")
    comparison = Comparison(model, of_mlp(8))
    with torch.no_grad():
        broken = models.make("mlp")
        broken[0].weight.fill_(math.nan)  # type: ignore[index, operator, union-attr]
    assert comparison.damage(broken) == Damage(math.inf) and on_held_out(Damage(math.inf)) is None


def test_a_band_holds_what_other_examples_give_in_four_of_five_draws() -> None:
    inside, draws = 0, 400
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        seen = 0.2 * (0.5 * torch.randn(16, generator=generator, dtype=torch.float64)).exp()
        band = on_held_out(Damage(float(seen.mean()), float(seen.std() / 4), 16))
        assert band is not None and band.low < band.nats < band.high
        inside += band.low <= 0.2 * math.exp(0.125) <= band.high
    assert 0.72 < inside / draws < 0.85  # .77 of many draws: a few examples say little of a long tail


def test_no_damage_has_a_band_of_nothing_and_rounding_one_that_is_finite() -> None:
    nothing, rounding = on_held_out(Damage(0.0, 0.0, 32)), on_held_out(Damage(1e-12, 1e-3, 32))
    assert nothing is not None and (nothing.low, nothing.high) == (0.0, 0.0)
    assert rounding is not None and rounding.high < 1e-6


def test_no_fit_sees_what_is_held_out_and_the_plan_says_what_it_was_measured_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, fitted_on = list[Tensor](), list[Tensor]()
    run = SideBySide.run

    def repair(self: SideBySide, batches: Any) -> Any:
        fitted_on.extend(batch[:, 0] for batch in batches)
        return run(self, batches)

    monkeypatch.setattr(SideBySide, "run", repair)

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():  # moments and gradients; damage is measured without
            seen.append(args[0].detach()[:, 0])

    model, data = models.make("mlp"), of_mlp(MANY)
    model.register_forward_pre_hook(watch)
    found = plan(model, ratio=0.3, data=data, **OBS)
    held = torch.cat(data)[HELD_EVERY - 1 :: HELD_EVERY, 0]
    assert seen and not torch.isin(held, torch.cat(seen)).any()
    assert fitted_on and not torch.isin(held, torch.cat(fitted_on)).any()
    assert found.expected is not None and found.expected.inputs == "examples of yours that no fit has seen"
    assert "16 of 128 examples are held out from every fit, to measure damage on" in found.notes
    few = plan(models.make("mlp"), ratio=0.3, data=of_mlp(MANY - 8), **OBS)
    assert few.expected is not None and few.expected.inputs == "your data"


def test_damage_on_other_inputs_lies_about_where_the_plan_says() -> None:
    model, inside = models.roughened(models.make("mlp")), 0
    others = Comparison(model, of_mlp(4096, seed=99))
    for seed in range(10):
        small: Any = compress(model, "prune/neurons", ratio=0.4, data=of_mlp(2048, seed), **OBS)
        band = small.dnge.plan.expected
        inside += band.low <= others.damage(small).nats <= band.high
    assert inside >= 6


def test_scores_bring_what_was_held_out_along(tmp_path: Path) -> None:
    model, data = models.make("mlp"), of_mlp(MANY)
    wanted = plan(model, ratio=0.3, data=data, **OBS)
    scores = score(model, data=data, **OBS)
    for known in (scores, scores.save(tmp_path / "scores")):  # type: ignore[attr-defined]
        assert plan(model, ratio=0.3, scores=known, **OBS) == wanted
        assert plan(model, ratio=0.3, scores=known, data=data, **OBS) == wanted
        other = [batch.clone() for batch in data]
        other[0][HELD_EVERY - 1] += 1  # which is held out only
        with pytest.raises(PlanError, match="made on other data"):
            plan(model, ratio=0.3, scores=known, data=other, **OBS)


def test_a_curve_foresees_from_what_was_held_out() -> None:
    found = curve(models.make("mlp"), ratios=[0.2, 0.4], data=of_mlp(MANY), **OBS)
    assert all(p.expected is not None and p.expected.nats == pytest.approx(p.damage) for p in found.points)
