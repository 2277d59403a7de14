"""What a job did: its stages, and the model's quality, size and speed along the way. A value that renders itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnge_compress.core.errors import CheckpointError
from dnge_compress.jobs.report import markdown, page, tables
from dnge_compress.jobs.report.reading import read, written
from dnge_compress.report.tables import plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

VERSION_KEY = "dnge_job_report"
REPORT = "report.json"


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
    """How much of one space was kept; 0 where its whole block was dropped."""

    space: str
    kind: str
    layer: int | None
    kept: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.total or not self.total:
            raise CheckpointError(f"width of space '{self.space}': {self.kept} of {self.total} units can't be kept")


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


@dataclass(frozen=True)
class JobReport:
    """Everything a finished job has to say.

    `seconds` per stage; `rows` counts the data (read, cut at max_length, empty, tokens that count); `machine` says
    what trained: device, processes, strategy, versions. Changes are told against the first of the milestones.
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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from tables.report(self, console, options)

    def __str__(self) -> str:
        return plain(self)

    @property
    def times(self) -> dict[str, float | None]:
        """Seconds of every stage in order, None where a stage wasn't timed; stages that only were timed come last."""
        return {**{stage: self.seconds.get(stage) for stage in self.stages}, **self.seconds}

    @property
    def result(self) -> Milestone | None:
        """The model the job leaves behind: the last milestone that isn't a compared placement."""
        own = [m for m in self.milestones if not m.name.startswith("trained, ")]
        return own[-1] if own else None

    def to_markdown(self) -> str:
        """The tables as Markdown, for a model card."""
        return markdown.report(self)

    def to_html(self) -> str:
        """One page with tables and plots; it holds everything it needs, runs nothing and asks nobody."""
        return page.report(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict, read back by `from_dict`. Numbers that aren't finite become "nan", "inf" or "-inf"."""
        return {VERSION_KEY: self.VERSION, **written(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> JobReport:
        """Read a report. Raises CheckpointError where a key is unknown or missing, or a value of the wrong type."""
        if not isinstance(raw, Mapping) or VERSION_KEY not in raw:
            raise CheckpointError(f"this is no job report: it has no '{VERSION_KEY}'")
        if raw[VERSION_KEY] != cls.VERSION:
            raise CheckpointError(
                f"the job report has version {raw[VERSION_KEY]!r:.80}, and this package reads version {cls.VERSION}; "
                "use the package that wrote it"
            )
        report: JobReport = read(cls, {key: raw[key] for key in raw if key != VERSION_KEY}, "job report")
        return report


def write(report: JobReport, folder: str | Path) -> dict[str, Path]:
    """Write report.html, report.md and report.json; returns their paths by suffix.

    Each is complete or as it was before: all three are rendered and written beside their places first. Raises OSError.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # The JSON comes last: who finds it may take the other two for granted.
    parts = {target / f".report.{suffix}.part": target / f"report.{suffix}" for suffix in ("html", "md", "json")}
    try:
        for (part, _), text in zip(parts.items(), _texts(report), strict=True):
            # Paths may hold bytes that are no text; they mustn't keep a finished job from reporting.
            _write_through(part, text.encode("utf-8", "replace"))
        for part, place in parts.items():
            part.replace(place)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return {place.suffix[1:]: place for place in parts.values()}


def finished(folder: str | Path) -> JobReport:
    """The report that a job left in its folder. Raises CheckpointError where none is there or it can't be read."""
    file = Path(folder) / REPORT
    if not file.is_file():
        raise CheckpointError(f"the job in '{folder}' has no {REPORT} yet; run it again, and it goes on to the end")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"'{file}' is truncated or corrupt: no JSON ({e})") from None
    return JobReport.from_dict(raw)


def _write_through(file: Path, content: bytes) -> None:
    """Write to the disk itself, so that a name never points to a file that a power cut left empty."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _texts(report: JobReport) -> Iterator[str]:
    yield report.to_html()
    yield report.to_markdown()
    yield json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
