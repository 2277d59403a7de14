"""How well predicted costs rank units against the true ones, network by network, and how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FLOOR
from dnge_compress.zoo.pretrain.targets import TrainingExample, rank_correlation

Logs = Mapping[str, Tensor]  # space → log costs of its units
Predict = Callable[[TrainingExample], Logs]


def obs_logs(example: TrainingExample) -> Logs:
    """Log OBS costs on synthetic inputs."""
    return {name: example.obs_costs[name].clamp_min(FLOOR).log() for name in example.targets}


def corrected_by(encoder: DNGEncoder) -> Predict:
    """Log costs as an encoder corrects them."""

    @torch.no_grad()
    def predict(example: TrainingExample) -> Logs:
        found = encoder(example.graph, example.weights, example.features, example.layer_logs)
        obs_costs = obs_logs(example)
        return {name: obs_costs[name] + c for name, c in {**found.spaces, **found.layers}.items()}

    return predict


def within_spaces(logs: Logs, example: TrainingExample) -> float:
    """Mean rank correlation inside the spaces of more than two units; layer spaces are left out."""
    layers = {s.name for s in example.graph.of_kind("layer")}
    names = [n for n in example.targets if n not in layers and len(example.targets[n]) > 2]
    return statistics.mean(rank_correlation(logs[n], example.targets[n]) for n in names)


def over_network(logs: Logs, example: TrainingExample) -> float:
    """Rank correlation over all units and droppable blocks of the network at once."""
    return rank_correlation(_together(logs, example), _together(example.targets, example))


def log_error(logs: Logs, example: TrainingExample) -> float:
    """Mean absolute error of the log costs, in log nats."""
    return float((_together(logs, example) - _together(example.targets, example)).abs().mean())


def compared(encoder: DNGEncoder, examples: Sequence[TrainingExample]) -> dict[str, float]:
    """Mean correlations and errors of OBS and of an encoder on the same networks; nothing without any."""
    if not examples:
        return {}
    rows: dict[str, float] = {}
    for who, predict in (("obs", obs_logs), ("encoder", corrected_by(encoder))):
        logs = [predict(example) for example in examples]
        for what, measure in (
            ("within a space", within_spaces),
            ("over the network", over_network),
            ("log error", log_error),
        ):
            found = [measure(x, example) for x, example in zip(logs, examples, strict=True)]
            rows[f"{what}, {who}"] = round(statistics.mean(found), 4)
    rows["reliability within a space"] = round(statistics.mean(example.reliability for example in examples), 4)
    return rows


def _together(logs: Logs, example: TrainingExample) -> Tensor:
    return torch.cat([logs[n][example.counted[n]] for n in example.targets])
