"""What a job did: its stages, and the model's quality, size and speed along the way. A value that renders itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnge_compress.core.document import Document
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.files import atomic_file
from dnge_compress.core.markdown import markdown
from dnge_compress.core.strict_json import json_values, read_json, read_strictly
from dnge_compress.core.terminal import Printable
from dnge_compress.jobs.folder import REPORT
from dnge_compress.jobs.report import content
from dnge_compress.jobs.report.measures import Milestone, Sample
from dnge_compress.jobs.report.verdict import verdict
from dnge_compress.lora.rank_grid import Rank, ranks_section
from dnge_compress.plans.sensitivity import Sensitivity
from dnge_compress.plans.space_rows import SpaceRow
from dnge_compress.report.page import page
from dnge_compress.report.plots import Curve
from dnge_compress.report.sensitivity_map import sensitivity_section

VERSION_KEY = "dnge_job_report"


@dataclass(frozen=True, kw_only=True)
class JobReport(Printable):
    """Everything a finished job has to say.

    `seconds` per stage; `rows` counts the data (read, cut at max_length, empty, tokens that count); `machine` says
    what trained: device, processes, strategy, versions. Changes are measured against the first of the milestones;
    `sensitivity` is that of the model that the last round pruned.
    """

    name: str
    model: str
    output_dir: str
    stages: tuple[str, ...]
    seconds: Mapping[str, float]
    milestones: tuple[Milestone, ...]
    widths: tuple[SpaceRow, ...] = ()
    ranks: tuple[Rank, ...] = ()
    curves: tuple[Curve, ...] = ()
    samples: tuple[Sample, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()

    VERSION = 1

    def document(self) -> Document:
        """The report in sections."""
        sections = (
            content.in_short(verdict(self.milestones, self.curves)),
            content.comparison(self.milestones),
            content.losses(self.curves),
            content.samples(self.samples),
            content.widths(self.widths),
            sensitivity_section(self.sensitivity),
            ranks_section(self.ranks),
            content.times(self.times),
            content.facts("Data", {key: f"{n:,}" for key, n in self.rows.items()}),
            content.facts("Machine", self.machine),
            content.notes(self.notes),
        )
        return Document(
            title=self.model,
            facts=(self.name,) if self.name else (),
            place=self.output_dir,
            eyebrow="Job report",
            stages=self.stages,
            headlines=content.headlines(self.milestones, self.result),
            sections=tuple(section for section in sections if section is not None),
        )

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
        return markdown(self.document())

    def to_html(self) -> str:
        """One page with tables and plots; it holds everything it needs, runs nothing and asks nobody."""
        return page(self.document())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict, read back by `from_dict`. Numbers that aren't finite become "nan", "inf" or "-inf"."""
        return {VERSION_KEY: self.VERSION, **json_values(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], origin: str = "the job report") -> JobReport:
        """Read a report, which errors call `origin`. Raises CheckpointError where a key is unknown or missing, or a
        value of the wrong type."""
        if not isinstance(raw, Mapping) or VERSION_KEY not in raw:
            raise CheckpointError(f"{origin} is no job report: it has no '{VERSION_KEY}'; run the job again")
        if raw[VERSION_KEY] != cls.VERSION:
            raise CheckpointError(
                f"{origin} has version {raw[VERSION_KEY]!r:.80}, and this package reads version {cls.VERSION}; "
                "use the package that wrote it"
            )
        return read_strictly(cls, {key: raw[key] for key in raw if key != VERSION_KEY}, origin)


def write(report: JobReport, folder: str | Path) -> dict[str, Path]:
    """Write report.html, report.md and report.json; returns their paths by suffix.

    Each is complete or as it was before: all three are rendered and written beside their places first. Raises
    CheckpointError.
    """
    texts = {
        "json": json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n",
        "md": report.to_markdown(),
        "html": report.to_html(),
    }
    places = {suffix: Path(folder) / f"report.{suffix}" for suffix in texts}
    with ExitStack() as stack:  # it ends with the JSON: who finds that may take the other two for granted
        for suffix, text in texts.items():
            # Paths may hold bytes that are no text; they mustn't keep a finished job from reporting.
            stack.enter_context(atomic_file(places[suffix])).write_bytes(text.encode("utf-8", "replace"))
    return places


def finished(folder: str | Path) -> JobReport:
    """The report that a job left in its folder. Raises CheckpointError where none is there or it can't be read."""
    file = Path(folder) / REPORT
    if not file.is_file():
        raise CheckpointError(f"the job in '{folder}' has no {REPORT}; run it again: it goes on, or says what ended it")
    return JobReport.from_dict(read_json(file), f"'{file}'")
