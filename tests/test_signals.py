"""Signals against plain loops, and that gathering them leaves no trace."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from dnge_compress import compress
from dnge_compress.core import paging
from dnge_compress.core.errors import DngeError
from dnge_compress.graph.builder import GraphBuilder
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import ModelGraph, Space
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals import chain, moments, second_moments
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.consumers import as_matrix, from_matrix
from dnge_compress.signals.divergence import attended, attended_outputs, divergence
from dnge_compress.signals.held_out import fitted_and_held_out
from dnge_compress.signals.inference import examples_in, inference_mode_of
from dnge_compress.signals.moments import _Task, gather_signals
from dnge_compress.signals.signal import Signal, Signals


def batches_for(name: str, model: nn.Module, tokens: int = 64) -> list[Any]:
    """A few synthetic inputs."""
    example = None if models.MODELS[name].family else models.example_inputs(name)
    return synthesize(model, Calibration(tokens=tokens, length=16), example)[:2]


def gathered(name: str, seed: int = 0) -> tuple[nn.Module, ModelGraph, list[Any], Signals]:
    """Model, graph, batches and their signals."""
    model = models.make(name)
    graph = models.graph_of(name, model)
    batches = batches_for(name, model)
    return model, graph, batches, gather_signals(model, graph, batches, seed)


def inputs_of(model: nn.Module, module: str, batches: list[Any]) -> list[Tensor]:
    """What a module is called with, batch by batch."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    for batch in batches:
        models.outputs(model, batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "mlp"])
def test_moments_equal_a_plain_loops(name: str) -> None:
    model, _, batches, signals = gathered(name)
    for found in signals.values():
        for s in found:
            total, outer, n = torch.zeros(s.mean.shape[0]).double(), torch.zeros(s.covariance.shape).double(), 0
            for x in inputs_of(model, s.slot.param.rpartition(".")[0], batches):
                for row in x.flatten(0, -2).double():
                    total += row
                    outer += torch.outer(row, row)
                    n += 1
            assert s.count == n
            torch.testing.assert_close(s.mean.double(), total / n, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(s.second_moments(False).double(), outer / n, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_consumer_of_every_model_has_finite_signals_of_matching_shapes(name: str) -> None:
    model, graph, _, signals = gathered(name)
    for space, found in signals.items():
        assert len(found) == len(graph.consumers(space))
        for s in found:
            d, f = as_matrix(dict(model.named_parameters())[s.slot.param], graph, s.slot).shape
            assert s.covariance.shape == (f, f) and s.mean.shape == s.grad_square.shape == (f,)
            assert s.out_fisher.shape == (d,) and s.fisher.shape == (s.units,)
            assert len(s.mean[s.own]) % s.units == 0 and len(s.variance) == len(s.mean[s.own])
            for t in (s.mean, s.covariance, s.grad_square, s.fisher, s.out_fisher):
                assert torch.isfinite(t).all()
            assert s.out_fisher.sum() > 0, f"no gradient reached the outputs of {s.slot.param}"
            assert s.grad_square.sum() > 0 and s.fisher.sum() > 0, f"no gradient reached {s.slot.param}"


def test_padding_is_left_out() -> None:
    """Sentences in a padded batch count as the same sentences one by one."""
    model = models.make("bert_mlm")
    graph = build_graph(model)
    ids, mask = models.tokens()["input_ids"], torch.ones(2, 11, dtype=torch.long)
    mask[1, 7:] = 0
    padded = gather_signals(model, graph, [{"input_ids": ids, "attention_mask": mask}])
    single = gather_signals(model, graph, [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :7]}])
    for space in padded:
        for p, s in zip(padded[space], single[space], strict=True):
            assert p.count == s.count == 18
            torch.testing.assert_close(p.mean, s.mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(p.covariance, s.covariance, rtol=1e-4, atol=1e-5)


def test_attended_is_none_where_all_positions_count() -> None:
    ones = torch.ones(2, 3, dtype=torch.long)
    assert attended(torch.zeros(2, 3)) is None and attended({"input_ids": ones}) is None
    assert attended({"attention_mask": ones}) is None
    mask = torch.tensor([[1, 1, 0]])
    assert torch.equal(attended({"attention_mask": mask}), mask.bool())
    assert attended_outputs(torch.arange(6.0).view(1, 3, 2), mask.bool()).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("limit", [0, 4 * (48**2 + 40**2) + 8])
@pytest.mark.parametrize("name", ["llama", "mlp", "cnn_residual"])
def test_moments_that_lie_in_files_are_those_in_memory_and_take_no_further_pass(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph, batches, expected = gathered(name)
    monkeypatch.setattr(second_moments, "MEMORY_BYTES", limit)
    module = model.get_submodule(graph.consumers(next(iter(expected)))[0].param.rpartition(".")[0])
    rows = {True: 0, False: 0}  # with gradients and without

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows[torch.is_grad_enabled()] += len(args[0])

    handle = module.register_forward_pre_hook(count)
    found = gather_signals(model, graph, batches)
    handle.remove()
    examples = sum(map(examples_in, batches))
    tried = 2 if name == "llama" else 0  # one example, whole and block by block
    assert rows == {True: examples + tried, False: 1 + (examples + tried // 2 if tried else 0)}
    for space in expected:
        for a, b in zip(expected[space], found[space], strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("name", ["llama", "bert_mlm", "gpt2", "vit"])
@pytest.mark.parametrize("memory", [0, paging.MEMORY_BYTES])
def test_block_by_block_signals_are_those_of_the_model_run_whole(
    name: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph, batches, _ = gathered(name)
    monkeypatch.setattr(second_moments, "MEMORY_BYTES", 0)
    monkeypatch.setattr(paging, "MEMORY_BYTES", memory)
    monkeypatch.setattr(paging, "SMALL_BYTES", min(memory, paging.SMALL_BYTES))
    blocks = [model.get_submodule(path) for space in graph.of_kind("layer") for path in space.modules]
    order: list[nn.Module] = []
    handles = [b.register_forward_pre_hook(lambda m, args: order.append(m)) for b in blocks]
    found = gather_signals(model, graph, [*batches, *batches])
    for handle in handles:
        handle.remove()
    # Each block reads all inputs before the next one reads any, and backwards as well.
    times = 2 * len(batches)
    assert order[-times * len(blocks) :] == [b for b in reversed(blocks) for _ in range(times)]
    for space, signals in gather_once(model, graph, [*batches, *batches], monkeypatch).items():
        for a, b in zip(signals, found[space], strict=True):
            assert_same(a, b)


def gather_once(model: nn.Module, graph: ModelGraph, batches: list[Any], monkeypatch: pytest.MonkeyPatch) -> Signals:
    """Signals of the model run whole."""
    monkeypatch.setattr(second_moments, "MEMORY_BYTES", 1 << 30)
    return gather_signals(model, graph, batches)


def test_blocks_that_hand_on_more_than_hidden_states_are_no_chain() -> None:
    """T5's blocks share the first one's position bias, and its decoder reads the encoder's answer."""
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    batch = {"input_ids": torch.randint(1, 40, (2, 7)), "decoder_input_ids": torch.randint(1, 40, (2, 5))}
    with inference_mode_of(model):
        assert chain.chain_of(model, build_graph(model), batch, lambda output: output.square().sum()) is None


class Hooked(nn.Module):
    """Linear blocks of which the last two add a share of what a hook of the first left on the model, past the hidden
    states."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.left: Tensor = torch.zeros(())
        self.layers[0].register_forward_hook(lambda m, args, out: setattr(self, "left", out))
        for layer in self.layers[1:]:
            layer.register_forward_hook(lambda m, args, out: out + share * self.left)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_passes_beside_the_hidden_states_shows_in_the_gradient(dtype: torch.dtype) -> None:
    model, blocks = Hooked(0.02).to(dtype), tuple(f"layers.{i}" for i in range(3))
    space = Space(name="layers", units=3, kind="layer", modules=blocks)
    graph = ModelGraph(family="", spaces=(space,), slots=(), steps=())
    batch = (torch.randn(2, 6).to(dtype),)
    with inference_mode_of(model):
        assert chain.chain_of(model, graph, batch, lambda output: output.square().sum()) is None
        for layer in model.layers:
            layer._forward_hooks.clear()
        assert chain.chain_of(model, graph, batch, lambda output: output.square().sum()) is not None


@pytest.mark.parametrize("name", ["llama", "vit", "mlp"])
def test_a_large_batch_goes_through_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph, batches, expected = gathered(name)
    monkeypatch.setattr(moments, "GRAPH_NUMBERS", 1)
    monkeypatch.setattr(_Task, "chain", lambda self, places, batch: None)
    sizes: list[int] = []
    module = model.get_submodule(graph.consumers(next(iter(expected)))[0].param.rpartition(".")[0])
    handle = module.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    found = gather_signals(model, graph, batches)
    handle.remove()
    assert set(sizes) == {1} and len(sizes) == 1 + sum(map(examples_in, batches)) > 2
    for space in expected:
        for a, b in zip(expected[space], found[space], strict=True):
            torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-4, atol=1e-6)


def test_a_batch_whose_loss_is_about_all_of_it_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regression's loss is measured against the variance of its answers, which one example doesn't have."""
    config = BertConfig(**models.ENCODER, num_labels=1)
    model = BertForSequenceClassification(config).eval()
    graph, batches = build_graph(model), [{"input_ids": torch.randint(3, 40, (8, 9))}]
    expected = gather_signals(model, graph, batches)
    monkeypatch.setattr(moments, "GRAPH_NUMBERS", 1)
    found = gather_signals(model, graph, batches)
    for space in expected:
        for a, b in zip(expected[space], found[space], strict=True):
            assert torch.isfinite(a.fisher).all()
            assert_same(a, b)


def test_paged_tensors_hold_no_descriptors_and_keep_their_values() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    values = [torch.randn(3, 5), torch.arange(7), torch.randn(2, 2, 2).bfloat16(), torch.zeros(0, 4)]
    kept = [paging.paged(v, "values") for v in values]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for value, other in zip(values, kept, strict=True):
        assert other.dtype == value.dtype and torch.equal(other, value)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_scoring_planning_and_repair_pass_the_inputs_once_at_any_limit(
    allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers and candidate plans are measured on an eighth of the inputs each, without gradients; that of plans is
    held out."""
    monkeypatch.setattr(second_moments, "MEMORY_BYTES", 0)
    model, passed = models.make("llama"), 0
    data = [{"input_ids": torch.randint(4, 61, (64, 11), generator=torch.Generator().manual_seed(i))} for i in range(8)]

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal passed
        passed += len(args[0]) if torch.is_grad_enabled() else 0

    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(count)
    small = compress(model, ratio=0.4, data=data, allocation=allocation, uneven=allocation == "global")
    assert small.dnge.plan.cuts and any("measured" in note for note in small.dnge.plan.notes)
    fitted, _ = fitted_and_held_out(data)
    assert (
        passed == sum(map(examples_in, fitted)) + 2 == 450
    )  # one example shows twice that blocks can pass one at a time


def test_a_disk_without_room_for_moments_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_moments, "MEMORY_BYTES", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DngeError, match="need room in .*; set TMPDIR to a larger disk"):
            gathered("llama")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["llama", "bert_mlm", "cnn"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = models.make(name)
    model.train()
    next(m for m in model.modules() if not list(m.children())).eval()
    frozen = next(iter(model.parameters())).requires_grad_(False)
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    random_state, hooks = torch.get_rng_state(), count_hooks(model)
    graph = models.graph_of(name, model)
    assert gather_signals(model, graph, batches_for(name, model))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad == (p is not frozen) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert count_hooks(model) == hooks and torch.is_grad_enabled()


def test_hooks_flags_and_modes_are_restored_if_the_model_fails() -> None:
    model = models.make("mlp").train()
    with pytest.raises(RuntimeError):
        gather_signals(model, models.graph_of("mlp", model), [torch.zeros(2, 8)])
    assert count_hooks(model) == 0 and model.training and all(p.requires_grad for p in model.parameters())


def test_the_same_seed_gives_the_same_signals_and_another_one_other_labels() -> None:
    _, _, _, first = gathered("llama", seed=1)
    torch.manual_seed(99)
    _, _, _, second = gathered("llama", seed=1)
    _, _, _, third = gathered("llama", seed=2)
    for space in first:
        assert_same(first[space][0], second[space][0])
        assert torch.equal(first[space][0].covariance, third[space][0].covariance)
        assert not torch.equal(first[space][0].out_fisher, third[space][0].out_fisher)


class Classifier(nn.Module):
    """Two linear layers, nothing else: its Fisher information is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 3]`."""
        return self.second(self.first(x))


def classifier_graph(model: nn.Module) -> ModelGraph:
    """Its graph, written by hand."""
    g = GraphBuilder("toy", {k: tuple(v.shape) for k, v in model.state_dict().items()})
    g.linear("first", g.space("in", 4, "fixed"), g.space("hidden", 6, "neuron"))
    g.linear("second", "hidden", g.space("out", 3, "fixed"))
    return g.finish()


def test_fisher_information_equals_the_analytic_one() -> None:
    """E g² at logit d is p_d (1 − p_d); at the hidden layer Wᵀ (diag p − p pᵀ) W; a mask's is aᵤ² of it."""
    torch.manual_seed(0)
    model = Classifier()
    x = torch.randn(3, 4)
    signal = gather_signals(model, classifier_graph(model), [x.repeat(4000, 1)])["hidden"][0]
    with torch.no_grad():
        hidden = model.first(x)
        p, w = model.second(hidden).softmax(-1), model.second.weight
    information = torch.stack([torch.diag(q) - torch.outer(q, q) for q in p])
    hidden_fisher = (w.T @ information @ w).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(signal.out_fisher, information.diagonal(dim1=1, dim2=2).mean(0), rtol=0.05, atol=0.003)
    torch.testing.assert_close(signal.grad_square, hidden_fisher.mean(0), rtol=0.07, atol=0.003)
    torch.testing.assert_close(signal.fisher, (hidden.square() * hidden_fisher).mean(0), rtol=0.07, atol=0.003)


def test_hidden_outputs_count_as_gaussians_of_their_own_variance() -> None:
    """Without logits the Fisher information of an output is one over the output's variance."""
    model, graph, batches, signals = gathered("bert")
    scale = torch.stack([models.outputs(model, b).var() for b in batches]).mean()
    last = graph.step_of(signals["ffn.1"][0].slot.param)
    assert last.writes and signals["ffn.1"][0].out_fisher.mean() > 0.01 / scale
    outputs, reference = torch.zeros(2, 3, 5), torch.randn(2, 3, 5)
    expected = 0.5 * reference.square().sum(-1).mean() / reference.var()
    torch.testing.assert_close(divergence(outputs, reference, logits=False), expected)


def test_divergence_of_logits_is_the_kl_in_nats() -> None:
    torch.manual_seed(0)
    output, reference = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    expected = nnf.kl_div(
        output.log_softmax(-1).flatten(0, 1), reference.softmax(-1).flatten(0, 1), reduction="batchmean"
    )
    torch.testing.assert_close(divergence(output, reference, logits=True), expected)
    assert float(divergence(reference, reference, logits=True)) == 0


@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_conv_moments_are_of_kernel_patches(padding: int | str) -> None:
    """The consumer as a matrix times a patch is what the conv computes, so its moments are those of patches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=padding), nn.Flatten(), nn.LazyLinear(3)
    )
    x = torch.randn(2, 3, 6, 6)
    model(x)
    graph = build_graph(model, x)
    signal = gather_signals(model, graph, [x])["0"][0]
    pad = 0 if padding == "valid" else 1
    with torch.no_grad():
        patches = nnf.unfold(model[1](model[0](x)), 3, padding=pad).transpose(1, 2).reshape(-1, 45)
        output = model[2](model[1](model[0](x))).permute(0, 2, 3, 1).reshape(-1, 4)
    matrix = as_matrix(model[2].weight.detach(), graph, signal.slot)
    torch.testing.assert_close(patches @ matrix.T + model[2].bias.detach(), output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(signal.mean, patches.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(signal.second_moments(False), patches.T @ patches / len(patches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_a_convs_padding_mode_is_that_of_its_patches(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 3, padding=1, padding_mode=mode))
    head = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.randn(2, 3, 6, 6)
    signal = gather_signals(head, build_graph(head, x), [x])["0"][0]
    with torch.no_grad():
        output = model(x).permute(0, 2, 3, 1).reshape(-1, 4)
    expected = signal.mean @ model[2].weight.detach().flatten(1).T + model[2].bias.detach()
    torch.testing.assert_close(expected, output.mean(0), rtol=1e-4, atol=1e-5)


def test_in_place_activations_behind_the_first_layer_are_no_obstacle() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    x = torch.randn(4, 3, 6, 6)
    plain = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in model))
    found, expected = (gather_signals(m, build_graph(m, x), [x]) for m in (model, plain))
    for space in expected:
        for a, b in zip(found[space], expected[space], strict=True):
            assert_same(a, b)


def test_a_residual_sum_in_place_does_not_disturb_what_was_read_before() -> None:
    class Block(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 6)
            self.head, self.in_place = nn.Linear(6, 3), in_place

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.outer(self.inner(x))
            if self.in_place:
                x += y
            else:
                x = x + y
            return self.head(x)

    x = torch.randn(4, 4)
    found, expected = (gather_signals(m, build_graph(m, x), [x]) for m in (Block(True), Block(False)))
    for space in expected:
        for a, b in zip(found[space], expected[space], strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("name", ["gpt2", "cnn_plain", "resnet_basic"])
def test_matrices_turn_back_into_weights(name: str) -> None:
    model = models.make(name)
    graph = models.graph_of(name, model)
    weights: Mapping[str, Tensor] = dict(model.named_parameters())
    for space in graph.of_kind("neuron", "channel", "head"):
        for slot in graph.consumers(space.name):
            weight = weights[slot.param].detach()
            assert torch.equal(from_matrix(as_matrix(weight, graph, slot), weight, graph, slot), weight)


def test_inference_mode_restores_flags_modes_and_randomness() -> None:
    model = models.make("mlp").train()
    before = torch.get_rng_state()
    with inference_mode_of(model):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        torch.rand(3)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def count_hooks(model: nn.Module) -> int:
    """Forward and pre-forward hooks on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def assert_same(a: Signal, b: Signal) -> None:
    """Equal in every moment."""
    assert (a.slot, a.units, a.count, a.own) == (b.slot, b.units, b.count, b.own)
    for field in ("mean", "covariance", "grad_square", "fisher", "out_fisher"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=1e-5, atol=1e-6, msg=field)
