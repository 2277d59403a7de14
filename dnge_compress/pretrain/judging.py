"""How well predicted costs rank units against the true ones, network by network, and how sure that is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FLOOR
from dnge_compress.pretrain.targets import Lesson

Logs = Mapping[str, Tensor]  # space → log costs of its units
Predict = Callable[[Lesson], Logs]
RESAMPLES = 2000


def closed_form(lesson: Lesson) -> Logs:
    """Log costs of the closed form on the probes."""
    return {name: lesson.closed[name].clamp_min(FLOOR).log() for name in lesson.targets}


def corrected_by(encoder: DNGEncoder) -> Predict:
    """Log costs as an encoder corrects them."""

    @torch.no_grad()
    def predict(lesson: Lesson) -> Logs:
        found = encoder(lesson.graph, lesson.weights, lesson.features, lesson.layer_logs)
        closed = closed_form(lesson)
        return {name: closed[name] + c for name, c in {**found.units, **found.layers}.items()}

    return predict


def within_spaces(logs: Logs, lesson: Lesson) -> float:
    """Mean rank correlation inside the spaces of more than two units; layer spaces are left out."""
    layers = {s.name for s in lesson.graph.of_kind("layer")}
    names = [n for n in lesson.targets if n not in layers and len(lesson.targets[n]) > 2]
    return statistics.mean(rank_correlation(logs[n], lesson.targets[n]) for n in names) if names else 0.0


def over_network(logs: Logs, lesson: Lesson) -> float:
    """Rank correlation over all units and layers of the network at once."""
    names = list(lesson.targets)
    return rank_correlation(torch.cat([logs[n] for n in names]), torch.cat([lesson.targets[n] for n in names]))


def log_error(logs: Logs, lesson: Lesson) -> float:
    """Mean absolute error of the log costs, in log nats."""
    return float(torch.cat([logs[n] - lesson.targets[n] for n in lesson.targets]).abs().mean())


def compared(encoder: DNGEncoder, lessons: Sequence[Lesson]) -> dict[str, float]:
    """Mean correlations and errors of the closed form and of an encoder on the same networks."""
    rows: dict[str, float] = {}
    for who, predict in (("closed form", closed_form), ("encoder", corrected_by(encoder))):
        logs = [predict(lesson) for lesson in lessons]
        for what, measure in (
            ("within a space", within_spaces),
            ("over the network", over_network),
            ("log error", log_error),
        ):
            found = [measure(x, lesson) for x, lesson in zip(logs, lessons, strict=True)]
            rows[f"{what}, {who}"] = round(statistics.mean(found), 4)
    rows["reliability within a space"] = round(statistics.mean(lesson.reliability for lesson in lessons), 4)
    return rows


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; 0 where a constant has no ranks."""
    value = float(spearmanr(a, b).statistic)
    return value if value == value else 0.0


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over networks."""
    draw = random.Random(seed)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.fmean(values), means[round(0.025 * RESAMPLES)], means[round(0.975 * RESAMPLES) - 1]
