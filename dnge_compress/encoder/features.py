"""Node features of the snapshot: what synthetic inference says about each unit, on a log scale, free of size.

Every statistic appears twice: relative to the mean of its space (who is unusual here) and as that mean relative to
the whole network (which space is unusual).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dnge_compress.signals.signal import Signal, Signals

STATISTICS = ("cost", "alone", "variance", "square", "mean", "gradient", "mask", "consumer", "share")
FEATURES = 2 * len(STATISTICS)
FLOOR = 1e-12


def node_features(signals: Signals, costs: Mapping[str, Float[Tensor, " _"]]) -> dict[str, Float[Tensor, "_ F"]]:
    """Space → features `[U, 2 · statistics]`, for every space with signals; `costs` are those of OBS."""
    raw = {space: _statistics(signals[space], costs[space]) for space in signals}
    means = {space: values.mean(0) for space, values in raw.items()}
    everywhere = torch.stack(list(means.values())).mean(0)
    return {
        space: torch.cat([values - means[space], (means[space] - everywhere).expand_as(values)], -1).clamp(-12, 12)
        for space, values in raw.items()
    }


def _statistics(signals: Sequence[Signal], cost: Tensor) -> Tensor:
    """Logs of the statistics `[U, statistics]` of a space, summed over its consumers."""
    units = signals[0].units
    alone = variance = square = mean = gradient = mask = consumer = torch.zeros(units)
    for s in signals:
        weight = s.own_weight.float()
        weighted = (weight.square() * s.out_fisher[:, None]).sum(0)
        variance = variance + s.variance.view(units, -1).mean(1).cpu()
        square = square + s.square.view(units, -1).mean(1).cpu()
        mean = mean + s.mean[s.own].abs().view(units, -1).mean(1).cpu()
        alone = alone + (0.5 * weighted * s.variance).view(units, -1).sum(1).cpu()
        gradient = gradient + s.grad_square[s.own].view(units, -1).sum(1).cpu()
        mask = mask + s.fisher.cpu()
        consumer = consumer + weight.square().sum(0).view(units, -1).sum(1).cpu()
    share = cost.cpu() / (alone + FLOOR)  # what refitting the others can't make up for
    logs = [
        t.clamp_min(FLOOR).log() for t in (cost.cpu(), alone, variance, square, mean, gradient, mask, consumer, share)
    ]
    return torch.stack(logs, -1)
