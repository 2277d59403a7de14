"""Encoders that saw one side alone, as benchmarks/encoder.py trains them: do other ways to read them out carry over?

    PYTHONPATH=. python dev/trials/transfer_readout.py --fold vision

Needs the three seeds of `benchmarks/encoder.py --only training` in runs/encoder. Prints the difference in Spearman
from the closed form by family of the other side.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean as mean

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from transfer import SOURCES, TARGETS, all_lessons, generic, is_whole, seen_names  # noqa: E402

from dnge_compress.encoder import DNGEncoder
from dnge_compress.pretrain.judging import closed_form, over_network
from dnge_compress.pretrain.targets import Lesson

SHRINK = 0.05  # of covariances, towards their diagonal
Parts = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]  # levels, inside, layers


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--work", type=Path, default=Path("runs/encoder"))
    parser.add_argument("--fold", choices=tuple(SOURCES), default="vision")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lessons = [x for x in all_lessons(options.zoo, Path("runs/transfer")) if is_whole(x)]
    source = SOURCES[options.fold]
    own = [x for x in lessons if x.family in source]
    files = [options.work / f"encoder-1600-{seed}" / f"{options.fold}.safetensors" for seed in range(3)]
    plain = [DNGEncoder.from_pretrained(file) for file in files]
    averaged = [with_mean_names(encoder, own) for encoder in plain]
    density = Density(own, source)
    for family in TARGETS[options.fold]:
        gains: dict[str, list[float]] = {}
        for lesson in (x for x in lessons if x.family == family):
            for how, value in readings(lesson, plain, averaged, density).items():
                gains.setdefault(how, []).append(value)
        print(family, *(f"{how} {mean(values):+.3f}" for how, values in gains.items()), sep="\n    ")


def readings(
    lesson: Lesson, plain: Sequence[DNGEncoder], averaged: Sequence[DNGEncoder], density: Density
) -> dict[str, float]:
    """Difference in rank correlation from the closed form, by way of reading; a mean over the encoders."""
    whole, by_space = density.of_network(lesson), density.of_spaces(lesson)
    base, found = over_network(closed_form(lesson), lesson), {}
    for named, encoders in (("", plain), ("mean names, ", averaged)):
        said = [parts(encoder, lesson) for encoder in encoders]
        ways: dict[str, list[Parts]] = {
            "as it is": said,
            "levels only": [shared(x, 1, 0) for x in said],
            "share 0.5": [shared(x, 0.5, 0.5) for x in said],
            "share 0.25": [shared(x, 0.25, 0.25) for x in said],
            "share 0.5, inside 0.75": [shared(x, 0.5, 0.75) for x in said],
            "density of the network": [shared(x, whole, whole) for x in said],
            "density of the space": [
                (
                    {n: by_space[n] * v for n, v in levels.items()},
                    {n: by_space[n] * v for n, v in inside.items()},
                    {n: statistics.median(by_space.values()) * v for n, v in layers.items()},
                )
                for levels, inside, layers in said
            ],
            "mean of seeds": [together(said, lambda x: x.mean(0))],
            "seeds, shrunk by disagreement": [together(said, agreed)],
        }
        for how, each in ways.items():
            found[named + how] = mean(over_network(applied(lesson, x), lesson) for x in each) - base
    return found


def parts(encoder: DNGEncoder, lesson: Lesson) -> Parts:
    found = encoder(lesson.graph, lesson.weights, lesson.features, lesson.layer_logs)
    return found.levels, {n: v - v.mean() for n, v in found.units.items()}, dict(found.layers)


def shared(x: Parts, level: float, inside: float) -> Parts:
    return (
        {n: level * v for n, v in x[0].items()},
        {n: inside * v for n, v in x[1].items()},
        {n: level * v for n, v in x[2].items()},
    )


def together(said: Sequence[Parts], how: Callable[[Tensor], Tensor]) -> Parts:
    levels, inside, layers = ({n: how(torch.stack([x[i][n] for x in said])) for n in said[0][i]} for i in range(3))
    return levels, inside, layers


def agreed(x: Tensor) -> Tensor:
    """m · m² / (m² + v) of a mean m with variance v."""
    middle = x.mean(0)
    return middle * middle.square() / (middle.square() + x.var(0)).clamp_min(1e-12)


def applied(lesson: Lesson, x: Parts) -> dict[str, Tensor]:
    closed, (levels, inside, layers) = closed_form(lesson), x
    return {**closed, **{n: closed[n] + levels[n] + v for n, v in inside.items()}} | {
        n: closed[n] + v for n, v in layers.items()
    }


def with_mean_names(encoder: DNGEncoder, own: Sequence[Lesson]) -> DNGEncoder:
    """The encoder with mean embeddings for roles and kinds that it never learned; they are random otherwise."""
    roles, kinds = seen_names(own)
    found = DNGEncoder(encoder.config)
    found.load_state_dict(generic(dict(encoder.state_dict()), roles, kinds, (~roles, ~kinds)))
    return found.eval()


class Density:
    """A weight 0..1 of how usual features are: min(1, exp((r² − d²) / 2)).

    d is the median Mahalanobis distance from the nearest family of the source, and r the largest such median of a
    family of the source from the others: as far as corrections were seen to help.
    """

    def __init__(self, own: Sequence[Lesson], families: Sequence[str]) -> None:
        self.families, self.shapes = tuple(families), {}
        for family in families:
            x = torch.cat([everything(lesson) for lesson in own if lesson.family == family])
            covariance = torch.cov(x.T)
            covariance = covariance + SHRINK * torch.diag(covariance.diag()).clamp_min(1e-3)
            self.shapes[family] = (x.mean(0), torch.linalg.inv(covariance))
        out = {f: tuple(x for x in families if x != f) for f in families}
        self.network = max(
            statistics.median_high([self._distance(everything(x), out[f]) for x in own if x.family == f])
            for f in families
        )
        self.space = max(
            statistics.median_high(
                [self._distance(v, out[f]) for x in own if x.family == f for v in x.features.values()]
            )
            for f in families
        )

    def of_network(self, lesson: Lesson) -> float:
        return min(1.0, math.exp((self.network - self._distance(everything(lesson), self.families)) / 2))

    def of_spaces(self, lesson: Lesson) -> dict[str, float]:
        return {
            n: min(1.0, math.exp((self.space - self._distance(v, self.families)) / 2))
            for n, v in lesson.features.items()
        }

    def _distance(self, x: Tensor, families: Sequence[str]) -> float:
        squares = [((x - m) @ inverse * (x - m)).sum(1) for m, inverse in (self.shapes[f] for f in families)]
        return float(torch.stack(squares).min(0).values.clamp_min(0).median())


def everything(lesson: Lesson) -> Tensor:
    return torch.cat(list(lesson.features.values()))


if __name__ == "__main__":
    main()
