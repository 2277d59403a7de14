"""Messages along the edges of a snapshot, as matrix products.

DNG's message is m_i = Σ_j (Σ_k φ_k(w_ij) E_k) ⊙ (N h_j + d) (arXiv 2607.02166, eqs. 4 and 6). With φ fixed and
elementwise this is exactly Σ_k φ_k(W) @ (E_k ⊙ (H N + d)): K matrix products, and no edge tensor. Weights are taken
relative to their root mean square and messages are means over the source, so that a message's size depends on neither
scale nor width.

Letters: S source rows, D destination rows, K basis functions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

Basis = Callable[[Tensor], Tensor]  # φ_k: a fixed function of a weight, elementwise

CHUNK_ELEMENTS = 1 << 19  # elements of φ_k(W) that exist at a time


def identity(weight: Tensor) -> Tensor:
    """The weight as it is."""
    return weight


RAW: tuple[Basis, ...] = (identity,)
MAGNITUDE: tuple[Basis, ...] = (torch.abs, torch.square)


class Message(nn.Module):
    """One stream of messages over a set of basis functions; raw weights and magnitudes are kept in separate streams."""

    def __init__(self, hidden: int, basis: Sequence[Basis]) -> None:
        super().__init__()
        self.basis = tuple(basis)
        self.node = nn.Linear(hidden, hidden)  # N, d
        self.edge = nn.Parameter(torch.randn(len(self.basis), hidden) / len(self.basis) ** 0.5)  # E

    def forward(
        self,
        weight: Float[Tensor, "D S kernel"],
        states: Float[Tensor, "sources H"],
        transposed: bool = False,
        *,
        scale: float | Tensor = 1.0,
    ) -> Float[Tensor, "targets H"]:
        """Messages `[D, H]` over a block `[D, S, kernel]` from `states` `[S, H]`; `transposed`, `[S, H]` from `[D, H]`.

        The block is multiplied by `scale` chunk by chunk, which bounds memory and doesn't change the result.
        """
        gated = torch.cat([self.node(states) * e for e in self.edge])  # [K · src, H]
        parts: list[Tensor] = []
        total = states.new_zeros(weight.shape[1] if transposed else 0, states.shape[1])
        for rows, phi in self._chunks(weight, scale):
            if transposed:
                blocks = gated.view(len(phi), -1, gated.shape[1])[:, rows]
                total = total + torch.cat(phi).T @ blocks.flatten(0, 1)
            else:
                parts.append(torch.cat(phi, 1) @ gated)
        return total / len(weight) if transposed else torch.cat(parts) / weight.shape[1]

    def from_equals(
        self,
        weight: Float[Tensor, "D S kernel"],
        state: Float[Tensor, "1 H"],
        transposed: bool = False,
        *,
        scale: float | Tensor = 1.0,
    ) -> Float[Tensor, "targets H"]:
        """`forward` where all sources share one `state` `[1, H]`: the block's means are enough, and no product runs."""
        gated = self.node(state) * self.edge  # [K, H]
        axis = 0 if transposed else 1
        parts = [torch.stack([one.sum(axis) for one in phi], -1) for _, phi in self._chunks(weight, scale)]
        means = sum(parts) / len(weight) if transposed else torch.cat(parts) / weight.shape[1]  # [units, K]
        return means @ gated

    def diagonal(self, gain: Float[Tensor, " U"], states: Float[Tensor, "U H"]) -> Float[Tensor, "U H"]:
        """Messages `[U, H]` along a norm's gains `[U]`: each unit to itself."""
        node = self.node(states)
        return sum(phi(gain)[:, None] * node * e for phi, e in zip(self.basis, self.edge, strict=True))

    def _chunks(self, weight: Tensor, scale: float | Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """φ_k of a scaled block, K × `[rows, S]`, some rows at a time; kernel positions are edges of their own, and
        their mean is taken."""
        count = max(1, CHUNK_ELEMENTS // max(1, weight[0].numel() * len(self.basis)))
        for first in range(0, len(weight), count):
            rows = slice(first, first + count)
            block = weight[rows] * scale
            is_flat = block.shape[-1] == 1
            yield rows, [phi(block.squeeze(-1)) if is_flat else phi(block).mean(-1) for phi in self.basis]


def scales(weight: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What brings a block to root mean square one, and the log of fan-in times mean square (0 at standard init)."""
    by_row = torch.linalg.vector_norm(weight.flatten(1), dim=1) if weight.dim() > 1 else weight.abs()
    mean_square = (by_row.square().sum() / weight.numel()).clamp_min(1e-20)
    fan_in = weight.shape[1:].numel() if weight.dim() > 1 else 1
    return mean_square.rsqrt(), (mean_square * fan_in).log()
