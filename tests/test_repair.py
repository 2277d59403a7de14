"""The repair that runs the whole and the pruned network side by side, and the choice of the repair that costs least."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from test_odd_networks import Recurrent, grouped, transposed
from tiny_architectures import ARCHITECTURES
from torch import Tensor, nn

from dnge_compress import compress
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import Cut, ModelGraph, Slot
from dnge_compress.plans import trial
from dnge_compress.plans.trial import best_repair, repair_values
from dnge_compress.recipes.schema import Calibration, Repair
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals import side_by_side
from dnge_compress.signals.divergence import mean_divergence, outputs_of
from dnge_compress.signals.fits import JUDGED, _Samples, _Sums, best_fit
from dnge_compress.signals.inference import has_logits
from dnge_compress.signals.side_by_side import SideBySide

Values = dict[str, Tensor]

EXAMPLES, TOKENS = 96, 16
FEED_FORWARD, ALL = ("neuron", "channel"), ("neuron", "channel", "head")
SMALLEST_RIDGE = Repair(ridge=1e-6)  # so that the one-shot solution is exact where there is an exact one


def data_for(name: str) -> tuple[Any, ...]:
    """Random inputs in two batches; texts have unequal lengths and are padded."""
    generator, example = torch.Generator().manual_seed(2), models.example_inputs(name)
    if isinstance(example, Tensor):
        return torch.randn(EXAMPLES, *example.shape[1:], generator=generator).split(EXAMPLES // 2)
    if "pixel_values" in example:
        images = torch.randn(EXAMPLES, *example["pixel_values"].shape[1:], generator=generator)
        return tuple({"pixel_values": part} for part in images.split(EXAMPLES // 2))
    ids = torch.randint(4, models.VOCABULARY, (EXAMPLES, TOKENS), generator=generator)
    mask = (torch.arange(TOKENS) < torch.randint(5, TOKENS + 1, (EXAMPLES, 1), generator=generator)).long()
    parts = zip(ids.split(EXAMPLES // 2), mask.split(EXAMPLES // 2), strict=True)
    return tuple({"input_ids": own, "attention_mask": kept} for own, kept in parts)


def first_half_of(graph: ModelGraph, kinds: tuple[str, ...] = ALL) -> AppliedCuts:
    """Of every space the first half of its units stays."""
    spaces = [s for s in graph.of_kind(*kinds) if s.units > 1]
    return AppliedCuts(graph, tuple(Cut(s.name, tuple(range((s.units + 1) // 2))) for s in spaces))


@torch.no_grad()
def with_twins(model: nn.Module, graph: ModelGraph, kinds: tuple[str, ...]) -> nn.Module:
    """The model after the second half of every space's units became copies of the first: what reads them can do
    without."""
    tensors = model.state_dict(keep_vars=True)
    for space in graph.of_kind(*kinds):
        copies = space.units - (space.units + 1) // 2
        for slot in graph.slots_of(space.name):
            if not graph.consumes(slot):
                twins = tensors[slot.param].index_select(slot.axis, slot.rows(torch.arange(copies)))
                at = slot.rows(torch.arange(space.units - copies, space.units))
                tensors[slot.param].index_copy_(slot.axis, at, twins)
    return model


def both(context: ScoringContext, applied: AppliedCuts, repair: Repair | None = None) -> tuple[Values, Values]:
    """The one-shot repair, and the one side by side that starts from it."""
    one_shot = repair_values(context, applied, repair or Repair())
    run = SideBySide(context.model, context.signals, applied, one_shot)
    with context.calibrated():
        return one_shot, run.run(context.batches)


@torch.no_grad()
def damage(context: ScoringContext, applied: AppliedCuts, values: Values) -> float:
    """In nats per label, on all calibration inputs."""
    wanted = [outputs_of(context.model, batch) for batch in context.batches]
    masked = MaskedModel(context.model, applied, values)
    return float(mean_divergence(masked, context.batches, wanted, has_logits(context.model)))


@torch.no_grad()
def difference(model: nn.Module, applied: AppliedCuts, values: Values, batches: tuple[Any, ...]) -> float:
    """The largest relative to the largest output of the whole model."""
    whole = torch.cat([outputs_of(model, batch) for batch in batches])
    found = torch.cat([outputs_of(MaskedModel(model, applied, values), batch) for batch in batches])
    return float((found - whole).abs().max() / whole.abs().max())


def context_of(name: str, model: nn.Module, **options: Any) -> ScoringContext:
    return ScoringContext(graph=models.graph_of(name, model), model=model, **({"data": data_for(name)} | options))


def synthetic(name: str) -> dict[str, Any]:
    """Options of a context without data."""
    example = None if models.MODELS[name].family else models.example_inputs(name)
    return {"data": None, "calibration": Calibration(tokens=1024, length=16), "example_inputs": example}


def consumers_of(applied: AppliedCuts) -> list[tuple[Cut, Slot]]:
    return [(cut, slot) for cut in applied.cuts for slot in applied.graph.consumers(cut.space)]


# A residual stream, dropout in the config, norms behind the sum, a shortcut with batch norms, a single path.
@pytest.mark.parametrize(
    "name", ["llama", "llama_bias", "gpt2", "bert", "bert_mlm", "vit", "resnet_basic", "cnn_residual", "cnn", "mlp"]
)
def test_side_by_side_less_is_lost_than_in_one_shot(name: str) -> None:
    model = models.make(name)
    context = context_of(name, model)
    applied = first_half_of(context.graph)
    one_shot, values = both(context, applied)
    assert damage(context, applied, values) < 0.98 * damage(context, applied, one_shot)
    tensors = model.state_dict()
    assert values.keys() == one_shot.keys()
    assert all(values[n].shape == tensors[n].shape and values[n].dtype == tensors[n].dtype for n in values)
    for cut, slot in consumers_of(applied):
        gone = slot.rows(cut.gone(context.graph.space(cut.space).units))
        assert not values[slot.param].index_select(slot.axis, gone).any()
        assert values[slot.param].any()


def test_half_of_the_feed_forward_neurons_alone_is_repaired() -> None:
    context = context_of("llama", models.make("llama"))
    applied = first_half_of(context.graph, ("neuron",))
    one_shot, values = both(context, applied)
    assert damage(context, applied, values) < 0.95 * damage(context, applied, one_shot)
    assert values.keys() == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(3)}


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_what_a_dropped_block_did_is_made_up_for_by_those_behind(name: str) -> None:
    model = models.make(name)
    context = context_of(name, model)
    blocks = context.graph.of_kind("layer")[0]
    rest = tuple(i for i in range(blocks.units) if i != 0)
    applied = AppliedCuts(
        context.graph, (*first_half_of(context.graph, FEED_FORWARD).cuts, Cut(blocks.name, keep=rest))
    )
    one_shot, values = both(context, applied)
    assert damage(context, applied, values) < 0.98 * damage(context, applied, one_shot)
    assert values and not any(n.startswith(applied.dropped_prefixes) for n in values)


@pytest.mark.parametrize("kinds", [FEED_FORWARD, ALL])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "cnn_residual", "mlp"])
def test_units_that_have_a_twin_are_not_missed(name: str, kinds: tuple[str, ...]) -> None:
    model = models.make(name)
    graph = models.graph_of(name, model)
    context = context_of(name, with_twins(model, graph, kinds))
    applied = first_half_of(graph, kinds)
    assert difference(model, applied, {}, context.batches) > 0.1
    _, values = both(context, applied, SMALLEST_RIDGE)
    assert difference(model, applied, values, context.batches) < 1e-4


@pytest.mark.parametrize("name", ["resnet_basic", "resnet_bottleneck", "cnn"])
def test_batch_norms_keep_the_statistics_of_real_data(name: str) -> None:
    """They divide by those of the synthetic inputs only while both networks run."""
    model = models.make(name)
    graph = models.graph_of(name, model)
    context = context_of(name, with_twins(model, graph, ALL), **synthetic(name))
    applied = first_half_of(graph)
    _, values = both(context, applied, SMALLEST_RIDGE)
    assert any(n.endswith("running_mean") for n in values)
    assert difference(model, applied, values, context.batches) < 1e-4


@pytest.mark.parametrize("name", ["llama", "vit", "cnn_residual", "mlp"])
def test_most_of_what_the_ridge_left_of_an_exact_solution_is_taken_back(name: str) -> None:
    model = models.make(name)
    graph = models.graph_of(name, model)
    context = context_of(name, with_twins(model, graph, FEED_FORWARD))
    applied = first_half_of(graph, FEED_FORWARD)
    one_shot, values = both(context, applied)
    left = difference(model, applied, one_shot, context.batches)
    assert left > 1e-3 and difference(model, applied, values, context.batches) < 0.3 * left


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm", "resnet_basic", "cnn_residual"])
def test_the_model_is_left_exactly_as_it_was(name: str) -> None:
    model = models.make(name).train()
    next(model.children()).eval()
    model.get_parameter(next(n for n, _ in model.named_parameters())).requires_grad_(False)
    own: list[str] = []
    handle = model.register_forward_hook(lambda *args: own.append("called"))
    graph = models.graph_of(name, model)
    blocks = graph.of_kind("layer")
    dropped = [Cut(s.name, tuple(range(1, s.units))) for s in blocks[:1] if 0 not in s.protected and s.units > 1]
    applied = AppliedCuts(graph, (*first_half_of(graph).cuts, *dropped))
    context = context_of(name, model, **synthetic(name))
    one_shot = repair_values(context, applied, Repair())
    before, tensors = state_of(model), copy.deepcopy(model.state_dict())
    with context.calibrated():
        SideBySide(model, context.signals, applied, one_shot).run(context.batches)
    assert state_of(model) == before
    assert all(torch.equal(tensor, tensors[n]) for n, tensor in model.state_dict().items())
    assert tensors.keys() == model.state_dict().keys()
    handle.remove()


def state_of(model: nn.Module) -> dict[str, Any]:
    """All about a model that isn't the value of a tensor, and the state of the generator of random numbers."""
    hooks = {n: (list(m._forward_hooks), list(m._forward_pre_hooks), m.training) for n, m in model.named_modules()}
    parameters = {n: (id(p), p.requires_grad, p.grad is None) for n, p in model.named_parameters()}
    buffers = {n: id(b) for n, b in model.named_buffers()}
    return {"hooks": hooks, "parameters": parameters, "buffers": buffers, "random": torch.get_rng_state().tolist()}


def test_an_error_in_the_middle_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make("llama").train()
    context = context_of("llama", model)
    applied = first_half_of(context.graph)
    one_shot, before = repair_values(context, applied, Repair()), state_of(model)

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(side_by_side, "best_fit", broken)
    with pytest.raises(ZeroDivisionError):
        SideBySide(model, context.signals, applied, one_shot).run(context.batches)
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("make", "shape", "kept", "fitted"),
    [
        (grouped, (64, 3, 12, 12), {"2.weight", "2.bias"}, {"6.weight", "6.bias"}),
        (transposed, (64, 3, 6, 6), {"2.weight"}, {"4.weight", "4.bias"}),
        (Recurrent, (64, 9, 6), {"rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1", "head.weight"}, set()),
    ],
)
def test_what_cannot_be_fitted_side_by_side_keeps_its_one_shot_values(
    make: Callable[[], nn.Module], shape: tuple[int, ...], kept: set[str], fitted: set[str]
) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = models.roughened(make()).eval()
    context = ScoringContext(graph=build_graph(model, inputs[:2]), model=model, data=(inputs,))
    one_shot, values = both(context, first_half_of(context.graph))
    assert {n for n in values if torch.equal(values[n], one_shot[n])} >= kept
    assert {n for n in values if not torch.equal(values[n], one_shot[n])} == fitted


@pytest.mark.parametrize("name", ["mixtral", "switch_transformers"])
def test_a_mixture_of_experts_keeps_its_one_shot_values(name: str) -> None:
    """Experts in one tensor, and experts with modules of their own: both read tokens of either half as they come."""
    model = ARCHITECTURES[name].build()
    context = ScoringContext(graph=build_graph(model), model=model, calibration=Calibration(tokens=128, length=16))
    one_shot, values = both(context, first_half_of(context.graph, ("neuron",)))
    assert values.keys() == one_shot.keys() and len(values) > 1
    assert all(torch.equal(values[n], one_shot[n]) for n in values)


def test_a_grouped_conv_with_a_batch_norm_behind_it_costs_the_others_nothing() -> None:
    """Its one-shot shift counts from the statistics that the norm has while both networks run."""
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU()),
    )
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5))
    inputs = torch.randn(4, 3, 12, 12)
    graph = build_graph(models.roughened(model).eval(), inputs)
    model = with_twins(model, graph, ALL)
    context = ScoringContext(graph=graph, model=model, example_inputs=inputs, calibration=Calibration(tokens=2048))
    applied = first_half_of(graph)
    one_shot, values = both(context, applied, SMALLEST_RIDGE)
    assert "3.running_mean" in one_shot
    assert difference(model, applied, values, context.batches) < 1e-4


def test_a_batch_norm_without_statistics_takes_up_no_shift() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    inputs = torch.randn(32, 3, 12, 12)
    graph = build_graph(models.roughened(model).eval(), inputs[:4])
    context = ScoringContext(graph=graph, model=with_twins(model, graph, ALL), data=(inputs,))
    applied = first_half_of(graph)
    _, values = both(context, applied, SMALLEST_RIDGE)
    assert difference(model, applied, values, context.batches) < 1e-4


class Pooled(nn.Module):
    """A classifier that reads one vector for each padded text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            nn.Embedding(models.VOCABULARY, 8),
            nn.Linear(8, 20),
            nn.Linear(20, 8),
            nn.Linear(8, 5),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = (self.embed(input_ids) * attention_mask[..., None]).sum(1)
        return self.head(x + self.down(torch.relu(self.up(x))))


def test_texts_that_were_pooled_are_judged_text_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = Pooled().eval(), data_for("bert")
    context = ScoringContext(graph=build_graph(model, data[0]), model=model, data=data)
    applied, judged = first_half_of(context.graph), []
    fit = side_by_side.best_fit
    monkeypatch.setattr(side_by_side, "best_fit", lambda x, t, j, c: judged.append(j) or fit(x, t, j, c))
    both(context, applied)
    (found,) = judged
    assert found.nonzero().flatten().tolist() == list(range(JUDGED - 1, EXAMPLES, JUDGED))


def a_consumer(examples: int) -> tuple[Any, Tensor, Tensor]:
    """A linear layer that reads a pruned space and has a bias, random inputs `[examples, kept]`, and who judges."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3)), torch.randn(64, 5)
    context = ScoringContext(graph=build_graph(model, inputs), model=model, data=(inputs,))
    applied = first_half_of(context.graph)
    run = SideBySide(model, context.signals, applied, repair_values(context, applied, Repair()))
    (consumer,) = run.consumers.values()
    return consumer, torch.randn(examples, len(consumer.keep)), torch.arange(examples) % JUDGED == JUDGED - 1


def test_a_fit_finds_the_matrix_that_wrote_the_target() -> None:
    consumer, x, judged = a_consumer(400)
    matrix = torch.randn(3, x.shape[1])
    found = best_fit(x, x @ matrix.T + 7, judged, consumer)
    assert float((found.weight - matrix).norm()) < 0.02 * float((consumer.one_shot().weight - matrix).norm())
    torch.testing.assert_close(found.added, torch.full((3,), 7.0), atol=0.02, rtol=0)


def test_a_fit_to_noise_loses_against_the_one_shot_weights_with_their_mean_moved() -> None:
    consumer, x, judged = a_consumer(80)
    noise = torch.where(judged[:, None], 0.0, 5.0) * torch.randn(80, 3)
    target = x @ consumer.one_shot().weight.T + 3 + noise
    found = best_fit(x, target, judged, consumer)
    assert torch.equal(found.weight, consumer.one_shot().weight)
    torch.testing.assert_close(found.added, 3 + noise.mean(0), atol=1e-5, rtol=0)


def test_a_consumer_that_can_do_without_what_went_keeps_its_own_weights() -> None:
    consumer, x, judged = a_consumer(80)
    own = consumer.weight[:, consumer.keep]
    found = best_fit(x, x @ own.T, judged, consumer)
    torch.testing.assert_close(found.weight, own, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.added, torch.zeros(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("can_shift", [True, False])
def test_from_the_side_of_few_samples_a_fit_is_the_same(can_shift: bool) -> None:
    torch.manual_seed(0)
    x, rest = torch.randn(40, 12, dtype=torch.float64) + 2, torch.randn(40, 3, dtype=torch.float64)
    by_features = _Sums.of(x[:30], rest[:30])
    by_samples = _Samples(x, rest, x @ x.T).first(30)
    for wanted, found in [
        (by_features.ridge(0.1, can_shift), by_samples.ridge(0.1, can_shift)),
        (
            (by_features + _Sums.of(x[30:], rest[30:])).ridge(1.0, can_shift),
            _Samples(x, rest, x @ x.T).ridge(1.0, can_shift),
        ),
    ]:
        torch.testing.assert_close(found.weight, wanted.weight)
        torch.testing.assert_close(found.added, wanted.added)
        torch.testing.assert_close(found.outputs(x), wanted.outputs(x))


def test_fewer_positions_than_features_are_fitted_from_the_samples_side(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, x, judged = a_consumer(4)
    assert len(x) < x.shape[1]
    x = torch.tensor([1.0, -2.0, 3.0, 2.0])[:, None] * x[:1]  # one direction, so that four positions tell it
    target = x @ torch.randn(3, x.shape[1]).T
    monkeypatch.setattr(_Sums, "of", lambda *args: pytest.fail("as many sums as features"))
    found = best_fit(x, target, judged, consumer)
    left = x @ found.weight.T + found.added - target
    before = x @ consumer.one_shot().weight.T + consumer.one_shot().added - target
    assert float(left.norm()) < 0.2 * float(before.norm())


def test_with_too_few_examples_to_judge_by_the_one_shot_fit_stays() -> None:
    consumer, x, judged = a_consumer(80)
    for nothing_learned in (torch.zeros_like(judged), torch.ones_like(judged)):
        found = best_fit(x, torch.randn(80, 3), nothing_learned, consumer)
        assert torch.equal(found.weight, consumer.one_shot().weight)
        assert torch.equal(found.added, consumer.one_shot().added)


def depthwise() -> nn.Sequential:
    """Random weights and unused batch norms: deep inside hardly anything varies."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    for width, following in ((16, 24), (24, 32), (32, 40)):
        layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
        layers += [nn.Conv2d(width, following, 1, bias=False), nn.BatchNorm2d(following), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 7)).eval()


@pytest.mark.parametrize("given", [True, False])
def test_a_repair_does_no_harm_where_activations_hardly_vary(given: bool) -> None:
    model, generator = depthwise(), torch.Generator().manual_seed(1)
    example = torch.randn(2, 3, 24, 24, generator=generator)
    data = [torch.randn(32, 3, 24, 24, generator=generator)] if given else None
    small: Any = compress(model, ratio=0.3, data=data, example_inputs=example, scorer="obs", tokens=512)
    graph = build_graph(model, example)
    context = ScoringContext(
        graph=graph,
        model=model,
        data=None if data is None else tuple(data),
        example_inputs=example,
        calibration=Calibration(tokens=512),
    )
    applied = AppliedCuts(graph, small.dnge.plan.cuts)
    assert applied.cuts
    ways = (model, small, MaskedModel(model, applied))
    with torch.no_grad():
        whole, repaired, bare = (torch.cat([outputs_of(way, batch) for batch in context.batches]) for way in ways)
    assert torch.isfinite(repaired).all()
    assert all(torch.isfinite(t).all() for t in small.state_dict().values())
    assert float((repaired - whole).norm()) <= (1 + 1e-6) * float((bare - whole).norm())


HARM: dict[str, Callable[[Tensor], Tensor]] = {
    "large": lambda t: 100 * t,
    "not a number": lambda t: torch.full_like(t, torch.nan),
}


@pytest.mark.parametrize(("compensate", "way"), [("lstsq", "side by side"), ("auto", "joint fit")])
@pytest.mark.parametrize("harm", HARM)
def test_of_all_ways_to_repair_the_one_with_the_least_damage_is_taken(
    harm: str, compensate: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair = Repair(compensate=compensate)
    context = context_of("mlp", models.make("mlp"))
    applied = first_half_of(context.graph)

    def spoilt(make: Callable[..., Values]) -> Callable[..., Values]:
        return lambda *args: {n: HARM[harm](value) for n, value in make(*args).items()}

    found = best_repair(context, applied, repair)
    assert list(found.damages) == ["none", "bias", "least squares", way]
    assert found.damage == found.damages[way] <= found.damages["least squares"]
    one_shot = repair_values(context, applied, repair)
    monkeypatch.setattr(trial, "_run", spoilt(trial._run))
    found = best_repair(context, applied, repair)
    assert found.damage == found.damages["least squares"] < found.damages[way]
    assert all(torch.equal(found.values[n], one_shot[n]) for n in one_shot)
    monkeypatch.setattr(trial, "least_squares_repair", spoilt(trial.least_squares_repair))
    found = best_repair(context, applied, repair)
    assert found.values == {} and found.damage == found.damages["none"]


def test_a_recipe_without_least_squares_is_repaired_by_no_more_than_it_asks_for() -> None:
    context = context_of("llama_bias", models.make("llama_bias"))
    applied = first_half_of(context.graph)
    assert best_repair(context, applied, Repair(compensate="none")).values == {}
    found = best_repair(context, applied, Repair(compensate="bias"))
    assert list(found.damages) == ["none", "bias"] and found.damage == found.damages["bias"]
    tensors = context.model.state_dict()
    for cut, slot in consumers_of(applied):
        stays = slot.rows(torch.tensor(cut.keep))
        kept = found.values[slot.param].index_select(slot.axis, stays)
        assert torch.equal(kept, tensors[slot.param].index_select(slot.axis, stays))
