"""What a compression did: units, parameters, work and bytes, before and after. A Report renders itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from dnge_compress.core.document import Cell, Column, Document, Notes, Paragraph, Section, Table
from dnge_compress.core.markdown import body
from dnge_compress.core.strict_json import json_values, read_json, read_strictly
from dnge_compress.core.terminal import Printable
from dnge_compress.core.wording import UNKNOWN, count, percent
from dnge_compress.graph.types import ModelGraph
from dnge_compress.plans.expected import Expected
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.sensitivity import Sensitivity
from dnge_compress.plans.space_rows import SpaceRow, spaces_table
from dnge_compress.report.page import page
from dnge_compress.report.sensitivity_map import sensitivity_section
from dnge_compress.report.sizes import Totals, measure
from dnge_compress.signals.inference import Inputs


@dataclass(frozen=True, kw_only=True)
class Report(Printable):
    """Rows per space, totals, timings in seconds, and how sensitive each space is. `print(report)` draws the tables,
    `to_html` also a map of the sensitivity."""

    rows: tuple[SpaceRow, ...]
    totals: Totals
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scorer: str = ""
    recipe_name: str = ""
    model_name: str = ""
    predicted_cost: float | None = 0.0
    expected: Expected | None = None
    sensitivity: tuple[Sensitivity, ...] = ()

    def document(self) -> Document:
        """The report in sections."""
        facts = [self.recipe_name, f"scorer {self.scorer}" if self.scorer else ""]
        if self.expected:
            facts.insert(0, str(self.expected))
        elif self.predicted_cost is None:
            facts.append(f"predicted cost {UNKNOWN}")
        elif self.predicted_cost:
            facts.append(f"predicted cost {self.predicted_cost:.3g}")
        times = " · ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.timings.items())
        sections = [
            Section("Units kept", (spaces_table(self.rows),)),
            Section("Before and after", (_totals(self.totals),)),
        ]
        found = sensitivity_section(self.sensitivity)
        if found:
            sections.append(found)
        if times:
            sections.append(Section("Time", (Paragraph(times, "quiet", ("terminal", "page")),)))
        if self.notes:
            sections.append(Section("Notes", (Notes(self.notes, "the plan"),)))
        return Document(
            title=self.model_name,
            facts=tuple(filter(None, facts)),
            sections=tuple(sections),
            eyebrow="Compression report",
        )

    def to_markdown(self) -> str:
        """The tables as Markdown, for a model card."""
        return body(self.document())

    def to_html(self) -> str:
        """One page; it holds everything it needs, runs nothing and asks nobody."""
        return page(self.document())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return json_values(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], origin: str = "report") -> Report:
        """Read a report, which errors call `origin`. Raises CheckpointError where a key is unknown or missing, or a
        value of the wrong type."""
        return read_strictly(cls, raw, origin)

    @classmethod
    def read(cls, file: Path) -> Report:
        """Read the report in a JSON file. Raises CheckpointError naming it."""
        return cls.from_dict(read_json(file), f"'{file}'")


def build_report(
    plan: PrunePlan,
    graph: ModelGraph,
    *,
    before: nn.Module,
    after: nn.Module,
    inputs: Inputs | None = None,
    timings: Mapping[str, float] | None = None,
) -> Report:
    """Compare a model with what a counted plan made of it; `graph` is that of the model before.

    Work is counted on the first example of `inputs`.

        report = build_report(plan, graph, before=model, after=apply(plan, model), inputs=batch)
    """
    old, new = measure(before, graph, inputs), measure(after, graph, inputs)
    return Report(
        rows=plan.rows,
        totals=Totals(**{f.name: (getattr(old, f.name), getattr(new, f.name)) for f in fields(Totals)}),
        timings=dict(timings or {}),
        notes=plan.notes,
        scorer=str(plan.recipe.get("scorer", "")),
        recipe_name=str(plan.recipe.get("name", "")),
        model_name=name_of(before),
        predicted_cost=plan.predicted_cost,
        expected=plan.expected,
        sensitivity=plan.sensitivity,
    )


def _totals(totals: Totals) -> Table:
    named = (
        ("parameters", totals.params, ""),
        ("without embeddings", totals.non_embedding_params, ""),
        ("multiply-accumulates", totals.macs, ""),
        ("bytes", totals.bytes, "B"),
    )
    rows = tuple(
        (
            Cell(text=name),
            Cell(text=count(before, unit), style="quiet"),
            Cell(text=count(after, unit)),
            Cell(text=percent(1 - after / before), style="strong"),
        )
        for name, (before, after), unit in named
        if before
    )
    columns = (Column(kind="text"), Column(title="before"), Column(title="after"), Column(title="saved"))
    return Table(columns=columns, rows=rows)


def name_of(model: nn.Module) -> str:
    """What a model is called: the last part of where it came from, or its class."""
    path = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return path.rstrip("/").rsplit("/", 1)[-1] or type(model).__name__
