"""Attention heads of architectures without a family: every way in which a config can say fewer of them."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import AS_RECORDED
from tiny_architectures import ARCHITECTURES, inputs_of, main_output

import dnge_compress as dnge
from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.derivation.proof import choices
from dnge_compress.graph.derivation.readings import Counted
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import ModelGraph

RECURRENT_GEMMA = pytest.param("recurrent_gemma", marks=AS_RECORDED)


@pytest.mark.parametrize("name", ["diffllama", RECURRENT_GEMMA, "levit", "vit_mae", "t5_encoder", "funnel"])
def test_heads_that_went_are_those_that_were_masked(name: str, tmp_path: Path) -> None:
    tiny = ARCHITECTURES[name]
    model, inputs = tiny.build(), inputs_of(tiny.inputs)
    with torch.no_grad():
        dense = main_output(model(**inputs))
        small: Any = dnge.compress(
            model, ratio=0.3, of="units", kinds=["head"], tokens=128, length=16, scorer="obs", compensate="none"
        )
        dnge.save(small, tmp_path / "out")
        again = main_output(type(model).from_pretrained(tmp_path / "out")(**inputs))
        masked = main_output(MaskedModel(model, AppliedCuts(build_graph(model), small.dnge.plan.cuts))(**inputs))
    assert not small.dnge.plan.uneven
    assert float((again - masked).abs().max()) <= 1e-5 * float(masked.abs().max())
    assert float((masked - dense).abs().max()) > 1e-3 * float(dense.abs().max())


def units_of(graph: ModelGraph) -> dict[str, int]:
    return {
        f"{f.key}[{f.index}]" if f.index is not None else f.key: graph.space(f.spaces[0]).units for f in heads(graph)
    }


def heads(graph: ModelGraph) -> list[Any]:
    return [f for f in graph.config_fields if graph.space(f.spaces[0]).kind == "head"]


def test_heads_of_which_one_is_subtracted_from_another_go_in_pairs() -> None:
    graph = build_graph(ARCHITECTURES["diffllama"].build())
    slots = {s.param.split(".")[-2]: [] for s in graph.slots_of("heads.0")}
    for slot in graph.slots_of("heads.0"):
        slots[slot.param.split(".")[-2]].append((slot.width, slot.offset))
    assert slots == {"q_proj": [(12, 0), (12, 24)], "o_proj": [(24, 0)]}
    assert [(f.key, f.factor) for f in heads(graph)] == [("num_attention_heads", 2)]


@AS_RECORDED
def test_a_width_with_a_block_for_every_head_shrinks_with_them() -> None:
    graph = build_graph(ARCHITECTURES["recurrent_gemma"].build())
    assert {(f.key, f.factor) for f in heads(graph)} == {("num_attention_heads", 1), ("lru_width", 12)}
    gates = [s for s in graph.slots_of("heads.0") if s.param.endswith("input_gate_weight")]
    assert [(s.axis, s.width) for s in gates] == [(0, 1)]


def test_every_stage_has_heads_of_its_own() -> None:
    graph = build_graph(ARCHITECTURES["levit"].build())
    assert units_of(graph) == {f"num_attention_heads[{i}]": n for i, n in enumerate((2, 3, 4))}


def test_an_encoder_and_a_decoder_have_heads_of_their_own() -> None:
    graph = build_graph(ARCHITECTURES["vit_mae"].build())
    assert units_of(graph) == {"num_attention_heads": 4, "decoder_num_attention_heads": 2}


def test_blocks_that_share_a_position_bias_keep_the_same_heads() -> None:
    model = ARCHITECTURES["t5_encoder"].build()
    small = dnge.compress(model, ratio=0.3, of="units", kinds=["head"], tokens=128, length=16, scorer="obs")
    assert len(small.dnge.plan.cuts) == 1  # one choice for both blocks


@pytest.mark.parametrize("name", ["olmo2", "minimax", "bitnet"])
def test_heads_that_one_norm_runs_over_stay(name: str) -> None:
    with pytest.raises(BudgetError, match=r"heads stay: num_attention_heads: the rows of a unit in .* no order known"):
        dnge.compress(ARCHITECTURES[name].build(), kinds=["head"], tokens=128, length=16)


def test_every_space_and_group_of_a_proof_loses_units_of_its_own() -> None:
    counted = Counted(keys=((("n",), Fraction(1)),), units=8, rows={}, counts={}, explicit={}, groups=2)
    (drawn,) = choices(counted, 4, [1, 1, 1])  # two of four from each group can be chosen in six ways
    parts = {tuple(u % 4 for u in units if u // 4 == g) for units in drawn for g in (0, 1)}
    assert len(parts) == 6
    assert all(len(part) == 2 for part in parts)


def test_spaces_of_two_units_are_told_apart_by_several_choices() -> None:
    counted = Counted(keys=((("n",), Fraction(1)),), units=2, rows={}, counts={}, explicit={})
    drawn = list(choices(counted, 1, [1] * 4))
    assert len(drawn) > 1
    for i, j in itertools.combinations(range(4), 2):
        assert any(units[i] != units[j] for units in drawn)


def test_blocks_that_share_keys_and_values_keep_the_same_heads() -> None:
    graph = build_graph(ARCHITECTURES["gemma3n_text"].build())
    assert [s.units for s in graph.of_kind("head")] == [2]


@pytest.mark.parametrize("name", ["levit", RECURRENT_GEMMA])
def test_what_calls_left_on_modules_does_not_stand_in_the_way(name: str) -> None:
    model, inputs = ARCHITECTURES[name].build(), inputs_of(ARCHITECTURES[name].inputs)
    model(**inputs)  # LeViT keeps biases for inference, RecurrentGemma its last state, both with their history
    modes = {path: module.training for path, module in model.named_modules()}
    small: Any = dnge.compress(
        model, ratio=0.3, of="units", kinds=["head"], tokens=128, length=16, scorer="random", compensate="none"
    )
    masked = MaskedModel(model, AppliedCuts(build_graph(model), small.dnge.plan.cuts))
    with torch.no_grad():
        torch.testing.assert_close(main_output(small(**inputs)), main_output(masked(**inputs)), atol=1e-5, rtol=1e-5)
    assert {path: module.training for path, module in small.named_modules()} == modes


def test_a_norm_over_the_channels_of_heads_is_read_by_the_encoder() -> None:
    small = dnge.compress(ARCHITECTURES["levit"].build(), ratio=0.2, tokens=128)
    assert any(small.dnge.plan.cuts)
