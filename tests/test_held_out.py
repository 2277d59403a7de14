"""Examples that no fit sees: which they are, what damage on them says, and that nothing else looks at them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from dnge_compress import compress, curve, plan, score
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import Cut
from dnge_compress.plans.expected import on_held_out
from dnge_compress.signals.comparison import Comparison, Damage
from dnge_compress.signals.divergence import divergence
from dnge_compress.signals.held_out import HELD_EVERY, LEAST_HELD, fitted_and_held_out
from dnge_compress.signals.inference import examples_in

MANY = HELD_EVERY * LEAST_HELD
OBS: dict[str, Any] = {"scorer": "obs", "example_inputs": torch.zeros(2, 9)}


def numbered(rows: int, size: int) -> list[Tensor]:
    """Batches of a number each."""
    return list(torch.arange(rows, dtype=torch.float32)[:, None].split(size))


def of_mlp(rows: int, seed: int = 0, size: int = 32) -> list[Tensor]:
    """Inputs of the tiny perceptron."""
    return list(torch.randn(rows, 9, generator=torch.Generator().manual_seed(seed)).split(size))


@pytest.mark.parametrize("size", [1, 3, 8, 32, MANY])
def test_an_eighth_is_held_out_whatever_the_batches_and_all_is_on_one_side(size: int) -> None:
    fitted, held = fitted_and_held_out(numbered(MANY, size))
    ours, theirs = (torch.cat(list(part)).flatten().tolist() for part in (fitted, held))
    assert len(theirs) == LEAST_HELD and sorted(ours + theirs) == list(range(MANY))
    if size == 8:
        assert theirs == list(range(7, MANY, 8))


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
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():  # moments and gradients; damage is measured without
            seen.append(args[0].detach()[:, 0])

    model, data = models.make("mlp"), of_mlp(MANY)
    model.register_forward_pre_hook(watch)
    found = plan(model, ratio=0.3, data=data, **OBS)
    held = torch.cat([batch[-4:, 0] for batch in data])
    assert seen and not torch.isin(held, torch.cat(seen)).any()
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


def test_a_curve_foresees_from_what_was_held_out() -> None:
    found = curve(models.make("mlp"), ratios=[0.2, 0.4], data=of_mlp(MANY), **OBS)
    assert all(p.expected is not None and p.expected.nats == pytest.approx(p.damage) for p in found.points)
