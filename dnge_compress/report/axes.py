"""Where things stand in a plot: round ticks, layers on an axis, fewer points where there are too many to see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

Point = tuple[int, float]
ROUND = (1, 2, 2.5, 5, 10)
WIDEST_GAP = 1024  # layers of which nothing is known are shown as gaps up to here


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round numbers that span from `low` to `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    step = _round_up((high - low) / most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def decimals(values: Sequence[float]) -> int:
    """How many decimals ticks need to be told apart."""
    step = min(b - a for a, b in itertools.pairwise(values))
    return next((d for d in range(7) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 6)


def layer_ticks(layers: Sequence[int | None], most: int = 10) -> list[tuple[int, int]]:
    """(position, layer) of the round layer numbers on an axis that shows `layers` in this order; the first of a run."""
    known = [layer for layer in layers if layer is not None]
    if not known:
        return []
    spread = (max(known) - min(known)) / most
    step = 1 if len(set(known)) <= 16 else max(1, math.ceil(_round_up(spread)))
    return [
        (position, layer)
        for position, (before, layer) in enumerate(zip([None, *layers], layers, strict=False))
        if layer is not None and layer != before and layer % step == 0
    ]


def layers_between(known: Iterable[int]) -> tuple[int, ...]:
    """All layers from the first known one to the last; those that are known alone where that would be very many."""
    found = tuple(sorted(set(known)))
    return tuple(range(found[0], found[-1] + 1)) if found and found[-1] - found[0] <= WIDEST_GAP else found


def thinned(points: Sequence[Point], most: int = 400) -> list[Point]:
    """The points, or of every stretch of them the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    kept = []
    for i in range(stretches):
        inside = points[len(points) * i // stretches : len(points) * (i + 1) // stretches]
        ends = {min(inside, key=lambda p: p[1]), max(inside, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next((m * power for m in ROUND if m * power >= step * (1 - 1e-9)), 10 * power)
