"""Classes drawn by their probability."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

AT_ONCE = 1 << 21  # numbers, of which copies in double precision are made


def drawn(logits: Float[Tensor, "N C"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One class of each row `[N, 1]`, as likely as the logits say, and what it costs in nats `[N, 1]`.

    It is the class where the sum of the probabilities first exceeds a random share of them all; `torch.multinomial`
    would draw a number for each class, which takes longer than many a model.
    """
    shares = _shares(len(logits), generator).to(logits.device)
    rows = max(1, AT_ONCE // logits.shape[1])
    parts = [_of_rows(*part) for part in zip(logits.split(rows), shares.split(rows), strict=True)]
    return torch.cat([found for found, _ in parts]), torch.cat([nats for _, nats in parts])


def pass_over(rows: int, times: int, generator: torch.Generator) -> None:
    """Leave a generator as if classes of so many rows had been drawn so many times."""
    for _ in range(times):
        _shares(rows, generator)


def _shares(rows: int, generator: torch.Generator) -> Float[Tensor, "N 1"]:
    return torch.rand(rows, 1, generator=generator, dtype=torch.float64)


def _of_rows(logits: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    most = logits.amax(-1, keepdim=True)
    sums = (logits - most).float().exp().cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(sums, shares * sums[:, -1:], right=True).clamp_max(logits.shape[1] - 1)
    return found, (sums[:, -1:].log() - (logits.gather(1, found) - most)).float()
