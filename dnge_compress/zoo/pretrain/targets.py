"""What removal really costs, on real data, for every unit of a zoo network: what the encoder learns to predict.

Costs are KL divergences of the network's output on real inputs, in nats per label, after repair on synthetic ones (the
repair that a user without data gets):

- units: OBS costs on two draws of real data (their rank correlation is what the choice of data leaves open),
  scaled so that the units up to each of three measured cuts of their space add up to the cost of that cut;
- heads: each measured by itself;
- layers: each block skipped, measured;
- matrices: the log of the loss gradient's mean square.

A network whose body stands alone (BERT, ViT, ResNet) is measured a second time without its head: then what counts is
the error of its hidden states, as for the sentence and image encoders that people prune.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from dnge_compress import scorers
from dnge_compress.core.tensors import read_tensors, write_tensors
from dnge_compress.encoder.features import FLOOR, node_features
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import Cut, ModelGraph
from dnge_compress.plans.trial import measured_divergence
from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext, obs
from dnge_compress.signals.divergence import outputs_of
from dnge_compress.signals.inference import Inputs, inference_mode_of
from dnge_compress.zoo.batches import ZooBatch, example_batches, loss
from dnge_compress.zoo.blueprint import Blueprint
from dnge_compress.zoo.build import load
from dnge_compress.zoo.data_root import DataRoot

CALIBRATION_TOKENS = 4096
MEASURED_CUTS = (0.25, 0.5, 0.75)  # shares of a space's units, removed together
LEAST_DAMAGE = 1e-7  # nats; less is rounding
RIVALS = ("magnitude", "fisher", "taylor", "flap", "wanda")  # scored on the first half, for comparison
BARE_FAMILIES = ("bert", "vit", "resnet")
HEADS_MEASURED = 8  # per space


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """One network with its true costs: everything the encoder sees, and what it should say (log nats)."""

    name: str
    graph: ModelGraph
    weights: dict[str, Tensor]
    features: dict[str, Tensor]
    obs_costs: dict[str, Tensor]
    targets: dict[str, Tensor]
    matrices: dict[str, Tensor]
    rivals: dict[str, Tensor]  # "<scorer>/<space>" → that scorer's units, on real data where it needs any
    reliability: float  # rank correlation of the OBS costs on the two draws, mean over spaces
    reliability_over_all: float  # and over all units of the network at once

    @property
    def family(self) -> str:
        """Family in the zoo's terms."""
        return self.name.partition("-")[0]

    @cached_property
    def counted(self) -> dict[str, Tensor]:
        """Indices of the units of each space whose target was measured: of blocks, those that may go."""
        every = {name: torch.arange(len(v)) for name, v in self.targets.items()}
        for space in self.graph.of_kind("layer"):
            free = [i for i in range(space.units) if i not in space.protected and space.units > 1]
            every[space.name] = torch.tensor(free, dtype=torch.long)
        return every

    @cached_property
    def layer_logs(self) -> dict[str, Tensor]:
        """Log of the (measured) cost of each block, per layer space."""
        return {s.name: self.obs_costs[s.name].clamp_min(FLOOR).log() for s in self.graph.of_kind("layer")}


def examples_of(folder: Path) -> list[str]:
    """Names of the examples that one network gives: its own, and `<name>+bare` for the fully trained bodies."""
    name = folder.name
    bare = name.partition("-")[0] in BARE_FAMILIES and "@" not in name
    return [name, f"{name}+bare"] if bare else [name]


def make_targets(folder: Path, example: str, data_root: DataRoot) -> Path:
    """Measure one network and write `<example>.safetensors` into its folder; a finished file is left as it is."""
    path = folder / f"{example}.safetensors"
    if path.is_file():
        return path
    model, blueprint = _opened(folder, example, data_root)
    language = blueprint.is_language
    size = 32 if language else 128
    halves = [
        example_batches(blueprint, "train", count=2, batch_size=size, seed=seed, data_root=data_root)
        for seed in (101, 202)
    ]
    judged = example_batches(blueprint, "held-out", count=1, batch_size=size, seed=303, data_root=data_root)[0]
    graph = build_graph(model, _example_input(judged))
    context = ScoringContext(
        graph=graph,
        model=model,
        calibration=Calibration(tokens=CALIBRATION_TOKENS),
        example_inputs=_example_input(judged),
    )
    with torch.no_grad():
        obs_costs = obs.score(context).units
        features = node_features(context.signals, obs_costs)
        real = [ScoringContext(graph=graph, model=model, data=tuple(b.inputs for b in half)) for half in halves]
        costs = [{s: obs.unit_costs(c, s) for s in c.signals} for c in real]
        judge = _Judge(context, judged.inputs)
        targets = {s: judge.unit_targets(s, obs_costs[s], torch.stack([c[s] for c in costs])) for s in costs[0]}
        targets |= judge.layer_targets()
        rivals = {f"{who}/{k}": v.clone() for who in RIVALS for k, v in scorers.score(who, real[0]).units.items()}
    parts = {"features": features, "obs_costs": obs_costs, "targets": targets, "rivals": rivals}
    if not example.endswith("+bare"):
        parts["matrices"] = _matrix_targets(model, graph, halves[0])
    tensors = {f"{part}/{k}": v.float() for part, values in parts.items() for k, v in values.items()}
    write_tensors(path, tensors, _reliability(*costs))
    return path


def read_example(folder: Path, example: str, data_root: DataRoot) -> TrainingExample:
    """A network of the zoo with its targets, ready for the encoder."""
    model, blueprint = _opened(folder, example, data_root)
    batch = example_batches(blueprint, "held-out", count=1, batch_size=2, seed=0, data_root=data_root)[0]
    graph = build_graph(model, _example_input(batch))
    tensors, reliability = read_tensors(folder / f"{example}.safetensors")
    parts: dict[str, dict[str, Tensor]] = {"features": {}, "obs_costs": {}, "targets": {}, "matrices": {}, "rivals": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    return TrainingExample(
        name=example,
        graph=graph,
        weights=weights,
        **parts,
        reliability=float(reliability["reliability"]),
        reliability_over_all=float(reliability["reliability_over_all"]),
    )


def _reliability(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, str]:
    inside = [rank_correlation(first[s], second[s]) for s in first if len(first[s]) > 2]
    whole = rank_correlation(*(torch.cat(list(half.values())) for half in (first, second)))
    return {"reliability": str(sum(inside) / max(1, len(inside))), "reliability_over_all": str(whole)}


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; 0 where a constant has no ranks."""
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return 0.0
    return float(spearmanr(a, b).statistic)


def _opened(folder: Path, example: str, data_root: DataRoot) -> tuple[Any, Blueprint]:
    model: Any
    model, blueprint = load(folder, data_root=data_root)
    if example.endswith("+bare"):
        name_or_path, model = model.name_or_path, model.base_model
        model.name_or_path = name_or_path
    return model.eval(), blueprint


class _Judge:
    """Measures cuts of one network on real inputs."""

    def __init__(self, context: ScoringContext, inputs: Inputs) -> None:
        self.context, self.inputs = context, [inputs]
        with inference_mode_of(context.model):
            self.reference = [outputs_of(context.model, inputs)]

    def unit_targets(self, space: str, obs_costs: Tensor, costs: Tensor) -> Tensor:
        """Log cost per unit of one space `[U]`; `costs` are those of OBS on two halves of real data `[2, U]`."""
        units = len(obs_costs)
        logs = costs.clamp_min(FLOOR).log().mean(0)
        if units < 2:
            return logs
        if self.context.graph.space(space).kind == "head":
            for u in range(min(units, HEADS_MEASURED)):
                logs[u] = self._cost(space, [v for v in range(units) if v != u]).log()
            return logs
        order = obs_costs.argsort()
        counts = sorted({min(units - 1, max(1, round(share * units))) for share in MEASURED_CUTS})
        costs_of_cuts = torch.stack([self._cost(space, sorted(order[n:].tolist())) for n in counts])
        paid = costs_of_cuts.cummax(0).values.diff(prepend=torch.zeros(1)).clamp_min(LEAST_DAMAGE)
        shift, first = torch.zeros(()), 0
        for last, increment in zip(counts, paid, strict=True):
            part = order[first:last]
            shift = increment.log() - logs[part].logsumexp(0)
            logs[part] += shift
            first = last
        logs[order[first:]] += shift  # beyond the last cut its scale goes on
        return logs

    def layer_targets(self) -> dict[str, Tensor]:
        """Log cost of skipping each block; blocks that can't go get the largest of their space."""
        found = {}
        for space in self.context.graph.of_kind("layer"):
            free = [i for i in range(space.units) if i not in space.protected]
            costs = torch.ones(space.units)
            for i in free if space.units > 1 else ():
                costs[i] = self._cost(space.name, [j for j in range(space.units) if j != i])
            costs[list(space.protected)] = max((float(costs[i]) for i in free), default=1.0)
            found[space.name] = costs.log()
        return found

    def _cost(self, space: str, keep: list[int]) -> Tensor:
        with inference_mode_of(self.context.model):
            applied = AppliedCuts(self.context.graph, (Cut(space, tuple(keep)),))
            found = measured_divergence(self.context, applied, self.inputs, self.reference, self.context.repair)
        return found.clamp_min(LEAST_DAMAGE)


def _matrix_targets(model: nn.Module, graph: ModelGraph, batches: list[ZooBatch]) -> dict[str, Tensor]:
    """Log of the mean squared gradient of every weight matrix, relative to the network's mean."""
    model.zero_grad()
    for batch in batches:
        loss(model, batch).backward()
    weights: dict[str, Any] = dict(model.named_parameters())
    logs = {
        p: weights[p].grad.square().mean().clamp_min(1e-30).log()
        for step in graph.steps
        for p in step.params
        if p in weights and weights[p].dim() > 1 and step.op not in ("embed", "norm", "batchnorm")
    }
    model.zero_grad(set_to_none=True)
    mean = torch.stack(list(logs.values())).mean()
    return {p: v - mean for p, v in logs.items()}


def _example_input(batch: ZooBatch) -> Tensor | None:
    return batch.inputs[:2] if isinstance(batch.inputs, Tensor) else None
