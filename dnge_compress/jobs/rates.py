"""A learning rate found by a few short trainings: uphill or downhill on a ladder, until both neighbours are worse.

Short trainings do best at rates that are too low for long ones, which have the time to take back what a higher rate
spoils at first (short-horizon bias: Wu et al., arXiv 1803.02021). So the rate grows with the length of the training, as
far as the short ones lose little by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dnge_compress.core.errors import DivergedError

RUNGS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_LORA, FIRST_WHOLE = 3e-3, 3e-4  # where trials begin
TRIAL_SHARE = 0.1  # of the training's steps, for each trial
TRIAL_STEPS = (4, 40)  # at least and at most
TRIAL_ROWS = 128  # held out, at most
GROWTH = 2 / 3  # power of how many times as long a training is, with which its rate may grow
LITTLE = 0.02  # nats per token that a trial may lose by it


@dataclass(frozen=True)
class Trial:
    """A short training at a learning rate."""

    rate: float
    steps: int


def find_rate(loss_at: Callable[[float], float], first: float, longer: float) -> tuple[float, dict[float, float]]:
    """A rung for a training that is so many times `longer` than those that `loss_at` tries, and the losses in nats
    after all that were tried, infinite where training diverges.

    Raises DivergedError if all of them diverge.

        rate, losses = find_rate(lambda rate: train_shortly(model, rate), first=3e-3, longer=10)
    """
    losses: dict[int, float] = {}

    def loss(rung: int) -> float:
        if not 0 <= rung < len(RUNGS):
            return math.inf
        if rung not in losses:
            losses[rung] = loss_at(RUNGS[rung])
        return losses[rung]

    best = RUNGS.index(first)
    while True:
        # What diverges lies too high, so there is no need to look still higher.
        beside = [best - 1] if math.isinf(loss(best)) else [best + 1, best - 1]
        better = next((rung for rung in beside if 0 <= rung < len(RUNGS) and loss(rung) < loss(best)), None)
        if better is None and math.isinf(loss(best)) and best > 0:
            better = best - 1
        if better is None:
            break
        best = better
    if math.isinf(loss(best)):
        raise DivergedError(
            f"every learning rate from {RUNGS[0]:g} to {first:g} makes the loss a number that isn't finite; the model "
            "can't be trained as it is (dtype=float32 may help)"
        )
    grown = RUNGS[best] * longer**GROWTH
    nearest = min(range(len(RUNGS)), key=lambda rung: abs(math.log(RUNGS[rung] / grown)))
    chosen = next((rung for rung in range(nearest, best, -1) if loss(rung) <= loss(best) + LITTLE), best)
    return RUNGS[chosen], {RUNGS[rung]: found for rung, found in sorted(losses.items())}


def next_lower(rate: float) -> float:
    """The rung below a rate; a third of it where there is none."""
    return max((rung for rung in RUNGS if rung < 0.99 * rate), default=rate / 3)


def trial_warmup(warmup: float, steps: int, trial: int) -> float:
    """The `warmup_steps` of a trial: the same share of its steps as of the training's `steps`.

    As for transformers, that is a share below 1, and a number of steps from there on.
    """
    share = warmup / steps if warmup >= 1 else warmup
    return share if share < 1 else share * trial


def trial_steps(steps: int) -> int:
    """How long a trial is, for a training of so many steps."""
    least, most = TRIAL_STEPS
    return max(least, min(most, round(TRIAL_SHARE * steps)))
