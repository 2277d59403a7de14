"""Training encoders together: each learns from its own part, as if it were alone, and a killed run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoder_folds import folds, interval
from models import example_inputs, make
from torch.func import stack_module_state

from dnge_compress.core.errors import CheckpointError, DataError
from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import node_features
from dnge_compress.encoder.model import EncoderConfig
from dnge_compress.graph.families import build_graph
from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext, obs
from dnge_compress.signals.calibration import synthesize
from dnge_compress.zoo.pretrain import fit as fitting
from dnge_compress.zoo.pretrain.fit import Fold, batched_losses, example_loss, fit, is_held_out
from dnge_compress.zoo.pretrain.judging import obs_logs, over_network
from dnge_compress.zoo.pretrain.targets import TrainingExample, rank_correlation

HIDDEN = 8


def example(name: str) -> TrainingExample:
    """A tiny network whose true costs are the OBS costs times something smooth."""
    model = make(name)
    example = example_inputs(name)
    plain = example if isinstance(example, torch.Tensor) else None
    graph = build_graph(model, plain)
    context = ScoringContext(
        graph=graph, model=model, data=tuple(synthesize(model, Calibration(tokens=64, length=16), plain)[:2])
    )
    with torch.no_grad():
        obs_costs = obs.score(context).units
        features = node_features(context.signals, obs_costs)
    targets = {
        n: v.clamp_min(1e-12).log() + torch.linspace(-1, 1, len(v)) + 0.9 * (i % 3)
        for i, (n, v) in enumerate(obs_costs.items())
    }
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    return TrainingExample(
        name=f"{name}-000",
        graph=graph,
        weights=weights,
        features=features,
        obs_costs=obs_costs,
        targets=targets,
        matrices={},
        rivals={},
        reliability=1.0,
        reliability_over_all=1.0,
    )


@pytest.fixture(scope="module")
def examples() -> list[TrainingExample]:
    return [example("llama"), example("bert"), example("mlp")]


PARTS = [Fold("all", lambda x: True), Fold("bert", lambda x: x.family == "bert"), Fold("none", lambda x: False)]


def small() -> DNGEncoder:
    return DNGEncoder(EncoderConfig(hidden=HIDDEN))


def test_encoders_side_by_side_lose_what_each_loses_alone(examples: list[TrainingExample]) -> None:
    torch.manual_seed(0)
    encoders = [small() for _ in range(3)]
    for p in (p for e in encoders for p in e.parameters()):
        torch.nn.init.normal_(p, std=0.2)
    params, _ = stack_module_state(encoders)
    for item in examples:
        together = batched_losses(encoders[0].train(), params, item, noise=0.0)
        alone = [
            example_loss(e.eval()(item.graph, item.weights, item.features, item.layer_logs), item) for e in encoders
        ]
        assert torch.allclose(together, torch.stack(alone), atol=1e-5)


def test_each_encoder_learns_from_its_own_part_alone(examples: list[TrainingExample]) -> None:
    found = fit(examples, PARTS[:2], steps=24, seed=0, make=small)
    torch.manual_seed(0)
    start = [small() for _ in PARTS]

    def loss(encoder: DNGEncoder, item: TrainingExample) -> float:
        with torch.no_grad():
            return float(example_loss(encoder(item.graph, item.weights, item.features, item.layer_logs), item))

    assert loss(found["bert"], examples[1]) < 0.95 * loss(start[1], examples[1])
    assert all(loss(found["all"], x) < loss(start[0], x) for x in examples)
    assert loss(found["bert"], examples[0]) > loss(found["all"], examples[0])


def test_a_killed_training_goes_on_to_the_same_weights(
    examples: list[TrainingExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "KEEP_EVERY", 2)
    whole = fit(examples, PARTS[:1], steps=6, seed=1, make=small)["all"]
    original, calls = fitting.batched_losses, []

    def killed(*args: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(fitting, "batched_losses", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(examples, PARTS[:1], steps=6, seed=1, make=small, state=tmp_path / "state.pt")
    monkeypatch.setattr(fitting, "batched_losses", original)
    again = fit(examples, PARTS[:1], steps=6, seed=1, make=small, state=tmp_path / "state.pt")["all"]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_fold_leaves_out_what_its_name_says() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name, self.family = name, name.partition("-")[0]

    by_name = {f.name: f for f in folds()}
    assert not by_name["without vit"].learns(Named("vit-003")) and by_name["without vit"].learns(Named("mlp-000"))
    assert by_name["vision"].learns(Named("cnn-001")) and not by_name["vision"].learns(Named("vit-003"))
    assert by_name["language"].learns(Named("bert-006")) and not by_name["language"].learns(Named("vit-003"))


def test_relatives_of_one_run_stand_on_the_same_side() -> None:
    runs = [f"mlp-{i:03d}" for i in range(60)]
    assert 4 < sum(map(is_held_out, runs)) < 18
    assert all(is_held_out(r) == is_held_out(f"{r}@20") == is_held_out(f"{r}+bare") for r in runs)


def test_correlations_and_intervals() -> None:
    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 20, 30])) == 1
    assert rank_correlation(torch.ones(3), torch.tensor([1.0, 2, 3])) == 0
    mean, low, high = interval({"many": [1.0, 2.0, 3.0] * 3, "one": [4.0]})
    assert mean == 3.0 and low < 3.0 < high  # families weigh alike, however many networks they have


def test_the_obs_costs_is_judged_on_all_units_at_once(examples: list[TrainingExample]) -> None:
    assert 0.5 < over_network(obs_logs(examples[0]), examples[0]) < 1


def test_a_state_of_another_training_is_refused(examples: list[TrainingExample], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "KEEP_EVERY", 1)
    fit(examples, PARTS[:1], steps=1, seed=1, make=small, state=tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="another training"):
        fit(examples, PARTS[:1], steps=1, seed=2, make=small, state=tmp_path / "state.pt")


def test_a_fold_without_examples_is_refused(examples: list[TrainingExample]) -> None:
    with pytest.raises(DataError, match="'none'"):
        fit(examples, PARTS[2:], steps=1, seed=0, make=small)


def test_blocks_that_cannot_go_do_not_count(examples: list[TrainingExample]) -> None:
    protected = example("resnet_basic")
    layers = list(protected.graph.of_kind("layer"))
    assert layers and all(0 not in protected.counted[s.name] for s in layers)
