"""Messages along the edges of a snapshot, as matrix products.

DNG's message is m_i = Σ_j (Σ_k φ_k(w_ij) E_k) ⊙ (N h_j + d) (arXiv 2607.02166, eqs. 4 and 6). With φ fixed and
elementwise this is exactly Σ_k φ_k(W) @ (E_k ⊙ (H N + d)): K matrix products, and no edge tensor. Weights are taken
relative to their root mean square and messages are means over the source, so that a message's size depends on neither
scale nor width.

Letters: S source rows, D destination rows, K basis functions, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dnge_compress.core.errors import DataError, UnknownNameError

CHUNK_ELEMENTS = 1 << 19  # elements of φ_k(W) that exist at a time

RAW = ("identity",)
MAGNITUDE = ("abs", "square")
WAVES = tuple(f"{wave}{frequency}" for frequency in (0.1, 0.2, 0.4, 0.8) for wave in ("sin", "cos"))
LEARNED = tuple(f"{wave}~{frequency}" for frequency in (0.1, 0.2, 0.4, 0.8) for wave in ("sin", "cos"))


def random_fourier(features: int = 256, scale: float = 3.0, seed: int = 0) -> tuple[str, ...]:
    """The paper's φ: sines and cosines at `features` / 2 fixed frequencies from N(0, scale²), meant for weights as they
    are (`Sweep(is_relative=False)`). Raises DataError on an odd number."""
    if features < 2 or features % 2:
        raise DataError(f"there can't be {features} features; give an even number of sines and cosines, 2 at least")
    drawn = torch.randn(features // 2, generator=torch.Generator().manual_seed(seed)) * scale
    return tuple(f"{wave}{frequency:.6f}" for frequency in drawn.tolist() for wave in ("sin", "cos"))


def refuse_unknown(functions: Iterable[str]) -> None:
    """Raise UnknownNameError on a name that is none of a basis function."""
    for name in functions:
        if name not in (*RAW, *MAGNITUDE) and not re.fullmatch(r"(sin|cos)~?-?\d+(\.\d+)?", name):
            raise UnknownNameError("basis function", name, (*RAW, *MAGNITUDE, *WAVES))


def basis(name: str, w: Tensor, frequency: Tensor | None = None) -> Tensor:
    """φ_k, elementwise: "identity", "abs", "square", or "sin<f>"/"cos<f>" at frequency f, or at the one given."""
    if name == "identity":
        return w
    if name == "abs":
        return w.abs()
    if name == "square":
        return w.square()
    if name[:3] in ("sin", "cos"):
        phase = 2 * torch.pi * (float(name[3:]) if frequency is None else frequency) * w
        return phase.sin() if name.startswith("sin") else phase.cos()
    raise UnknownNameError("basis function", name, (*RAW, *MAGNITUDE, *WAVES))


class Message(nn.Module):
    """One stream of messages over a set of basis functions; raw weights and magnitudes are kept in separate streams.

    Functions "sin~<f>" and "cos~<f>" have a learned frequency that begins at f.
    """

    def __init__(self, hidden: int, functions: tuple[str, ...]) -> None:
        super().__init__()
        self.functions = functions
        learned = sorted({name[4:] for name in functions if "~" in name})
        self._learned = {name: learned.index(name[4:]) for name in functions if "~" in name}
        if learned:
            self.frequency = nn.Parameter(torch.tensor([float(f) for f in learned]))
        self.node = nn.Linear(hidden, hidden)  # N, d
        self.edge = nn.Parameter(torch.randn(len(functions), hidden) / len(functions) ** 0.5)  # E

    def forward(
        self, weight: Tensor, states: Tensor, transposed: bool = False, *, scale: float | Tensor = 1.0,
        chunk: int = CHUNK_ELEMENTS,
    ) -> Tensor:  # fmt: skip
        """Messages `[D, H]` over a block `[D, S, kernel]` from `states` `[S, H]`; `transposed`, `[S, H]` from `[D, H]`.

        The block is multiplied by `scale` chunk by chunk; `chunk` bounds memory and doesn't change the result.
        """
        gated = torch.cat([self.node(states) * e for e in self.edge])  # [K · src, H]
        rows = max(1, chunk // max(1, weight[0].numel() * len(self.functions)))
        parts: list[Tensor] = []
        total = states.new_zeros(weight.shape[1] if transposed else 0, states.shape[1])
        for first in range(0, len(weight), rows):
            phi = self._phi(weight[first : first + rows], scale)  # K × [rows, S]
            if transposed:
                blocks = gated.view(len(phi), -1, gated.shape[1])[:, first : first + rows]
                total = total + torch.cat(phi).T @ blocks.flatten(0, 1)
            else:
                parts.append(torch.cat(phi, 1) @ gated)
        return total / len(weight) if transposed else torch.cat(parts) / weight.shape[1]

    def from_equals(
        self, weight: Tensor, state: Tensor, transposed: bool = False, *, scale: float | Tensor = 1.0,
        chunk: int = CHUNK_ELEMENTS,
    ) -> Tensor:  # fmt: skip
        """`forward` where all sources share one `state` `[1, H]`: the block's means are enough, and no product runs."""
        gated = self.node(state) * self.edge  # [K, H]
        rows = max(1, chunk // max(1, weight[0].numel() * len(self.functions)))
        axis = 0 if transposed else 1
        parts = [
            torch.stack([phi.sum(axis) for phi in self._phi(weight[i : i + rows], scale)], -1)
            for i in range(0, len(weight), rows)
        ]
        means = sum(parts) / len(weight) if transposed else torch.cat(parts) / weight.shape[1]  # [units, K]
        return means @ gated

    def _phi(self, block: Tensor, scale: float | Tensor) -> list[Tensor]:
        """φ_k of a scaled block, K × `[rows, S]`; kernel positions are edges of their own, and their mean is taken."""
        block = block * scale
        if block.shape[-1] == 1:
            return [self._basis(name, block.squeeze(-1)) for name in self.functions]
        return [self._basis(name, block).mean(-1) for name in self.functions]

    def _basis(self, name: str, w: Tensor) -> Tensor:
        learned = self._learned.get(name)
        return basis(name, w, None if learned is None else self.frequency[learned])

    def diagonal(self, gain: Tensor, states: Tensor) -> Tensor:
        """Messages `[U, H]` along a norm's gains `[U]`: each unit to itself."""
        node = self.node(states)
        pairs = zip(self.functions, self.edge, strict=True)
        return sum(self._basis(name, gain)[:, None] * node * e for name, e in pairs)


def per_edge(message: Message, weight: Tensor, states: Tensor) -> Tensor:
    """The same messages edge by edge, as the paper writes them; the tests' reference, quadratic in memory."""
    phi = torch.stack([message._basis(name, weight) for name in message.functions], -1)  # [D, S, kernel, K]
    embedded = phi.mean(2) @ message.edge  # [D, S, H]
    return (embedded * message.node(states)[None]).mean(1)


def scales(weight: Tensor) -> tuple[Tensor, Tensor]:
    """What brings a block to root mean square one, and the log of fan-in times mean square (0 at standard init)."""
    by_row = torch.linalg.vector_norm(weight.flatten(1), dim=1) if weight.dim() > 1 else weight.abs()
    mean_square = (by_row.square().sum() / weight.numel()).clamp_min(1e-20)
    fan_in = weight.shape[1:].numel() if weight.dim() > 1 else 1
    return mean_square.rsqrt(), (mean_square * fan_in).log()
