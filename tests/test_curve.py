"""Curves: plans of several ratios from one scoring, measured; the knee; what table, plot and page say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import nn

from dnge_compress import compress, curve, plan, score
from dnge_compress.cli.grammar import UsageError, parser
from dnge_compress.cli.main import main
from dnge_compress.core.errors import BudgetError, RecipeError
from dnge_compress.report.curve import RatioCurve, RatioPoint, knee_of
from dnge_compress.report.terminal_plot import HEIGHT, KNEE, POINT, drawn
from dnge_compress.tasks.quality import apart, measure_of, quality_of

OBS: dict[str, Any] = {"tokens": 256, "length": 16, "scorer": "obs"}
RATIOS = (0.4, 0.1, 0.2)


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tiny Llama."""
    return models.make("llama")


@pytest.fixture(scope="module")
def found(llama: Any) -> RatioCurve:
    """Its curve, judged on other inputs."""
    return curve(llama, ratios=RATIOS, held_out=[models.example_inputs("llama")], **OBS)


def test_a_curve_holds_the_plans_of_its_ratios_in_order(found: RatioCurve, llama: Any) -> None:
    assert [p.ratio for p in found.points] == sorted(RATIOS)
    for point in found.points:
        alone = compress(llama, ratio=point.ratio, **OBS)
        assert point.params == alone.dnge.plan.params_after
        assert point.bytes == alone.dnge.report.totals.bytes[1] < found.bytes
        assert point.predicted_cost == alone.dnge.plan.predicted_cost
        one_shot = re.search(r"least squares ([^;]+)", " ".join(alone.dnge.plan.notes))
        assert one_shot is not None and f"{point.damage:.3g}" == one_shot[1]
        assert point.expected is not None and point.expected.low < point.expected.nats < point.expected.high
        assert point.speedup > 0 and point.speed_noise > 0
    damages = [p.damage for p in found.points]
    assert damages == sorted(damages) and damages[0] > 0


def test_a_curve_tells_what_the_whole_repair_leaves_at_its_knee(
    found: RatioCurve, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.knee == knee_of([(p.ratio, p.damage) for p in found.points])
    monkeypatch.setattr("dnge_compress.tasks.curve.knee_of", lambda points: 0.2)  # random models have none
    found = curve(llama, ratios=RATIOS, **OBS)
    assert found.knee == 0.2 and found.knee_damage is not None and f"{found.knee_damage:.3g} nats at 0.2" in str(found)
    notes = " ".join(plan(llama, ratio=0.2, **OBS).notes)
    ways = re.findall(r"(?:none|bias|least squares|side by side|joint fit) ([\d.e-]+)", notes.partition("in nats:")[2])
    assert min(map(float, ways)) == pytest.approx(found.knee_damage, rel=0.01)


def test_held_out_text_is_judged_by_perplexity(found: RatioCurve, llama: Any) -> None:
    inputs = models.example_inputs("llama")
    with torch.no_grad():
        loss = llama(**inputs, labels=inputs["input_ids"]).loss
    assert found.measure == "perplexity" and found.quality == pytest.approx(float(loss.exp()), rel=1e-4)
    assert all(p.quality is not None and p.quality > 1 for p in found.points)


def test_other_models_are_judged_by_accuracy_or_by_their_distance() -> None:
    model = models.make("bert")
    ids = models.example_inputs("bert")
    distant = curve(model, ratios=[0.2, 0.4], held_out=[ids], **OBS)
    assert distant.measure == "damage" and distant.quality is None
    assert 0 < distant.points[0].quality < distant.points[1].quality  # type: ignore[operator]
    images, vit = models.example_inputs("vit"), models.make("vit")
    classes = vit(**images).logits.argmax(-1)
    labelled = [{**images, "labels": classes}]
    judged = curve(vit, ratios=[0.2], held_out=labelled, **OBS)
    assert judged.measure == "accuracy" and judged.quality == 1.0 and judged.knee is None


def test_a_curve_from_scores_makes_no_pass_and_leaves_the_model_alone(
    llama: Any, found: RatioCurve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = score(llama, **OBS).save(tmp_path / "scores")
    for what in ("scorers.calibration_inputs", "scorers.gather_signals", "tasks.task.run_scorer"):
        monkeypatch.setattr(f"dnge_compress.{what}", lambda *a: pytest.fail("something was made again"))
    before = {k: v.clone() for k, v in llama.state_dict().items()}
    again = curve(llama, ratios=RATIOS, scores=folder, **OBS)
    assert [p.damage for p in again.points] == [p.damage for p in found.points] and again.measure == ""
    assert all(torch.equal(v, before[k]) for k, v in llama.state_dict().items())
    assert not hasattr(llama, "dnge")


def test_a_curve_without_repair_is_measured_without() -> None:
    made = curve(models.make("llama"), ratios=[0.1, 0.3, 0.5], compensate="none", **OBS)
    assert made.knee_damage is None and all(p.damage > 0 for p in made.points)


def test_ratios_out_of_reach_or_none_are_refused(llama: Any) -> None:
    with pytest.raises(BudgetError, match="ratio 0.99 can't be reached"):
        curve(llama, ratios=[0.1, 0.99], **OBS)
    with pytest.raises(BudgetError, match="below 1"):
        curve(llama, ratios=[0.1, 1.0], **OBS)
    for ratios in ([], [0]):
        with pytest.raises(RecipeError, match="needs a ratio above 0"):
            curve(llama, ratios=ratios, **OBS)


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([(0.1, 0.01), (0.2, 0.02), (0.3, 0.2)], 0.2),
        ([(0.1, 0.003), (0.2, 0.012), (0.3, 0.037), (0.4, 0.1), (0.5, 0.3), (0.6, 1.0)], 0.4),
        ([(0.1, 0.1), (0.2, 0.2)], None),  # a straight line
        ([(0.1, 0.2), (0.2, 0.25)], None),  # it grows ever more slowly
        ([(0.1, 0.2)], None),
        ([(0.1, 0.0), (0.2, 0.0)], None),
    ],
)
def test_the_knee_is_where_damage_begins_to_grow(points: list[tuple[float, float]], knee: float | None) -> None:
    assert knee_of(points) == knee


def made_up(*damages: float) -> RatioCurve:
    """A curve of these damages at ratios of 0.1, 0.2, …."""
    points = tuple(
        RatioPoint(
            ratio=(i + 1) / 10,
            params=10**9 - 10**8 * i,
            bytes=2 * 10**9,
            predicted_cost=0.1,
            expected=None,
            damage=damage,
            quality=None,
            speedup=1.0 + 0.1 * i,
            speed_noise=0.02,
        )
        for i, damage in enumerate(damages)
    )
    knee = knee_of([(p.ratio, p.damage) for p in points])
    return RatioCurve(points=points, params=10**9, bytes=2 * 10**9, knee=knee, model_name="a <b>", scorer="obs")


def test_table_plot_and_page_mark_the_knee() -> None:
    for made in (made_up(0.01, 0.02, 0.4), made_up(0.01, 0.02, 0.4, 0.5)):
        text, html = str(made), made.to_html()
        assert (
            f"{made.knee:g} knee" in text and text.count(KNEE) == 1 and text.count(POINT) == len(made.points)
        )  # and (0, 0)
        assert html.count("<svg") == 2 and f"the upright line marks {made.knee:g}" in html
        assert "<script" not in html and "<b>" not in html.partition("<h1>")[2].partition("</h1>")[0]
        assert json.loads(json.dumps(made.to_dict()))["knee"] == made.knee


def test_no_speed_is_shown_that_is_under_the_noise_named_below() -> None:
    made = made_up(0.01, 0.02, 0.4)  # as fast, 1.1 and 1.2 times as fast
    assert "1.10×" in str(made)
    noisy = replace(made, points=(*made.points[:2], replace(made.points[2], speed_noise=0.15)))
    text = str(noisy)
    assert "differences under 15.0 % are noise" in " ".join(text.split()) and "1.10×" not in text and "1.20×" in text


def test_a_curve_of_one_point_or_of_infinite_damage_has_no_line_over_ratios() -> None:
    for made, plots in ((made_up(0.1), 1), (made_up(math.inf, math.inf), 0)):
        assert made.to_html().count("<svg") == plots and POINT not in str(made) and "ratio" in str(made)


def front_of(page: str) -> str:
    """The plot of size and quality in a page."""
    return page.partition("<h2>Size and quality</h2>")[2].partition("</section>")[0]


def test_a_page_plots_size_against_damage_with_the_original_and_the_knee() -> None:
    drawn = front_of(made_up(0.01, 0.02, 0.4).to_html())
    assert "<title>ratio 0.2: 900 M parameters, damage 0.02</title>" in drawn
    assert "<title>original: 1.00 G parameters, damage 0</title>" in drawn
    assert re.findall(r'aria-hidden="true">([^<]+)</span>', drawn) == ["0.1", "0.2, knee", "0.3", "original"]
    assert 'role="img"' in drawn and "lower is better" in drawn
    # x: 800 M to 1 G parameters, y: damage from 0 at the bottom to 0.4 at the top
    assert 'd="M0.0 0.0L500.0 950.0L1000.0 1000.0"' in drawn  # the first has as many parameters as the original


def test_held_out_quality_takes_the_place_of_damage_and_what_a_smaller_model_beats_stands_off_the_line() -> None:
    made = made_up(0.01, 0.02, 0.4)
    points = tuple(replace(p, quality=q) for p, q in zip(made.points, (0.7, 0.8, 0.6), strict=True))
    judged = front_of(replace(made, points=points, measure="accuracy", quality=0.9).to_html())
    assert "<title>ratio 0.2: 900 M parameters, accuracy 80.0 %</title>" in judged and "higher is better" in judged
    off = re.findall(r"<title>([^:]+):[^<]+</title><path d=\"[^\"]+\" class=\"point series-1\"", judged)
    assert off == ["ratio 0.1"]
    nothing = replace(made, points=tuple(replace(p, quality=math.nan) for p in points), measure="perplexity")
    assert front_of(nothing.to_html()) == ""


def test_letters_stand_where_the_numbers_are() -> None:
    lines = drawn([(0.0, 0.0), (0.5, 1.0), (1.0, 4.0)], 0.5)
    rows = {line.split("│")[0].strip(): i for i, line in enumerate(lines) if "│" in line}
    assert rows["4"] == 0 and rows["0"] == HEIGHT
    assert lines[0].rstrip().endswith(POINT) and lines[rows["1"]].count(KNEE) == 1
    column = lines[rows["1"]].index(KNEE)
    assert lines[-1].index("0.4") < column < lines[-1].index("0.6")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (".1:.6:.1", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
        ("0.2:0.3:0.04", (0.2, 0.24, 0.28)),
        (".1,.25", (0.1, 0.25)),
        (".3", (0.3,)),
    ],
)
def test_ratios_are_a_stretch_or_a_list(text: str, wanted: tuple[float, ...]) -> None:
    assert parser().parse_args(["curve", "MODEL", "--ratios", text]).ratios == wanted


@pytest.mark.parametrize("text", ["", "a", ".1:.5", ".5:.1:.1", ".1:.5:0", ".1:.5:-1", ".1:.5:.001", "nan:nan:nan"])
def test_other_ratios_are_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="FIRST:LAST:STEP"):
        parser().parse_args(["curve", "MODEL", "--ratios", text])


def test_the_command_line_draws_a_curve_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, page = str(tmp_path / "model"), tmp_path / "curve.html"
    models.make("llama").save_pretrained(model)  # type: ignore[operator]
    command = ["curve", model, "--scorer", "obs", "--set", "tokens=256", "--set", "length=16", "-o", str(page)]
    assert main([*command, "--ratios", ".1,.3,.5"]) == 0
    assert POINT in capsys.readouterr().out and page.read_text(encoding="utf-8").startswith("<!doctype html>")
    for code, words, options in (
        (2, "exists; name another file", []),
        (3, "must be at least 0 and below 1", ["--force", "--ratios", ".5:1.5:.5"]),
        (3, "ratio 0.97 can't be reached", ["--force", "--ratios", ".1,.97"]),
        (2, "doesn't exist", ["--force", "--held-out", "none.txt"]),
    ):
        assert main([*command, *options]) == code
        out, err = capsys.readouterr()
        assert out == "" and words in err and err.count("dnge: error") == 1
    assert main([*command, "--force", "--json", "--ratios", ".2"]) == 0
    assert [p["ratio"] for p in json.loads(capsys.readouterr().out)["points"]] == [0.2]


def test_two_models_agree_with_themselves_and_less_with_others() -> None:
    model, other = models.make("llama"), models.make("llama")
    with torch.no_grad():
        other.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, operator]
    ids = [models.example_inputs("llama")]
    same, apart_ = apart(model, model, ids), apart(model, other, ids)
    assert same.agreement == 1 and same.damage == pytest.approx(0, abs=1e-6) and same.qualities[0] == same.qualities[1]
    assert apart_.agreement < 0.5 and apart_.damage > 0.1 and not apart_.is_cosine
    assert apart_.qualities[1] == pytest.approx(quality_of(other, ids))


def test_padding_counts_for_nothing() -> None:
    model: Any = models.make("llama")
    ids = models.example_inputs("llama")["input_ids"]
    padded = torch.cat([ids, torch.zeros_like(ids[:, :4])], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids[:, :4])], 1)
    whole = quality_of(model, [{"input_ids": ids}])
    assert quality_of(model, [{"input_ids": padded, "attention_mask": mask}]) == pytest.approx(whole, rel=1e-5)


def test_a_module_without_scores_is_compared_by_its_direction() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid())
    inputs = [torch.randn(5, 4)]
    assert measure_of(model, inputs) == ""
    found = apart(model, model, inputs)
    assert found.is_cosine and found.agreement == pytest.approx(1) and found.qualities == (None, None)
