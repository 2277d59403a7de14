"""The parts of a job's report: the model at its milestones, widths, ranks and losses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """The model at one point of the job.

    `name` is "original", "pruned", "trained", or "trained, <placer>" for a compared placement. `loss` is nats per token
    that counts, on the held-out rows (perplexity = exp(loss)); `tokens_per_second` is a forward pass over those rows.
    Values that were not measured are None.
    """

    name: str
    params: int
    bytes: int
    loss: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Curve:
    """Losses along one training: (optimiser step, nats per token)."""

    name: str
    train: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()
