"""Surgery: a pruned model is the dense one with units masked, in every family, and still an ordinary model."""

from __future__ import annotations

import copy
import random
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from dnge_compress import compress
from dnge_compress.core.errors import PlanError, UnknownNameError
from dnge_compress.graph.builder import shapes_of
from dnge_compress.graph.counting import parameter_prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.pruned import pruned_graph
from dnge_compress.graph.types import Cut, ModelGraph
from dnge_compress.plans.legal_widths import droppable, width_groups
from dnge_compress.recipes.schema import Prune
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.exactness import check, relative_difference

QUICK: dict[str, Any] = {"scorer": "magnitude", "compensate": "none", "tokens": 64, "length": 16}
DECODERS = ("llama", "qwen3", "gpt2")


def random_cuts(graph: ModelGraph, seed: int, *, uneven: bool = False, layers: bool = True) -> list[Cut]:
    """Legal cuts of random units, at random legal widths."""
    chance = random.Random(seed)
    prune = Prune(uneven=uneven)
    cuts = []
    for group in width_groups(graph, prune)[0]:
        step = chance.choice(group.legal)
        for name in group.spaces:
            units = graph.space(name).units
            keep = units * step // group.steps
            if keep < units:
                cuts.append(Cut(name, tuple(sorted(chance.sample(range(units), keep)))))
    away = chance.choice(droppable(graph, prune) or [None]) if layers else None
    if away is not None:
        name, gone = away
        if graph.space(name).units > 1:
            cuts.append(Cut(name, tuple(i for i in range(graph.space(name).units) if i != gone)))
    return cuts


def pruned(model: nn.Module, graph: ModelGraph, cuts: list[Cut]) -> nn.Module:
    """A cut copy."""
    small = copy.deepcopy(model)
    cut(small, AppliedCuts(graph, tuple(cuts)))
    return small


def parameters(model: nn.Module) -> int:
    """Unique parameters."""
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("name", models.MODELS)
def test_a_pruned_model_equals_the_masked_one_and_has_the_predicted_size(name: str, uneven: bool) -> None:
    model, inputs = models.make(name), models.example_inputs(name)
    graph = models.graph_of(name, model)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    before, changed = models.outputs(model, inputs), 0
    for seed in range(3):
        cuts = random_cuts(graph, seed, uneven=uneven)
        small = pruned(model, graph, cuts)
        assert check(small, model, AppliedCuts(graph, tuple(cuts)), inputs) < 1e-4
        assert parameters(small) == AppliedCuts(graph, tuple(cuts)).price(parameter_prices(model), shapes)
        changed += not torch.equal(models.outputs(small, inputs), before)
    assert changed and torch.equal(models.outputs(model, inputs), before)


@pytest.mark.parametrize("name", models.MODELS)
def test_removing_units_that_are_zero_leaves_the_outputs_equal(name: str) -> None:
    model, inputs = models.make(name), models.example_inputs(name)
    graph = models.graph_of(name, model)
    cuts = random_cuts(graph, 1, uneven=True, layers=False)
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for c in cuts:
            gone = [u for u in range(graph.space(c.space).units) if u not in c.keep]
            for slot in graph.consumers(c.space):
                for u in gone:
                    state[slot.param].narrow(slot.axis, slot.offset + u * slot.width, slot.width).zero_()
    assert cuts
    expected, found = models.outputs(model, inputs), models.outputs(pruned(model, graph, cuts), inputs)
    assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize("name", models.MODELS)
def test_cutting_nothing_changes_nothing(name: str) -> None:
    model, inputs = models.make(name), models.example_inputs(name)
    small = pruned(model, models.graph_of(name, model), [])
    assert torch.equal(models.outputs(small, inputs), models.outputs(model, inputs))


@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_config_builds_a_network_of_the_pruned_shapes(name: str) -> None:
    model = models.make(name)
    graph = models.graph_of(name, model)
    for seed in range(3):
        small = pruned(model, graph, random_cuts(graph, seed))
        rebuilt = type(small)(copy.deepcopy(small.config)).eval()
        rebuilt.load_state_dict(small.state_dict())
        inputs = models.example_inputs(name)
        torch.testing.assert_close(models.outputs(rebuilt, inputs), models.outputs(small, inputs))


@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_a_cache_equals_generation_without_after_layers_went(name: str) -> None:
    model = models.make(name)
    graph = models.graph_of(name, model)
    widths = [c for c in random_cuts(graph, 2, layers=False) if graph.space(c.space).kind != "layer"]
    small = pruned(model, graph, [*widths, Cut("layers", tuple(range(1, graph.space("layers").units)))])
    ids = models.tokens()["input_ids"][:, :5]
    kinds = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    cached = small.generate(ids, use_cache=True, **kinds)
    assert cached.shape == (2, 13)
    assert torch.equal(cached, small.generate(ids, use_cache=False, **kinds))


def test_tied_embeddings_stay_tied() -> None:
    model = models.make("llama")
    small = compress(model, ratio=0.3, **QUICK)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert small.lm_head.weight is not model.lm_head.weight
    assert "lm_head.weight" not in dict(small.named_parameters())


@pytest.mark.parametrize("name", ["llama", "llama_mqa", "gpt2", "bert", "vit"])
def test_attention_implementations_agree_after_pruning(name: str) -> None:
    model, inputs = models.make(name), models.example_inputs(name)
    graph = models.graph_of(name, model)
    small, found = pruned(model, graph, random_cuts(graph, 3, uneven=True)), []
    for implementation in ("eager", "sdpa"):
        small.set_attn_implementation(implementation)
        found.append(models.outputs(small, inputs))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "resnet_basic"])
def test_a_compressed_model_can_be_compressed_again(name: str) -> None:
    model = models.make(name)
    once = compress(model, "prune/neurons", ratio=0.25, **QUICK)
    twice = compress(once, "prune/neurons", ratio=0.25, **QUICK)
    sizes = [parameters(m) for m in (model, once, twice)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert twice.dnge.plan.base != once.dnge.plan.base and twice.dnge.plan.params_before == sizes[1]
    assert torch.isfinite(models.outputs(twice, models.example_inputs(name))).all()


def test_layers_can_be_dropped_twice() -> None:
    model = models.make("llama")
    small = compress(compress(model, "prune/layers", ratio=0.34, **QUICK), "prune/layers", ratio=0.5, **QUICK)
    assert small.config.num_hidden_layers == len(small.model.layers) == 1
    assert small.model.layers[0].self_attn.layer_idx == 0


def test_two_compressions_in_one_process_do_not_interact() -> None:
    def one(ratio: float) -> Tensor:
        return models.outputs(compress(models.make("bert"), ratio=ratio, **QUICK), models.example_inputs("bert"))

    first, config = one(0.3), models.make("bert").config.to_dict()
    other = compress(models.make("vit"), ratio=0.2, **QUICK)
    different = one(0.1)
    assert torch.equal(one(0.3), first) and not torch.equal(different, first)
    assert models.make("bert").config.to_dict() == config
    assert torch.isfinite(models.outputs(other, models.example_inputs("vit"))).all()


@pytest.mark.parametrize("name", ["llama", "bert", "cnn"])
def test_a_bfloat16_model_stays_bfloat16_and_its_repair_is_solved_in_more(name: str) -> None:
    model, inputs = models.make(name).to(torch.bfloat16), models.example_inputs(name)
    if isinstance(inputs, Tensor):
        inputs = inputs.to(torch.bfloat16)
    extra = {} if models.MODELS[name].family else {"example_inputs": inputs}
    settings = QUICK | {"scorer": "obs", "compensate": "lstsq"}
    small = compress(model, "prune/neurons", ratio=0.3, **settings, **extra)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert {t.dtype for t in small.buffers()} == {t.dtype for t in model.buffers()}
    assert torch.isfinite(models.outputs(small, inputs)).all()


def test_a_float64_model_stays_float64_and_is_exact() -> None:
    model = models.make("bert").double()
    graph = models.graph_of("bert", model)
    cuts = random_cuts(graph, 0)
    assert (
        check(pruned(model, graph, cuts), model, AppliedCuts(graph, tuple(cuts)), models.example_inputs("bert")) < 1e-12
    )
    small = compress(model, ratio=0.2, **QUICK | {"scorer": "obs", "compensate": "lstsq"})
    assert {p.dtype for p in small.parameters()} == {torch.float64}


def test_modes_and_gradient_flags_are_kept() -> None:
    model = models.make("bert").train()
    model.encoder.layer[0].eval()
    for p in model.encoder.layer[1].parameters():
        p.requires_grad_(False)
    small = compress(model, "prune/neurons", ratio=0.3, **QUICK)
    assert small.training and not small.encoder.layer[0].training
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert all(p.is_leaf for p in small.parameters())


def test_a_pruned_model_can_be_trained() -> None:
    small = compress(models.make("llama"), ratio=0.3, **QUICK).train()
    ids = models.tokens()["input_ids"]
    small(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_in_place_the_same_object_becomes_small_and_old_references_see_it() -> None:
    model, copied = models.make("llama"), models.make("llama")
    wrapper = nn.ModuleDict({"inner": model})
    small = compress(model, ratio=0.3, inplace=True, **QUICK)
    expected = compress(copied, ratio=0.3, **QUICK)
    assert small is model and wrapper["inner"].dnge is small.dnge
    assert parameters(wrapper) == parameters(expected) == small.dnge.plan.params_after
    inputs = models.example_inputs("llama")
    assert torch.equal(models.outputs(model, inputs), models.outputs(expected, inputs))


def test_a_failed_check_in_place_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = models.make("bert"), models.example_inputs("bert")
    before = models.outputs(model, inputs)
    monkeypatch.setattr("dnge_compress.surgery.exactness.relative_difference", lambda a, b: float("nan"))
    with pytest.raises(RuntimeError, match="surgery is not exact"):
        compress(model, ratio=0.3, inplace=True, **QUICK)
    assert torch.equal(models.outputs(model, inputs), before) and not hasattr(model, "dnge")


def test_the_exactness_check_catches_a_wrong_row() -> None:
    model, inputs = models.make("bert"), models.example_inputs("bert")
    graph = models.graph_of("bert", model)
    small = pruned(model, graph, [Cut("ffn.0", tuple(range(1, 28)))])
    with pytest.raises(RuntimeError, match="surgery is not exact"):
        check(small, model, AppliedCuts(graph, (Cut("ffn.0", tuple(range(27))),)), inputs)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Cut("ffn.0", (0, 28)), "keeps unit 28, but the space has 28 units"),
        (Cut("residual", (0, 1)), "is residual and can't be cut"),
        (Cut("vocabulary", (0, 1)), "is fixed and can't be cut"),
    ],
)
def test_cuts_that_do_not_fit_are_refused_before_anything_changes(wrong: Cut, message: str) -> None:
    model = models.make("bert")
    graph = models.graph_of("bert", model)
    size = parameters(model)
    with pytest.raises(PlanError, match=message):
        cut(model, AppliedCuts(graph, (Cut("ffn.1", (0, 1)), wrong)))
    assert parameters(model) == size


def test_unknown_spaces_offer_the_nearest_and_pinned_blocks_stay() -> None:
    graph = models.graph_of("resnet_basic", models.make("resnet_basic"))
    with pytest.raises(UnknownNameError, match="did you mean"):
        AppliedCuts(graph, (Cut("stage.00", (0,)),))
    space = next(s for s in graph.of_kind("layer") if s.protected and s.units > 1)
    keep = tuple(i for i in range(space.units) if i not in space.protected)
    with pytest.raises(PlanError, match="can't be removed"):
        AppliedCuts(graph, (Cut(space.name, keep),))


@pytest.mark.parametrize("name", ["llama", "gpt2", "resnet_basic"])
def test_masking_everything_but_nothing_is_the_model_itself(name: str) -> None:
    model, inputs = models.make(name), models.example_inputs(name)
    graph = models.graph_of(name, model)
    whole = [Cut(s.name, tuple(range(s.units))) for s in graph.of_kind("neuron", "head", "channel", "layer")]
    assert torch.equal(
        models.outputs(MaskedModel(model, AppliedCuts(graph, tuple(whole))), inputs), models.outputs(model, inputs)
    )


@pytest.mark.parametrize("name", ["llama", "llama_mqa", "gpt2", "bert", "vit", "resnet_basic"])
def test_a_pruned_graph_is_the_graph_of_the_pruned_model(name: str) -> None:
    base = models.make(name)
    graph = build_graph(base)
    cuts = [Cut(s.name, tuple(range(0, s.units, 2))) for s in graph.of_kind("neuron")]
    layers = graph.of_kind("layer")[-1]
    if layers.units > 2:
        cuts.append(Cut(layers.name, tuple(i for i in range(layers.units) if i != 1 or i in layers.protected)))
    small = copy.deepcopy(base)
    cut(small, AppliedCuts(graph, tuple(cuts)))
    found, expected = pruned_graph(AppliedCuts(graph, tuple(cuts)), shapes_of(small)), build_graph(small)
    assert found.fingerprint == expected.fingerprint
    assert [(s.op, s.params) for s in found.steps] == [(s.op, s.params) for s in expected.steps]
    assert [s.units for s in found.spaces] == [s.units for s in expected.spaces]
    assert [(s.param, s.axis, s.width, s.offset) for s in found.slots] == [
        (s.param, s.axis, s.width, s.offset) for s in expected.slots
    ]
    assert [(s.modules, s.protected) for s in found.of_kind("layer")] == [
        (s.modules, s.protected) for s in expected.of_kind("layer")
    ]
