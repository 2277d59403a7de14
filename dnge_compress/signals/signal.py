"""What inference on calibration inputs says about every unit: statistics of its activations and gradients.

A *consumer* is a matrix through which the rest of the network reads a space (a consumer slot). Signals are gathered at
the consumer's input, through the model's own modules under hooks: no second implementation of attention exists here.

Letters: U units, W values per unit at the consumer (head size, kernel positions), F = U·W features, D outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dnge_compress.graph.types import Slot


@dataclass(frozen=True, kw_only=True)
class Signal:
    """The weight `[D, F]` of one consumer of a space, and moments of its input, averaged over positions.

    mean `[F]` and covariance `[F, F]` of the activations read, over positions. Gradient moments are sums over the
    positions of an example, per label (a token of a language model, an image of a classifier), so that costs are
    nats per label in every layer: grad_square `[F]` = Σ g² at the activations, fisher `[U]` = (Σ a·g)², the squared
    gradient of a mask on the unit, taylor `[U]` = |Σ a·g|, out_fisher `[D]` = Σ g² at the consumer's outputs.
    Gradients are of the log-likelihood of labels sampled from the model itself (the true Fisher), or of random
    unit-variance output directions where there are no logits. Moments cover all F features of the consumer; `own` are
    the space's, which is all of them unless the consumer's input is a concatenation. Each group of a grouped conv is a
    consumer; `rows` are then those of the conv's outputs that are its own.
    """

    slot: Slot
    weight: Float[Tensor, "D F"]
    units: int
    own: slice
    rows: slice | None
    count: int
    mean: Float[Tensor, " F"]
    covariance: Float[Tensor, "F F"]
    grad_square: Float[Tensor, " F"]
    fisher: Float[Tensor, " U"]
    taylor: Float[Tensor, " U"]
    out_fisher: Float[Tensor, " D"]

    @property
    def own_weight(self) -> Tensor:
        """The part of the weight that reads the space `[D, U·W]`."""
        return self.weight[:, self.own]

    @property
    def variance(self) -> Tensor:
        """Var(a) per feature of the space's own `[U·W]`."""
        return self.covariance.diagonal().clamp_min(0)[self.own]

    @property
    def square(self) -> Tensor:
        """E[a²] per feature of the space's own `[U·W]`."""
        return self.variance + self.mean[self.own].square()

    def second_moments(self, is_centred: bool) -> Float[Tensor, "F F"]:
        """The covariance where something behind the consumer takes up the mean, else E[a aᵀ]."""
        return self.covariance if is_centred else self.covariance.addr(self.mean, self.mean)


Signals = Mapping[str, tuple[Signal, ...]]  # of every space, one per consumer
