"""Reports: that the numbers are the models', and that the tables stay readable."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, MODELS, PLAIN, example_inputs, graph_of, make
from torch import nn

from dnge_compress.core.errors import CheckpointError, PlanError
from dnge_compress.core.terminal import Drawn, plain
from dnge_compress.core.wording import count, counts
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut, ModelGraph, Scores, Space
from dnge_compress.plans.expected import BANDS, Expected, expected
from dnge_compress.plans.planner import counted
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.sensitivity import Sensitivity, sensitivities
from dnge_compress.plans.space_rows import MAX_LINES, SpaceRow, alike, rows_of, spaces_table
from dnge_compress.recipes.schema import Prune
from dnge_compress.report.report import Report, build_report
from dnge_compress.report.sensitivity_map import sensitivity_section
from dnge_compress.report.sizes import Totals, macs_of, measure
from dnge_compress.surgery.cut import cut


def shapes_in(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("width", [60, 80])
def test_nothing_is_cut_in_a_narrow_terminal(width: int) -> None:
    rows = [
        SpaceRow(
            space=f"{kind}.{i}",
            kind=kind,
            layer=i,
            kept=11008 - 1024 * i,
            total=11008,
            params_before=3 * 10**9,
            params_after=10**9,
            cost=0.00012 * (i + 1),
        )
        for kind in ("neuron", "channel")
        for i in range(6)
    ]
    table = spaces_table(rows)
    text = plain(Drawn(table), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    squeezed = "".join(text.split())
    for row in table.rows:
        assert all("".join(cell.text.split()) in squeezed for cell in row[1:])
    assert {"neurons", "channels", "layers"} <= set(text.split())  # no word is broken
    assert "".join(table.caption.split()) in squeezed


def plan_of(graph: ModelGraph, *cuts: Cut) -> PrunePlan:
    """A plan made by hand."""
    costs = {c.space: 0.01 * (i + 1) for i, c in enumerate(cuts)}
    recipe = {"name": "prune/default", "scorer": "obs"}
    return PrunePlan(
        cuts=cuts,
        base=graph.fingerprint,
        weights="-",
        recipe=recipe,
        predicted_cost=0.5,
        notes=("a note",),
        costs=costs,
    )


def report_of(name: str, *kinds: str) -> Report:
    """The report of a tiny model that lost about a third of its units of some kinds."""
    model, inputs = make(name), example_inputs(name)
    graph = graph_of(name, model)
    cuts = tuple(Cut(s.name, tuple(range(max(1, s.units * 2 // 3)))) for s in graph.of_kind(*kinds) if s.units > 1)
    small = copy.deepcopy(model)
    cut(small, AppliedCuts(graph, tuple(cuts)))
    timings = {"plan": 1.25, "score": 0.5}
    plan = counted(plan_of(graph, *cuts), AppliedCuts(graph, cuts), model)
    return build_report(plan, graph, before=model, after=small, inputs=inputs, timings=timings)


def made_up(layers: int, widths: int) -> Report:
    """A report of a large model whose layers kept `widths` different numbers of neurons and heads."""
    rows = [
        SpaceRow(
            space=f"{kind}.{i}",
            kind=kind,
            layer=i,
            kept=total - total // 64 * (i % widths),
            total=total,
            params_before=10**8,
            params_after=9 * 10**7,
            cost=0.001 * (i + 1),
        )
        for kind, total in (("neuron", 11008), ("head", 64))
        for i in range(layers)
    ]
    rows.append(
        SpaceRow(
            space="layers",
            kind="layer",
            layer=None,
            kept=layers,
            total=layers,
            params_before=10**10,
            params_after=9 * 10**9,
            cost=0.0,
        )
    )
    totals = Totals(
        params=(7 * 10**9, 6 * 10**9),
        non_embedding_params=(65 * 10**8, 55 * 10**8),
        macs=(10**12, 9 * 10**11),
        bytes=(14 * 10**9, 12 * 10**9),
    )
    return Report(
        rows=tuple(rows),
        totals=totals,
        timings={"score": 1.0},
        notes=("n",) * 40,
        scorer="encoder",
        recipe_name="prune/default",
        model_name="large",
        predicted_cost=1.5,
    )


def parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def cuttable(graph: ModelGraph) -> list[Space]:
    """Spaces that can lose their last unit."""
    spaces = graph.of_kind("neuron", "head", "channel", "layer")
    return [s for s in spaces if s.units > 1 and s.units - 1 not in s.protected]


@pytest.mark.parametrize("name", MODELS)
def test_the_row_of_a_single_cut_is_what_the_model_really_lost(name: str) -> None:
    base = make(name)
    graph = graph_of(name, base)
    shapes = shapes_in(base)
    for space in cuttable(graph):
        model = copy.deepcopy(base)
        cuts = (Cut(space.name, tuple(range(space.units - 1))),)
        cut(model, AppliedCuts(graph, tuple(cuts)))
        row = next(r for r in rows_of(AppliedCuts(graph, tuple(cuts)), {}, shapes) if r.space == space.name)
        assert (row.kept, row.total) == (space.units - 1, space.units)
        assert row.params_before - row.params_after == parameters(base) - parameters(model) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_totals_count_unique_parameters_and_bytes(name: str) -> None:
    model = make(name)
    size = measure(model, graph_of(name, model))
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.numel()}
    assert size.params == parameters(model)
    assert size.bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert 0 < size.non_embedding_params <= size.params


def test_tied_embeddings_are_counted_once_and_not_as_work_of_the_blocks() -> None:
    model: Any = make("llama")
    size = measure(model, graph_of("llama", model))
    assert size.params - size.non_embedding_params == model.model.embed_tokens.weight.numel()


def test_multiply_accumulates_of_an_mlp_are_its_weights() -> None:
    model = make("mlp")
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert macs_of(model, example_inputs("mlp")) == weights


def test_multiply_accumulates_include_attention() -> None:
    model: Any = make("llama")
    inputs = example_inputs("llama")
    (_, length), config = inputs["input_ids"].shape, model.config
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) * length
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length**2
    # Some versions of transformers multiply out their rotary tables; those products are counted, and are few.
    assert linear + attention <= macs_of(model, inputs) < 1.001 * (linear + attention)


@pytest.mark.parametrize("name", (*FAMILIES, *PLAIN))
def test_measuring_leaves_the_model_as_it_was(name: str) -> None:
    model = make(name).train()
    state = copy.deepcopy(model.state_dict())
    measure(model, graph_of(name, model), example_inputs(name))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ("llama", "gpt2", "vit", "resnet_basic", "cnn"))
def test_a_cut_shows_in_every_total(name: str) -> None:
    totals = report_of(name, "neuron", "channel").totals
    for before, after in (totals.params, totals.non_embedding_params, totals.macs, totals.bytes):
        assert 0 < after < before


def test_spaces_of_a_dropped_layer_keep_nothing_and_have_no_line() -> None:
    model = make("llama")
    graph = graph_of("llama", model)
    rows = rows_of(AppliedCuts(graph, (Cut("layers", (0, 2)),)), {}, shapes_in(model))
    gone = {r.space for r in rows if r.kept == 0}
    assert gone == {"ffn.1", "heads.1"}
    assert [(group[0].kind, where) for where, group in alike(rows)] == [
        ("neuron", "0, 2"),
        ("head", "0, 2"),
        ("layer", "without 1"),
    ]


def test_layers_that_came_out_alike_share_a_line() -> None:
    rows = made_up(layers=32, widths=1).rows
    shown = [(group[0].kind, where) for where, group in alike(rows)]
    assert shown == [("neuron", "0–31"), ("head", "0–31"), ("layer", "all")]
    neurons = [cell.text for cell in spaces_table(rows).rows[0]]
    assert neurons[-2:] == ["3.20 G → 2.88 G", "0.001–0.032"]


@pytest.mark.parametrize("layers", [32, 100])
def test_a_large_uneven_model_stays_readable(layers: int) -> None:
    report = made_up(layers, widths=29)
    shown = alike(report.rows)
    assert len(shown) <= MAX_LINES
    assert len(plain(report, 80).splitlines()) <= MAX_LINES + 20
    assert sum(len(group) for _, group in shown) == len(report.rows)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("widths", [1, 2, 29])
def test_nothing_is_cut_off_at_common_widths(width: int, widths: int) -> None:
    text = plain(made_up(32, widths), width)
    assert max(map(len, text.splitlines())) <= width
    assert not any(line.rstrip().endswith("…") for line in text.splitlines())
    for word in ("neurons", "heads", "layers", "11,008", "without embeddings", "multiply-accumulates", "saved"):
        assert word in text


def test_printing_a_report_draws_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of("llama", "neuron", "head")
    print(report)
    text = capsys.readouterr().out
    assert "LlamaForCausalLM" in text and "prune/default · scorer obs · predicted cost 0.5" in text
    assert "26 / 40" in text and "1 / 2" in text and "a note" in text and "plan 1.2 s" in text
    assert "\x1b" not in text


def test_a_report_leads_with_the_expected_damage_and_its_band(capsys: pytest.CaptureFixture[str]) -> None:
    found = expected(0.1, "sampled")
    assert found is not None and found.low < found.nats < found.high
    print(replace(report_of("llama", "neuron"), expected=found))
    text = capsys.readouterr().out
    assert f"expected damage {found.nats:.2g} nats ({found.low:.2g} to {found.high:.2g}) · prune/default" in text
    assert "predicted cost 0.5" not in text
    assert expected(math.inf, "sampled") is None


@pytest.mark.parametrize("edges", [(math.nan, 0.1, 0.2), (0.1, 0.2, 0.05), (-0.1, -0.2, 0.1), (0.1, 0.0, math.inf)])
def test_what_is_no_band_is_refused(edges: tuple[float, float, float]) -> None:
    with pytest.raises(PlanError, match="are no band"):
        Expected(nats=edges[0], low=edges[1], high=edges[2], inputs="your data")


def test_the_bands_are_those_that_the_zoo_gave() -> None:
    file = Path(__file__).parents[1] / "benchmarks" / "results" / "expected_damage.json"
    rows = json.loads(file.read_text())
    for kind, band in BANDS.items():
        off = torch.tensor([r["real"] - r["measured"] for r in rows if r["kind"] == kind and r["real"] > -20])
        assert len(off) > 30
        assert torch.quantile(off, torch.tensor([0.5, 0.1, 0.9])).tolist() == pytest.approx(band, abs=0.006)


def test_markdown_holds_both_tables_and_the_notes() -> None:
    text = report_of("llama", "neuron").to_markdown()
    assert "| neurons | 0–2 | 26 / 40 |" in text and "| parameters |" in text and "- a note" in text


def test_a_report_survives_json() -> None:
    report = report_of("resnet_basic", "channel")
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({}, "report: 'rows' is missing"),
        ({"rows": 3, "totals": {}}, "report.rows should be a list, not 3"),
        ({"rows": [{"x": 1}], "totals": {}}, r"report.rows\[0\]: unknown key 'x'"),
        ({"rows": [], "totals": {"a": [1]}}, "report.totals: unknown key 'a'"),
    ],
)
def test_a_malformed_report_is_refused_in_one_line(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        Report.from_dict(raw)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (22_713_216, "22.7 M"), (999_600, "1.00 M"), (5e15, "5,000 T")],
)
def test_counts_have_three_digits_and_a_prefix(number: float, text: str) -> None:
    assert count(number) == text


def test_numbers_that_three_digits_do_not_tell_apart_are_written_in_full() -> None:
    assert counts([1e6, 2e6]) == ["1.00 M", "2.00 M"]
    assert counts([1_000_000, 1_000_500]) == ["1,000,000", "1,000,500"]


def scores_of(graph: ModelGraph) -> Scores:
    """Scores of 1, 2, 3, … in every space, those of layers ten times as high."""
    units = {s.name: torch.arange(1.0, s.units + 1) * (10 if s.kind == "layer" else 1) for s in cuttable(graph)}
    return Scores(units=units, scorer="obs", fingerprint=graph.fingerprint)


def test_the_sensitivity_is_the_sum_of_the_cheapest_scores_of_every_space_alone() -> None:
    graph = graph_of("llama", make("llama"))
    found = sensitivities(graph, scores_of(graph), Prune(ratio=0.3, kinds=("neuron", "layer")))
    neurons = [s for s in found if s.kind == "neuron"]
    assert [(s.space, s.layer, s.gone, s.total) for s in neurons] == [(f"ffn.{i}", i, 12, 40) for i in range(3)]
    assert {s.cost for s in neurons} == {sum(range(1, 13))}
    assert [(s.layer, s.gone, s.cost) for s in found if s.kind == "layer"] == [(0, 1, 10.0), (1, 1, 20.0), (2, 1, 30.0)]
    assert not any(s.kind == "head" for s in found)  # which the recipe doesn't let go


def test_what_may_not_go_has_no_sensitivity_and_a_tiny_ratio_takes_one_unit() -> None:
    graph = graph_of("llama", make("llama"))
    kept = Prune(ratio=0.001, kinds=("neuron", "layer"), protected=("model.layers.1*",), uneven=True)
    found = sensitivities(graph, scores_of(graph), kept)
    assert {(s.kind, s.layer) for s in found} == {("neuron", 0), ("neuron", 2), ("layer", 0), ("layer", 2)}
    assert all(s.gone == 1 for s in found)
    resnet = graph_of("resnet_basic", make("resnet_basic"))
    blocks = [s for s in sensitivities(resnet, scores_of(resnet), Prune(kinds=("layer",))) if s.kind == "layer"]
    assert [(s.space, s.layer) for s in blocks] == [("layers.0", 0), ("layers.1", 1)]  # a stage each


def sensitive(layers: int, *stacks: str) -> tuple[Sensitivity, ...]:
    """Costs that grow tenfold from layer to layer."""
    return tuple(
        Sensitivity(space=f"{s}ffn.{i}", kind="neuron", layer=i, gone=3, total=9, cost=10.0**i, stack=s.rstrip("."))
        for s in stacks or ("",)
        for i in range(layers)
    )


def test_a_page_shows_the_sensitivity_as_a_map_and_as_a_table() -> None:
    report = replace(made_up(3, 1), sensitivity=sensitive(3))
    html = report.to_html()
    shown = html.partition("<h2>Sensitivity</h2>")[2].partition("</section>")[0]
    strengths = [float(s) for s in re.findall(r'fill-opacity="([\d.]+)"', shown)]
    assert strengths == pytest.approx([0.12, 0.56, 1.0])  # a shade for each power of ten
    assert "<title>layer 1, ffn.1: 10 for 3 of 9 neurons</title>" in shown
    assert "From layer 0, ffn.0: 1 for 3 of 9 neurons to layer 2, ffn.2: 100" in shown and 'role="img"' in shown
    assert "<summary>All predicted costs</summary>" in shown and "<span>1e+02</span>" in shown
    assert "Sensitivity" not in report.to_markdown() and "cheapest units" not in str(report)
    assert "Sensitivity" not in made_up(3, 1).to_html()


def test_no_cell_is_fainter_than_the_faintest() -> None:
    of_a_layer = Sensitivity(space="a", kind="neuron", layer=0, gone=1, total=4, cost=0.0)
    costs = (
        of_a_layer,
        replace(of_a_layer, cost=1.0),
        replace(of_a_layer, layer=1, cost=1.1),
    )  # a mean of 0.5, and 1.1
    html = replace(made_up(3, 1), sensitivity=costs).to_html()
    assert re.findall(r'fill-opacity="([^"]+)"', html.partition("<h2>Sensitivity</h2>")[2]) == ["0.12", "1"]


def test_stacks_have_rows_of_their_own_and_spaces_without_a_layer_stand_in_order() -> None:
    section = sensitivity_section(sensitive(2, "encoder.", "decoder."))
    assert section is not None
    assert [row[0].text for row in section.blocks[0].rows] == ["decoder neurons", "encoder neurons"]  # type: ignore[union-attr]
    loose = [replace(s, layer=None, cost=0.0) for s in sensitive(3)]
    drawn = replace(made_up(1, 1), sensitivity=tuple(loose)).to_html().partition("<h2>Sensitivity</h2>")[2]
    assert drawn.count('<rect class="none"') == 3 and "strip-axis" not in drawn and "order of the network" in drawn


@pytest.mark.parametrize(("layers", "numbered"), [(6, True), (14, True), (15, False), (200, False)])
def test_numbers_stand_in_cells_where_there_is_room(layers: int, numbered: bool) -> None:
    costs = [replace(s, cost=0.00123) for s in sensitive(1)] + [replace(s, cost=0.00456) for s in sensitive(layers)[1:]]
    drawn = replace(made_up(1, 1), sensitivity=tuple(costs)).to_html()
    assert ("<span>0.0012</span>" in drawn) == numbered
