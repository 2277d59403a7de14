"""Messages along the edges of a snapshot, as matrix products.

DNG's message is m_i = Σ_j (Σ_k φ_k(w_ij) E_k) ⊙ (N h_j + d) (arXiv 2607.02166, eqs. 4 and 6). With φ fixed and
elementwise this is exactly Σ_k φ_k(W) @ (E_k ⊙ (H N + d)): K matrix products, and no edge tensor. Weights are taken
relative to their root mean square and messages are means over the source, so that neither scale nor width matters.

Letters: S source rows, D destination rows, K basis functions, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHUNK_ELEMENTS = 1 << 22  # elements of φ_k(W) that exist at a time

RAW = ("identity",)
MAGNITUDE = ("abs", "square")


def basis(name: str, w: Tensor) -> Tensor:
    """φ_k, elementwise: "identity", "abs", "square", or "sin<f>"/"cos<f>" at frequency f."""
    if name == "identity":
        return w
    if name == "abs":
        return w.abs()
    if name == "square":
        return w.square()
    if name[:3] in ("sin", "cos"):
        phase = 2 * torch.pi * float(name[3:]) * w
        return phase.sin() if name.startswith("sin") else phase.cos()
    raise ValueError(f"unknown basis function '{name}'")


class Message(nn.Module):
    """One stream of messages over a set of basis functions; raw weights and magnitudes are kept in separate streams."""

    def __init__(self, hidden: int, functions: tuple[str, ...]) -> None:
        super().__init__()
        self.functions = functions
        self.node = nn.Linear(hidden, hidden)  # N, d
        self.edge = nn.Parameter(torch.randn(len(functions), hidden) / len(functions) ** 0.5)  # E

    def forward(self, weight: Tensor, states: Tensor, transposed: bool = False, chunk: int = CHUNK_ELEMENTS) -> Tensor:
        """Messages `[D, H]` over a block `[D, S, kernel]` from `states` `[S, H]`; `transposed`, `[S, H]` from `[D, H]`.

        The block must be scaled already (see `scaled`). `chunk` bounds memory and doesn't change the result.
        """
        gated = [self.node(states) * e for e in self.edge]  # K × [src, H]
        rows = max(1, chunk // max(1, weight[0].numel()))
        parts: list[Tensor] = []
        total = states.new_zeros(weight.shape[1] if transposed else 0, states.shape[1])
        for first in range(0, len(weight), rows):
            block = weight[first : first + rows]
            for k, name in enumerate(self.functions):
                phi = basis(name, block).mean(-1)  # kernel positions are edges of their own
                if transposed:
                    total = total + phi.T @ gated[k][first : first + rows]
                elif k == 0:
                    parts.append(phi @ gated[k])
                else:
                    parts[-1] = parts[-1] + phi @ gated[k]
        if transposed:
            return total / len(weight)
        return torch.cat(parts) / weight.shape[1]

    def diagonal(self, gain: Tensor, states: Tensor) -> Tensor:
        """Messages `[U, H]` along a norm's gains `[U]`: each unit to itself."""
        node = self.node(states)
        return sum(basis(name, gain)[:, None] * node * e for name, e in zip(self.functions, self.edge, strict=True))


def per_edge(message: Message, weight: Tensor, states: Tensor) -> Tensor:
    """The same messages edge by edge, as the paper writes them; the tests' reference, quadratic in memory."""
    phi = torch.stack([basis(name, weight) for name in message.functions], -1)  # [D, S, kernel, K]
    embedded = phi.mean(2) @ message.edge  # [D, S, H]
    return (embedded * message.node(states)[None]).mean(1)


def scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The block relative to its root mean square, and the log of fan-in times mean square (0 at standard init)."""
    mean_square = weight.square().mean().clamp_min(1e-20)
    fan_in = weight.shape[1:].numel() if weight.dim() > 1 else 1
    return weight / mean_square.sqrt(), (mean_square * fan_in).log()
