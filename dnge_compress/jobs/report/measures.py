"""What is measured of a job's model at every milestone, and how a value and its change are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dnge_compress.core.wording import NOT_MEASURED, count, signed

ORIGINAL, PRUNED, TRAINED = "original", "pruned", "trained"
FOLD = 10  # from here on growth is shown as a factor


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """The model at one point of the job.

    `name` is "original", "pruned", "trained", or "trained, <placer>" for a compared placement. `loss` is nats per token
    that counts, on the held-out rows (perplexity = exp(loss)); `tokens_per_second` is a forward pass over those rows,
    and `speed_noise` the share by which two measurements of it may differ. Values that were not measured are None.
    """

    name: str
    params: int
    bytes: int
    loss: float | None = None
    tokens_per_second: float | None = None
    speed_noise: float | None = None


@dataclass(frozen=True)
class Sample:
    """A beginning, and how the models at some milestones go on after it, the likeliest token each time."""

    beginning: str
    continuations: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column of the comparison.

    `of` gives None where it wasn't measured. `is_difference`: a change is a difference in the unit, not a share.
    `is_quality`: differences matter far from zero, so a plot shows the range of values instead of starting at zero.
    `noise_of`: shares of change up to this are none.
    """

    name: str
    unit: str
    of: Callable[[Milestone], float | None]
    show: Callable[[float], str]
    is_difference: bool = False
    is_quality: bool = False
    noise_of: Callable[[Milestone, Milestone], float] | None = None

    def text(self, milestone: Milestone) -> str:
        """The value in words."""
        value = self.of(milestone)
        if value is None:
            return NOT_MEASURED
        return self.show(value) if math.isfinite(value) else "not finite"

    def change(self, milestone: Milestone, original: Milestone) -> str:
        """The change against the original; empty for the original itself and where one of the two is unknown."""
        value, before = self.of(milestone), self.of(original)
        if milestone is original or value is None or before is None:
            return ""
        if not (math.isfinite(value) and math.isfinite(before)):
            return ""
        if self.is_difference:
            return signed(value - before, ".3f")
        if before <= 0:
            return ""
        ratio = value / before
        if self.noise_of is not None and abs(ratio - 1) <= self.noise_of(milestone, original):
            return ""
        return f"{ratio:,.0f}×" if ratio >= FOLD else f"{signed(100 * (ratio - 1), '.1f')} %"


def measured(milestones: Sequence[Milestone]) -> tuple[Measure, ...]:
    """The measures that have a value at some milestone, in the order of the columns."""
    return tuple(m for m in MEASURES if any(m.of(milestone) is not None for milestone in milestones))


def perplexity(milestone: Milestone) -> float | None:
    """exp(loss), infinite where that is beyond a float."""
    if milestone.loss is None:
        return None
    try:
        return math.exp(milestone.loss)
    except OverflowError:
        return math.inf


def _plain(value: float) -> str:
    """Four digits or so, without a prefix."""
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{1 if value >= 100 else 2}f}"


MEASURES = (
    Measure(name="parameters", unit="", of=lambda m: m.params, show=count),
    Measure(name="bytes", unit="", of=lambda m: m.bytes, show=lambda v: count(v, "B")),
    Measure(name="perplexity", unit="held-out", of=perplexity, show=_plain, is_quality=True),
    Measure(
        name="loss",
        unit="nats per token",
        of=lambda m: m.loss,
        show=lambda v: f"{v:.3f}",
        is_difference=True,
        is_quality=True,
    ),
    Measure(
        name="tokens/s",
        unit="forward pass",
        of=lambda m: m.tokens_per_second,
        show=_plain,
        noise_of=lambda a, b: max(a.speed_noise or 0.0, b.speed_noise or 0.0),
    ),
)
