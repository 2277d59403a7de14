"""What a job did: its stages, and the model's quality, size and speed along the way. A value that renders itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
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
class Width:
    """How much of one space was kept, and the parameters of what reads and writes it."""

    space: str
    kind: str
    layer: int | None
    kept: int
    total: int


@dataclass(frozen=True)
class Rank:
    """One adapter: the module it is on, its rank and its trainable parameters."""

    module: str
    rank: int
    params: int


@dataclass(frozen=True)
class Curve:
    """Losses along one training: (optimiser step, nats per token)."""

    name: str
    train: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class JobReport:
    """Everything a finished job has to say.

    `seconds` per stage; `rows` counts the data (read, cut at max_length, empty, tokens that count); `machine` says
    what trained: device, processes, strategy, versions.
    """

    name: str
    model: str
    output_dir: str
    stages: tuple[str, ...]
    seconds: Mapping[str, float]
    milestones: tuple[Milestone, ...]
    widths: tuple[Width, ...] = ()
    ranks: tuple[Rank, ...] = ()
    curves: tuple[Curve, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    VERSION = 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict, read back by `from_dict`."""
        return {"dnge_job_report": self.VERSION, **asdict(self)}
