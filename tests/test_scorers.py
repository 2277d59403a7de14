"""Every scorer on every model, and magnitude against torch-pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import pytest
import torch
import torch_pruning as tp
from torch import nn

from dnge_compress import scorers
from dnge_compress.core.errors import DataError, PlanError, UnknownNameError
from dnge_compress.graph.types import PRUNABLE, ModelGraph, Scores, Space
from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.calibration import synthesize


def context_of(name: str, *, seed: int = 0) -> ScoringContext:
    """A tiny model with a few calibration inputs."""
    model = models.make(name)
    example = None if models.MODELS[name].family else models.example_inputs(name)
    batches = synthesize(model, Calibration(tokens=64, length=16), example)[:2]
    return ScoringContext(
        graph=models.graph_of(name, model), model=model, data=tuple(batches), calibration=Calibration(seed=seed)
    )


@pytest.mark.parametrize("name", models.MODELS)
def test_every_scorer_gives_every_prunable_unit_of_every_model_a_finite_score(name: str) -> None:
    context = context_of(name)
    for scorer in scorers.SCORERS.names():
        found = scorers.score(scorer, context)
        spaces = context.graph.of_kind(*PRUNABLE)
        assert set(found.units) == {s.name for s in spaces}, scorer
        assert (found.scorer, found.fingerprint) == (scorer, context.graph.fingerprint)
        for space in spaces:
            values = found.units[space.name]
            assert values.shape == (space.units,) and values.dtype == torch.float32, (scorer, space.name)
            assert torch.isfinite(values).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "cnn", "mlp"])
def test_a_unit_that_nobody_reads_scores_lowest(name: str) -> None:
    """Larger = keep, for every scorer that looks at the model."""
    context = context_of(name)
    space = context.graph.of_kind("neuron", "channel")[0]
    zero_unit(context, space, 2)
    for scorer in ("obs", "fisher", "flap", "magnitude"):
        assert scorers.score(scorer, context).units[space.name].argmin() == 2, scorer


def test_units_that_are_never_active_cost_only_the_ridge() -> None:
    context = context_of("mlp")
    with torch.no_grad():
        context.model[0].weight[[3, 5]] = 0
        context.model[0].bias[[3, 5]] = -1.0
    costs = scorers.score("obs", context).units["0"]
    assert set(costs.argsort()[:2].tolist()) == {3, 5} and float(costs[[3, 5]].max()) < 0.01 * float(costs.max())


def test_pinned_blocks_cost_most() -> None:
    context = context_of("resnet_basic")
    protected = [s for s in context.graph.of_kind("layer") if 0 < len(s.protected) < s.units]
    assert protected
    costs = scorers.score("obs", context).units
    for space in protected:
        free = [i for i in range(space.units) if i not in space.protected]
        assert costs[space.name][list(space.protected)].min() > costs[space.name][free].max()


@pytest.mark.parametrize("scorer", scorers.SCORERS.names())
def test_scores_are_the_same_each_time_whatever_the_global_seed(scorer: str) -> None:
    first = scorers.score(scorer, context_of("llama"))
    torch.manual_seed(77)
    second = scorers.score(scorer, context_of("llama"))
    for space, values in first.units.items():
        torch.testing.assert_close(values, second.units[space], rtol=1e-5, atol=0)


def test_random_scores_follow_the_seed() -> None:
    one, other = (scorers.score("random", context_of("mlp", seed=s)).units["0"] for s in (0, 1))
    assert not torch.equal(one, other)


def test_weights_only_scorers_run_nothing() -> None:
    model = models.make("mlp")
    context = ScoringContext(graph=models.graph_of("mlp", model), model=model)
    for scorer in ("magnitude", "random"):
        assert scorers.score(scorer, context).units
    assert not context.__dict__.keys() & {"signals", "batches"}


@pytest.mark.parametrize("scorer", ["fisher", "flap", "taylor", "wanda"])
def test_scorers_of_real_data_say_so_if_there_is_none(scorer: str) -> None:
    with pytest.raises(DataError, match=rf"'{scorer}' needs real data; pass data="):
        scorers.score(scorer, replace(context_of("mlp"), data=None))


def test_an_unknown_scorer_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown scorer 'magnitud'; did you mean 'magnitude'"):
        scorers.score("magnitud", context_of("mlp"))


def test_a_score_that_is_not_finite_names_its_space() -> None:
    with pytest.raises(PlanError, match="'mine'.*space 'ffn.0'"):
        Scores(units={"ffn.0": torch.tensor([1.0, float("nan")])}, scorer="mine", fingerprint="")


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "resnet_basic", "resnet_bottleneck", "cnn_plain"])
def test_magnitude_ranks_as_torch_prunings_group_magnitude(name: str) -> None:
    ranks_alike(name)


@pytest.mark.parametrize("name", ["cnn", "cnn_residual", "mlp"])
def test_magnitude_of_plain_modules_ranks_as_torch_prunings(name: str) -> None:
    ranks_alike(name)


def ranks_alike(name: str) -> None:
    """Our scores and torch-pruning's importance agree up to a factor, so the order is the same."""
    context = context_of(name)
    ours = scorers.score("magnitude", context).units
    theirs = dependency_graph(context.model, models.example_inputs(name))
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    spaces = context.graph.of_kind("neuron", "channel")
    assert spaces
    for space in spaces:
        expected = importance(group_of(theirs, context.model, context.graph, space))
        torch.testing.assert_close(ours[space.name], expected, rtol=1e-4, atol=1e-5, msg=space.name)
        assert torch.equal(ours[space.name].argsort(), expected.argsort()), space.name


def dependency_graph(model: nn.Module, inputs: Any) -> tp.DependencyGraph:
    """torch-pruning's view of a tiny model; every container anew, as its defaults are shared."""
    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False
    return tp.DependencyGraph().build_dependency(
        model,
        inputs,
        output_transform=lambda out: out if isinstance(out, torch.Tensor) else next(iter(out.values())),
        customized_pruners={},
        ignored_layers=[],
        ignored_params=[],
        verbose=False,
    )


def group_of(theirs: tp.DependencyGraph, model: nn.Module, graph: ModelGraph, space: Space) -> Any:
    """torch-pruning's group of all units of a space."""
    root = next(s for s in graph.slots_of(space.name) if not graph.consumes(s))
    module = model.get_submodule(root.param.rpartition(".")[0])
    prune = theirs.get_pruner_of_module(module).prune_out_channels
    return theirs.get_pruning_group(module, prune, list(range(space.units)))


@torch.no_grad()
def zero_unit(context: ScoringContext, space: Space, unit: int) -> None:
    """Nothing writes the unit and nothing reads it."""
    for slot in context.graph.slots_of(space.name):
        if not slot.param.endswith("running_var"):
            first = slot.offset + unit * slot.width
            context.weights[slot.param].narrow(slot.axis, first, slot.width).zero_()


def test_wanda_is_the_mean_weight_times_the_norm_of_the_activation() -> None:
    context = context_of("bert")
    seen: list[torch.Tensor] = []
    (slot,) = context.graph.consumers("ffn.0")
    consumer = context.model.get_submodule(slot.param.removesuffix(".weight"))
    handle = consumer.register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, 1)))
    for batch in context.batches:
        context.model(**batch)
    handle.remove()
    norm = torch.cat(seen).square().mean(0).sqrt()
    expected = consumer.weight.abs().mean(0) * norm
    found = scorers.score("wanda", context).units["ffn.0"]
    torch.testing.assert_close(found, (expected / expected.mean()).detach(), rtol=1e-4, atol=1e-6)


def test_taylor_is_at_most_the_root_of_twice_fisher_and_ranks_alike() -> None:
    """E|x| ≤ √E x², for the same mask gradients x; where they are hardly ever zero both rank alike."""
    context = context_of("bert")
    taylor, fisher = (scorers.score(s, context).units for s in ("taylor", "fisher"))
    for space in context.signals:
        assert (taylor[space] <= (2 * fisher[space]).sqrt() * (1 + 1e-4)).all()
        assert float(torch.corrcoef(torch.stack([taylor[space], fisher[space].sqrt()]))[0, 1]) > 0.8
