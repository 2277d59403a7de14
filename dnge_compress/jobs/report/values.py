"""The parts of a job's report: the model at its milestones, widths, ranks and losses."""

from __future__ import annotations

from dataclasses import dataclass

from dnge_compress.core.errors import CheckpointError


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
class Rank:
    """One adapter: the module it is on, its rank and its trainable parameters. Rank 0 is no adapter."""

    module: str
    rank: int
    params: int

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise CheckpointError(f"rank of module '{self.module}' is {self.rank}; it should be at least 0")


@dataclass(frozen=True)
class Curve:
    """Losses along one training: (optimiser step, nats per token)."""

    name: str
    train: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()
