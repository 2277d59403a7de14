"""Whole experts, however an architecture holds them: stacked, below each other in one matrix, or as modules."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import AS_RECORDED
from tiny_architectures import ARCHITECTURES, inputs_of, main_output
from transformers import MixtralConfig, MixtralForCausalLM

import dnge_compress as dnge
from dnge_compress.core.errors import ExactnessError, UnsupportedModelError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.derivation.architecture import outline_of
from dnge_compress.graph.derivation.experts import renamed_modules
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.products import products_watched
from dnge_compress.graph.types import Cut, Space
from dnge_compress.signals.experts import expert_costs
from dnge_compress.signals.inference import call
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.exactness import check, relative_difference
from dnge_compress.surgery.routes import ChosenRoutes, FollowedRoutes

DBRX = pytest.param("dbrx", marks=AS_RECORDED)
KEYS = {"switch_transformers": "num_experts", "dbrx": "ffn_config.moe_num_experts", "deepseek_v3": "n_routed_experts"}


def said(model: Any, key: str) -> int:
    config: Any = model.config
    for name in key.split("."):
        config = getattr(config, name)
    return int(config)


@pytest.mark.parametrize(
    ("name", "key"), [pytest.param(n, key, marks=AS_RECORDED if n == "dbrx" else ()) for n, key in KEYS.items()]
)
def test_experts_that_went_are_those_that_were_masked(name: str, key: str, tmp_path: Path) -> None:
    tiny = ARCHITECTURES[name]
    model, inputs = tiny.build(), inputs_of(tiny.inputs)
    small: Any = dnge.compress(
        model, ratio=0.3, of="units", kinds=["expert"], tokens=128, length=16, scorer="obs", compensate="none"
    )
    assert said(small, key) < said(model, key)
    assert not small.dnge.plan.uneven
    dnge.save(small, tmp_path / "out")
    with torch.no_grad():
        again = main_output(type(model).from_pretrained(tmp_path / "out")(**inputs))
        masked = main_output(MaskedModel(model, AppliedCuts(build_graph(model), small.dnge.plan.cuts))(**inputs))
        dense = main_output(model(**inputs))
    assert float((again - masked).abs().max()) <= 1e-5 * float(masked.abs().max())
    assert float((masked - dense).abs().max()) > 1e-3 * float(dense.abs().max())
    report = small.dnge.report
    assert small.dnge.plan.params_after == sum(p.numel() for p in small.parameters())
    assert sum(r.params_after for r in report.rows if r.kind == "expert") < sum(
        r.params_before for r in report.rows if r.kind == "expert"
    )


def test_experts_with_modules_of_their_own_leave_and_move_up() -> None:
    model: Any = ARCHITECTURES["switch_transformers"].build()
    graph = build_graph(model)
    space = next(s for s in graph.of_kind("expert") if s.modules[0].startswith("encoder"))
    others = [s for s in graph.of_kind("expert") if s != space]
    path = space.modules[0].rpartition(".")[0]
    before = {f"expert_{i}": model.get_submodule(f"{path}.expert_{i}").wi.weight.clone() for i in range(4)}
    keeps = [Cut(space.name, (1, 3)), *(Cut(s.name, (0, 2)) for s in others)]
    cut(model, AppliedCuts(graph, tuple(keeps)))
    experts = model.get_submodule(path)
    assert list(experts) == ["expert_0", "expert_1"]
    torch.testing.assert_close(experts["expert_0"].wi.weight, before["expert_1"])
    torch.testing.assert_close(experts["expert_1"].wi.weight, before["expert_3"])
    anew = outline_of(type(model)(model.config))
    assert {k: v for k, v in outline_of(model).counts.items() if anew.counts.get(k, v) != v} == {}
    assert outline_of(model).shapes == anew.shapes


def test_experts_blocks_and_neurons_go_together(tmp_path: Path) -> None:
    tiny = ARCHITECTURES["switch_transformers"]
    model, inputs = tiny.build(), inputs_of(tiny.inputs)
    graph = build_graph(model)
    experts = graph.of_kind("expert")
    cuts = [Cut(s.name, (1, 2, 3)) for s in experts]
    inside = {f"{s.modules[0]}." for s in experts}
    neurons = [s for s in graph.of_kind("neuron") if not graph.slots_of(s.name)[0].param.startswith(tuple(inside))]
    cuts += [Cut(s.name, tuple(range(10, 74))) for s in neurons]
    blocks = next(s for s in graph.of_kind("layer") if s.modules[0].startswith("decoder"))
    free = next(i for i in range(blocks.units) if i not in blocks.protected)
    applied = AppliedCuts(graph, (*cuts, Cut(blocks.name, tuple(i for i in range(blocks.units) if i != free))))
    with torch.no_grad():
        expected = main_output(MaskedModel(model, applied)(**inputs))
        cut(model, applied)
        torch.testing.assert_close(main_output(model(**inputs)), expected, atol=1e-5, rtol=1e-5)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        torch.testing.assert_close(main_output(again(**inputs)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["switch_transformers", DBRX, "mixtral"])
def test_every_expert_that_tokens_go_to_costs_something(name: str) -> None:
    model = ARCHITECTURES[name].build()
    graph = build_graph(model)
    costs = expert_costs(model, graph, [inputs_of(ARCHITECTURES[name].inputs)])
    assert costs.keys() == {s.name for s in graph.of_kind("expert")}
    assert all(float(own.sum()) > 0 for own in costs.values())


@AS_RECORDED
def test_products_with_flat_experts_are_told_by_expert() -> None:
    model: Any = ARCHITECTURES["dbrx"].build()
    experts = model.transformer.blocks[0].ffn.experts.mlp
    seen: dict[int, torch.Tensor] = {}
    name = "transformer.blocks.0.ffn.experts.mlp.w2"
    watchers = {
        (name, i): [lambda x, out, i=i: seen.setdefault(i, out - x @ experts.w2.view(4, 80, 48)[i])] for i in range(4)
    }
    with torch.no_grad(), products_watched(model, watchers):
        model(**inputs_of("tokens"))
    assert len(seen) > 1
    for difference in seen.values():
        assert float(difference.abs().max()) < 1e-5


def test_numbered_modules_are_renamed_in_order() -> None:
    assert renamed_modules(("e.0", "e.1", "e.2", "e.3"), [1]) == {"e.0": "e.0", "e.1": "", "e.2": "e.1", "e.3": "e.2"}


def test_only_blocks_and_experts_are_modules() -> None:
    assert Space(name="experts", units=2, kind="expert", modules=("e.0", "e.1")).units == 2
    for kind, modules in (("neuron", ("a", "b")), ("layer", ()), ("expert", ("a",))):
        with pytest.raises(UnsupportedModelError, match="names one module per unit"):
            Space(name="x", units=2, kind=kind, modules=modules)  # type: ignore[arg-type]


def undecided() -> Any:
    """A Mixtral in bfloat16 whose routers like all experts nearly alike."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, initializer_range=0.2)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gate.weight"):
                parameter.mul_(0.01)
    return model.bfloat16()


def test_routers_that_rounding_decides_do_not_fail_the_proof_and_wrong_experts_do() -> None:
    model, generator = undecided(), torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(4, 60, (4, 64), generator=generator)}
    graph = build_graph(model)
    applied = AppliedCuts(graph, tuple(Cut(s.name, tuple(range(1, s.units))) for s in graph.of_kind("expert")))
    small = copy.deepcopy(model)
    cut(small, applied)
    with torch.no_grad():
        apart = relative_difference(call(small, inputs), call(MaskedModel(model, applied), inputs))
        assert apart > 0.01, "both chose alike anyway"
        assert check(small, model, applied, inputs) < 0.001
        down = small.get_parameter("model.layers.1.mlp.experts.down_proj")
        down.copy_(down.roll(1, 0))
    with pytest.raises(ExactnessError, match="surgery is not exact"):
        check(small, model, applied, inputs)


def test_a_choice_is_followed_in_the_numbers_of_the_experts_that_stayed() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 6, generator=generator)
    masked = scores.index_fill(-1, torch.tensor([0, 3]), -1.0)
    with ChosenRoutes() as chosen:
        first, second = torch.topk(masked, 2), scores.topk(3)
    few = masked[:, [1, 2, 4, 5]].flip(0)  # other scores of the same experts
    with FollowedRoutes(chosen):
        values, index = torch.topk(few, 2)
        again = scores.flip(0).topk(3)
        beyond = torch.topk(few, 1)
    assert torch.equal(torch.tensor([1, 2, 4, 5])[index], first.indices)
    assert torch.equal(values, few.gather(-1, index))
    assert torch.equal(again.indices, second.indices)
    assert torch.equal(beyond.values[:, 0], few.amax(-1))
    with FollowedRoutes(chosen):
        assert torch.equal(torch.topk(few[:, :3], 2).values, few[:, :3].topk(2).values), "other experts"
    with ChosenRoutes() as chosen:
        scores.topk(2, dim=0), torch.topk(scores, 2, 1)
    with FollowedRoutes(chosen):
        assert torch.equal(scores.flip(0).topk(2, 0).values, scores.topk(2, 0).values), "another axis"
    assert len(chosen.choices) == 1
