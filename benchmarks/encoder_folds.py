"""Parts of the zoo that an encoder learns from, the rest of which judges it, and how sure a mean over families is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence

from dnge_compress.zoo.blueprint import FAMILIES, LANGUAGE
from dnge_compress.zoo.pretrain.fit import EVERYTHING, Fold
from dnge_compress.zoo.pretrain.targets import TrainingExample

NARROW = 128  # units per space, for the fold that is judged on wider networks
RESAMPLES = 2000


def folds() -> list[Fold]:
    """The base weights' own, each family left out, vision alone, language alone, and narrow networks alone."""
    found = [EVERYTHING]
    found += [Fold(f"without {family}", _all_but(family)) for family in FAMILIES]
    found += [
        Fold("vision", lambda example: example.family in ("mlp", "cnn", "resnet")),
        Fold("language", lambda example: example.family in LANGUAGE),
        Fold("narrow", lambda example: widest(example) <= NARROW),
    ]
    return found


def _all_but(family: str) -> Callable[[TrainingExample], bool]:
    return lambda example: example.family != family


def widest(example: TrainingExample) -> int:
    """Residual width of a transformer, most units of a hidden space elsewhere."""
    kinds = ("residual",) if example.family in (*LANGUAGE, "vit") else ("neuron", "channel")
    return max(s.units for s in example.graph.of_kind(*kinds))


def interval(by_family: Mapping[str, Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """Mean over families of their networks' means, and its 95 % interval by a bootstrap inside every family."""
    draw = random.Random(seed)
    groups = [list(values) for values in by_family.values() if values]

    def mean(pick: Callable[[list[float]], list[float]]) -> float:
        return statistics.fmean(statistics.fmean(pick(values)) for values in groups)

    means = sorted(mean(lambda values: draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return mean(lambda values: values), means[round(0.025 * RESAMPLES)], means[round(0.975 * RESAMPLES) - 1]
