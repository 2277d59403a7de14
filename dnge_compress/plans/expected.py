"""What a plan will cost on real inputs: the damage on examples of the user's that no fit has seen; or that left on the
calibration inputs, corrected by how far the two were apart on networks whose real data are known
(benchmarks/expected_damage.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from dnge_compress.core.errors import PlanError
from dnge_compress.signals.comparison import Damage

# log(real damage / damage on calibration inputs) over the zoo: the median, and the ends of the middle four fifths.
BANDS = {
    "real": (0.24, -0.04, 1.26),
    "sampled": (0.06, -0.18, 0.55),
    "masked": (0.25, -0.04, 0.57),
    "words": (0.86, 0.46, 1.67),
    "matched": (0.47, -0.92, 0.83),
    "images": (-0.1, -1.12, 0.33),
    "like": (-0.25, -1.4, 1.3),
}
OUTSIDE = 0.2  # of plans may lie outside of a band
MOST_OFF = 10.0  # in logarithms; where damage is rounding alone, its error says nothing
INPUTS = {
    "real": "your data",
    "sampled": "text that the model writes",
    "masked": "text that the model fills in",
    "words": "random words",
    "matched": "painted images that match its batch norms",
    "images": "painted images",
    "like": "random inputs",
}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Divergence from the whole network's answers on real inputs, in nats per label: a middle estimate, and a band that
    should hold it in four of five plans. `inputs` says on what it was measured, `doubts` why those may not be
    like the real ones."""

    nats: float
    low: float
    high: float
    inputs: str
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.nats <= self.high < math.inf:
            raise PlanError(f"nats of {self.low}, {self.nats}, {self.high} are no band; they go up from 0 at least")

    def __str__(self) -> str:
        return f"expected damage {self.nats:.2g} nats ({self.low:.2g} to {self.high:.2g})"


def expected(measured: float, kind: str, doubts: tuple[str, ...] = ()) -> Expected | None:
    """From the damage that was measured on calibration inputs of a kind; None if it isn't finite."""
    if not math.isfinite(measured):
        return None
    middle, low, high = (measured * math.exp(shift) for shift in BANDS[kind])
    return Expected(nats=middle, low=low, high=high, inputs=INPUTS[kind], doubts=doubts)


def on_held_out(damage: Damage, doubts: tuple[str, ...] = ()) -> Expected | None:
    """From the damage on examples that were held out from every fit: the band is what other such examples would give.
    None if it isn't finite."""
    if not math.isfinite(damage.nats):
        return None
    normal = NormalDist().inv_cdf(1 - OUTSIDE / 2)
    # Student's t, by the first term of its series in one over the degrees of freedom.
    quantile = normal * (1 + (normal**2 + 1) / (4 * max(1, damage.examples - 1)))
    # Of the logarithm, which keeps a band above 0.
    off = math.exp(min(quantile * damage.error / damage.nats, MOST_OFF)) if damage.nats else 1.0
    return Expected(
        nats=damage.nats,
        low=damage.nats / off,
        high=damage.nats * off,
        inputs="examples of yours that no fit has seen",
        doubts=doubts,
    )
