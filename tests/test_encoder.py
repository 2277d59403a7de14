"""The encoder's exact properties: its messages, its symmetries, and independence of chunk size and back end."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from encoder_variants import per_edge
from models import MODELS, example_inputs, graph_of, make
from torch import nn

from dnge_compress.encoder import DNGEncoder, messages, pooling
from dnge_compress.encoder.features import FEATURES
from dnge_compress.encoder.messages import MAGNITUDE, RAW, Basis, Message, scales
from dnge_compress.encoder.passes import run_passes
from dnge_compress.graph.types import ModelGraph, Space


def encoder64() -> DNGEncoder:
    """An encoder with random readouts (untrained ones are zero) in float64."""
    torch.manual_seed(0)
    encoder = DNGEncoder().double()
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.3)
    return encoder.eval()


def weights64(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in model.state_dict().items() if v.is_floating_point()}


def features64(graph: ModelGraph, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        s.name: torch.randn(s.units, FEATURES, generator=g, dtype=torch.float64)
        for s in graph.of_kind("neuron", "head", "channel")
    }


def layer_costs(graph: ModelGraph) -> dict[str, torch.Tensor]:
    return {s.name: torch.linspace(-1, 1, s.units, dtype=torch.float64) for s in graph.of_kind("layer")}


def permuted(graph: ModelGraph, weights: dict, space: Space, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same network with the units of one space in another order."""
    moved = dict(weights)
    for slot in graph.slots_of(space.name):
        tensor = moved[slot.param].clone()
        rows = slot.rows(torch.arange(space.units))
        moved[slot.param] = tensor.index_copy(slot.axis, rows, tensor.index_select(slot.axis, slot.rows(order)))
    return moved


@pytest.mark.parametrize("basis", [RAW, MAGNITUDE, (*RAW, torch.sin, torch.cos)])
def test_matrix_product_message_equals_the_per_edge_message(basis: tuple[Basis, ...]) -> None:
    torch.manual_seed(0)
    message = Message(7, basis).double()
    weight, states = torch.randn(5, 11, 3).double(), torch.randn(11, 7).double()
    assert torch.allclose(message(weight, states), per_edge(message, weight, states), atol=1e-10, rtol=0)


def test_transposed_message_equals_the_message_over_the_transposed_block() -> None:
    torch.manual_seed(0)
    message = Message(7, MAGNITUDE).double()
    weight, states = torch.randn(5, 11, 2).double(), torch.randn(5, 7).double()
    direct = message(weight.transpose(0, 1).contiguous(), states)
    assert torch.allclose(message(weight, states, transposed=True), direct, atol=1e-10, rtol=0)


def test_equal_sources_need_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "CHUNK_ELEMENTS", 40)
    torch.manual_seed(0)
    message = Message(7, RAW + MAGNITUDE).double()
    weight, state = torch.randn(5, 11, 3).double(), torch.randn(1, 7).double()
    for back, units in ((False, 11), (True, 5)):
        expected = message(weight, state.expand(units, -1), back, scale=2.0)
        found = message.from_equals(weight, state, back, scale=2.0)
        assert torch.allclose(found, expected, atol=1e-10, rtol=0)


def test_scaled_blocks_do_not_depend_on_the_scale_of_the_weights() -> None:
    weight = torch.randn(4, 6, 1)
    assert torch.allclose(scales(weight)[0], 10 * scales(weight * 10)[0])
    assert torch.allclose(scales(weight * 10)[1] - scales(weight)[1], torch.tensor(100.0).log())


@pytest.mark.parametrize("name", MODELS)
def test_scores_follow_a_permutation_of_any_space(name: str) -> None:
    model = make(name)
    graph = graph_of(name, model)
    weights, features, costs, encoder = weights64(model), features64(graph), layer_costs(graph), encoder64()
    with torch.no_grad():
        base = encoder(graph, weights, features, costs)
        for space in graph.of_kind("neuron", "head", "channel", "residual"):
            order = torch.randperm(space.units, generator=torch.Generator().manual_seed(1))
            moved = {**features}
            if space.name in moved:
                moved[space.name] = features[space.name][order]
            found = encoder(graph, permuted(graph, weights, space, order), moved, costs)
            for other, value in base.spaces.items():
                assert torch.allclose(found.spaces[other], value, atol=1e-8, rtol=0), (space.name, other)
            for param, value in base.matrices.items():
                assert torch.allclose(found.matrices[param], value, atol=1e-8, rtol=0), (space.name, param)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_query_heads_inside_a_group_may_swap_without_any_effect(name: str) -> None:
    model = make(name)
    graph = graph_of(name, model)
    head_dim = model.config.head_dim
    weights, features, costs, encoder = weights64(model), features64(graph), layer_costs(graph), encoder64()
    moved = dict(weights)
    for param, axis in (("q_proj", 0), ("o_proj", 1)):
        key = f"model.layers.0.self_attn.{param}.weight"
        rows = torch.arange(weights[key].shape[axis])
        rows[: 2 * head_dim] = rows[: 2 * head_dim].roll(head_dim)  # the first two query heads share a group
        moved[key] = weights[key].index_select(axis, rows)
    with torch.no_grad():
        before, after = (encoder(graph, w, features, costs) for w in (weights, moved))
    for space in before.spaces:
        assert torch.allclose(before.spaces[space], after.spaces[space], atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "cnn_residual"])
def test_scores_are_the_same_at_any_chunk_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    graph = graph_of(name, model)
    arguments = (graph, weights64(model), features64(graph), layer_costs(graph))
    with torch.no_grad():
        whole = encoder64()(*arguments)
        monkeypatch.setattr(messages, "CHUNK_ELEMENTS", 50)
        chunked = encoder64()(*arguments)
    for space in whole.spaces:
        assert torch.allclose(whole.spaces[space], chunked.spaces[space], atol=1e-10, rtol=0)


def test_messages_reach_a_unit_from_what_reads_it() -> None:
    model = make("llama")
    graph = graph_of("llama", model)
    features, encoder, weights = features64(graph), encoder64(), weights64(model)

    def states(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return run_passes((encoder.ahead, encoder.back), graph, w, features)["ffn.1"]

    changed = copy.deepcopy(weights)
    outgoing = changed["model.layers.1.mlp.down_proj.weight"]  # only a backward pass sees them
    outgoing[:, 3] = outgoing[:, 3].abs()
    with torch.no_grad():
        before, after = states(weights), states(changed)
    moved = (before - after).abs().amax(1)
    assert moved[3] > 10 * moved.median()


def test_an_untrained_encoder_leaves_the_obs_costs_as_it_is() -> None:
    model = make("bert")
    graph = graph_of("bert", model)
    features = {k: v.float() for k, v in features64(graph).items()}
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    found = DNGEncoder()(graph, weights, features, {k: v.float() for k, v in layer_costs(graph).items()})
    assert not any(bool(v.any()) for v in [*found.spaces.values(), *found.layers.values()])


def test_segment_mean_equals_a_plain_loop() -> None:
    rows, bounds = torch.randn(9, 4), torch.tensor([0, 2, 3, 9])
    expected = torch.stack([rows[a:b].mean(0) for a, b in itertools.pairwise(bounds)])
    assert torch.allclose(pooling.segment_mean(rows, bounds), expected, atol=1e-6)


def test_torch_scatter_and_torch_pool_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    scatter = pytest.importorskip("torch_scatter", reason="torch-scatter is an extra; CI's scatter step installs it")
    rows, bounds = torch.randn(30, 5).double(), torch.tensor([0, 1, 12, 30])
    monkeypatch.setattr(pooling, "segment_csr", scatter.segment_csr)
    with_scatter = pooling.segment_mean(rows, bounds)
    monkeypatch.setattr(pooling, "segment_csr", None)
    assert torch.allclose(with_scatter, pooling.segment_mean(rows, bounds), atol=1e-12, rtol=0)


def test_models_answer_their_example_inputs() -> None:
    assert all(example_inputs(name) is not None for name in MODELS)
