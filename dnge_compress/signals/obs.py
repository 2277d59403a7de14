"""The optimal brain surgeon behind scores and repair: what outputs lose when units go and the rest is refitted.

With H = Cov(a) + λI (E[a aᵀ] where the consumer has no bias), removing the features R and refitting the consumer W by
least squares costs ½ tr(S W_R (H⁻¹_RR)⁻¹ W_Rᵀ), S the Fisher information of the outputs (Hassibi & Stork 1993), here
with whole units of several features and several consumers at a time. Units are removed greedily, cheapest first; each
pays for what the earlier ones left behind.

Letters: U units, W features per unit, F = U·W, D outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

WIDE = 6144  # features; in float64 their moments and factors take more than a gigabyte
ROUNDS = 64  # units leave in about this many rounds; between rounds H⁻¹ and W are updated
HELD = 0.75  # of the units that a state holds; with fewer alive, the removed ones are forgotten, which copies matrices


@dataclass(frozen=True)
class Consumer:
    """One consumer: weight `[D, F]`, second moments `[F, F]` (centred where a bias can take up the mean), importance
    of its outputs `[D]` in nats per squared unit."""

    weight: Float[Tensor, "D F"]
    moments: Float[Tensor, "F F"]
    importance: Float[Tensor, " D"]

    def on(self, device: torch.device) -> Consumer:
        """The same on a device."""
        return Consumer(self.weight.to(device), self.moments.to(device), self.importance.to(device))


def removal_costs(consumers: Iterable[Consumer], units: int, ridge: float) -> Float[Tensor, " U"]:
    """Cost in nats of removing each unit `[U]`, at the moment greedy elimination takes it; larger = keep.

    Costs never fall along the elimination, so keeping the k largest keeps exactly the last k survivors. Consumers on
    several devices are weighed on the first one's.
    """
    states: list[_State] = []
    for consumer in consumers:
        states.append(_State(consumer.on(states[0].weight.device) if states else consumer, units, ridge))
    frame = torch.arange(units, device=states[0].weight.device)  # the units that the states still hold
    live = torch.arange(units, device=frame.device)  # places in the frame of those that aren't removed
    costs = torch.zeros(units, dtype=torch.float64)
    floor = 0.0
    while len(live) > 1:
        single = sum((s.unit_costs(live) for s in states), torch.zeros(()))
        count = max(1, min(len(live) - 1, round(units / ROUNDS), len(live) // 4 or 1))
        order = single.argsort()
        gone, live = live[order[:count]], live[order[count:].sort().values]
        joint = sum((s.remove(gone) for s in states), torch.zeros(()))
        share = single[order[:count]] / single[order[:count]].sum().clamp_min(1e-30)
        paid = (share * joint).clamp_min(floor).double().cpu()
        paid = torch.cummax(paid, 0).values
        costs[frame[gone].cpu()] = paid
        floor = float(paid[-1])
        if len(live) < HELD * len(frame):
            for state in states:
                state.hold(live)
            frame, live = frame[live], torch.arange(len(live), device=frame.device)
    costs[frame[live].cpu()] = max(floor, float(sum((s.unit_costs(live) for s in states), torch.zeros(())).sum()))
    return costs.float()


def refit(
    weight: Float[Tensor, "D F"], moments: Float[Tensor, "F F"], keep: Int[Tensor, " K"], ridge: float
) -> Float[Tensor, "D K"]:
    """The consumer restricted to the features `keep`, refitted: W_K + W_P C_PK (C_KK + λI)⁻¹, `[D, K]`, in float64, of
    WIDE consumers in float32."""
    exact = torch.float64 if weight.shape[1] <= WIDE else torch.float32
    w, c = weight.to(exact), moments.to(exact)
    gone = torch.ones(w.shape[1], dtype=torch.bool, device=w.device)
    gone[keep] = False
    gone = gone.nonzero().squeeze(1)
    if not len(gone):
        return w[:, keep]
    inner = c[keep[:, None], keep]
    inner.diagonal().add_(damping(c, ridge))
    cross = c[gone[:, None], keep]  # [P, K]
    return w[:, keep] + w[:, gone] @ torch.cholesky_solve(cross.T, factor(inner)).T


def damping(moments: Float[Tensor, "F F"], ridge: float) -> float:
    """λ: `ridge` times the mean second moment."""
    return ridge * float(moments.diagonal().mean()) + 1e-12


def factor(moments: Float[Tensor, "*batch F F"]) -> Float[Tensor, "*batch F F"]:
    """Cholesky factors `[…, F, F]` of damped moments, or of blocks of their inverse.

    Where rounding has cost the digits that make a matrix positive definite, its negative eigenvalues count as what the
    damping leaves at least. Cholesky, not LU: batched LU solves never return in torch 2.13 with several CPU threads.
    """
    lower, failed = torch.linalg.cholesky_ex(moments)
    if not bool(failed.any()):
        return lower
    values, vectors = torch.linalg.eigh(moments.double())
    values = torch.maximum(values, 1e-6 * values[..., -1:])
    return torch.linalg.cholesky((vectors * values[..., None, :]) @ vectors.mT).to(moments.dtype)


def features_of(units: Int[Tensor, " U"], width: int) -> Int[Tensor, " F"]:
    """Feature indices of the given units, in order."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


class _State:
    """One consumer during elimination: the inverse moments and the refitted weight of the units still alive."""

    def __init__(self, consumer: Consumer, units: int, ridge: float) -> None:
        moments = consumer.moments.float()
        self.width = moments.shape[0] // units
        moments = moments.clone()
        moments.diagonal().add_(damping(moments, ridge))
        moments = factor(moments)
        self.inverse = torch.cholesky_inverse(moments)
        self.weight = consumer.weight.float() * (0.5 * consumer.importance.float()).sqrt()[:, None]

    def unit_costs(self, units: Tensor) -> Tensor:
        """½ tr(S W_u (H⁻¹_uu)⁻¹ W_uᵀ) for some of the units `[U]`."""
        if self.width == 1:
            return self.weight[:, units].square().sum(0) / self.inverse.diagonal()[units]
        held = self.weight.shape[1] // self.width
        own = self.inverse.view(held, self.width, held, self.width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)[units]
        columns = self.weight.view(-1, held, self.width).permute(1, 2, 0)[units]  # [U, W, D]
        return torch.linalg.solve_triangular(factor(own), columns, upper=False).square().sum((1, 2))

    def remove(self, units: Tensor) -> Tensor:
        """Take the units out of the elimination, refit the others, and return the joint cost. What is held of the
        units means nothing from then on."""
        gone = features_of(units, self.width)
        rows, columns = self.inverse[gone], self.weight[:, gone]
        lower = factor(rows[:, gone])
        solved = torch.cholesky_solve(rows, lower)  # [G, F]
        joint = torch.linalg.solve_triangular(lower, columns.T, upper=False).square().sum()
        self.weight.addmm_(columns, solved, alpha=-1)
        self.inverse.addmm_(rows.T, solved, alpha=-1)
        return joint

    def hold(self, units: Tensor) -> None:
        """Forget all but some units."""
        kept = features_of(units, self.width)
        self.inverse, self.weight = self.inverse[kept[:, None], kept], self.weight[:, kept]
