"""The sections of a job's report, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dnge_compress.core.document import (
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Headline,
    Notes,
    Panel,
    Panels,
    Paragraph,
    Section,
    Table,
)
from dnge_compress.core.wording import NOT_MEASURED, duration, extent, percent, several, span, spoken
from dnge_compress.jobs.report.measures import Measure, Milestone, Sample, measured
from dnge_compress.plans.space_rows import PLURAL, SpaceRow, alike, spaces_table
from dnge_compress.report import plots
from dnge_compress.report.plots import Curve

UNKNOWN = Cell(text=NOT_MEASURED, style="quiet")


def headlines(milestones: Sequence[Milestone], result: Milestone | None) -> tuple[Headline, ...]:
    """What the job changed, in a few large numbers."""
    if result is None or result is milestones[0]:
        return ()
    original = milestones[0]
    return tuple(
        Headline(name=m.name, change=m.change(result, original), before=m.text(original), after=m.text(result))
        for m in measured([original, result])
        if m.name != "loss" and m.change(result, original) and m.text(result) != m.text(original)
    )


def in_short(sentences: Sequence[str]) -> Section | None:
    """What it all came to."""
    return Section("In short", (Paragraph(" ".join(sentences)),)) if sentences else None


def comparison(milestones: Sequence[Milestone]) -> Section | None:
    """Every measure at every milestone, and its change against the first."""
    if not milestones:
        return None
    measures = measured(milestones)
    rows = tuple(
        (Cell(text=milestone.name), *(_value(m, milestone, milestones) for m in measures)) for milestone in milestones
    )
    columns = (Column(kind="text", is_long=True), *(Column(title=m.name, unit=m.unit) for m in measures))
    table = Table(columns=columns, rows=rows, look="comparison")
    if len(milestones) == 1:
        return Section("Before and after", (table,))
    scale = "; dots run from the lowest to the highest value, on the scale of the loss"
    kinds = f"Bars start at zero{scale if any(m.is_quality for m in measures) else ''}"
    caption = f"Changes are against {milestones[0].name}, which the upright line marks. {kinds}."
    return Section("Before and after", (table, Paragraph(caption, "quiet", ("page",))))


def losses(curves: Sequence[Curve]) -> Section | None:
    """The curves and what they come to."""
    known = [c for c in curves if c.train or c.held_out]
    if not known:
        return None
    columns = (
        Column(title="held-out loss", unit="nats per token", kind="text"),
        *(Column(title=title) for title in ("first", "lowest", "last")),
    )
    rows = tuple((Cell(text=c.name, drawing=plots.swatch(i)), *_points(c.held_out)) for i, c in enumerate(known))
    caption = "Nats per token over optimiser steps. Thin: training batches. Bold: held-out rows."
    table = Table(columns=columns, rows=rows, look="legend", forms=("markdown", "page"))
    return Section("Loss while training", (Paragraph(caption, "quiet", ("page",)), Figure(plots.curves(known)), table))


def samples(found: Sequence[Sample]) -> Section | None:
    """What the models write, one below the other."""
    if not found:
        return None
    columns = (Column(title="model", kind="text"), Column(title="goes on with", kind="text", is_long=True))
    blocks: list[Block] = []
    for sample in found:
        rows = tuple((Cell(text=name), Cell(text=text.strip())) for name, text in sample.continuations.items())
        blocks += [Paragraph(f'"{" ".join(sample.beginning.split())} …"', "quiet"), Table(columns=columns, rows=rows)]
    return Section("Samples", tuple(blocks))


def widths(found: Sequence[SpaceRow]) -> Section | None:
    """How much of every space stays; on a page, a plot for each kind."""
    if not found:
        return None
    groups = alike(found)
    table = replace(spaces_table(found), forms=("terminal", "markdown"))
    kinds = dict.fromkeys(w.kind for w in found)
    panels = Panels(tuple(_panel(kind, [w for w in found if w.kind == kind], groups) for kind in kinds))
    if len(groups) == len(found):
        return Section("Units kept", (table, panels))
    every = tuple(
        (Cell(text=w.space), Cell(text=f"{w.kept:,}"), Cell(text=f"{w.total:,}"), Cell(text=percent(w.kept / w.total)))
        for w in found
    )
    heads = (Column(title="space", kind="text"), Column(title="kept"), Column(title="of"), Column())
    return Section("Units kept", (table, panels, Table(columns=heads, rows=every, title="All spaces", forms=("page",))))


def times(seconds: Mapping[str, float | None]) -> Section | None:
    """Seconds of every stage."""
    if not seconds:
        return None
    total = sum(s for s in seconds.values() if s is not None)
    rows = [
        (Cell(text=stage), UNKNOWN, Cell())
        if s is None
        else (Cell(text=stage), Cell(text=duration(s)), Cell(bar=s / total if total else 0.0))
        for stage, s in seconds.items()
    ]
    if len(rows) > 1:
        rows.append((Cell(text="together", style="quiet"), Cell(text=duration(total), style="quiet"), Cell()))
    columns = (Column(title="stage", kind="text", is_long=True), Column(title="time"), Column(kind="bar"))
    return Section("Time", (Table(columns=columns, rows=tuple(rows), look="times"),))


def facts(title: str, values: Mapping[str, str]) -> Section | None:
    """Names and values."""
    return Section(title, (Facts(tuple((spoken(key), value) for key, value in values.items())),)) if values else None


def notes(texts: Sequence[str]) -> Section | None:
    """Remarks."""
    return Section("Notes", (Notes(tuple(texts), "report.json"),)) if texts else None


def _value(measure: Measure, milestone: Milestone, milestones: Sequence[Milestone]) -> Cell:
    """The number, its change, and where it stands among those of the other milestones."""
    if measure.of(milestone) is None:
        return UNKNOWN
    place, origin = _placed(measure, milestone, milestones), _placed(measure, milestones[0], milestones)
    drawing = ""
    if place is not None and len(milestones) > 1:
        drawing = plots.dot(place, origin) if measure.is_quality else plots.bar(place, origin)
    return Cell(text=measure.text(milestone), change=measure.change(milestone, milestones[0]), drawing=drawing)


def _placed(measure: Measure, milestone: Milestone, milestones: Sequence[Milestone]) -> float | None:
    """Where a value stands (0..1) from zero to the highest; as for quality, from the lowest loss to the highest."""
    of = (lambda m: m.loss) if measure.is_quality else measure.of
    known = [v for m in milestones if (v := of(m)) is not None and math.isfinite(v)]
    value = of(milestone)
    if value is None or not math.isfinite(value):
        return None
    low, high = min(known) if measure.is_quality else 0.0, max(known)
    return (value - low) / (high - low) if high > low else 0.5


def _points(held_out: Sequence[tuple[int, float]]) -> tuple[Cell, Cell, Cell]:
    finite = [p for p in held_out if math.isfinite(p[1])]
    if not finite:
        unknown = UNKNOWN if not held_out else Cell(text="not finite", style="quiet")
        return unknown, unknown, unknown
    first, lowest, last = (
        Cell(text=f"{loss:.3f}" if math.isfinite(loss) else "not finite", detail=f"step {step:,}")
        for step, loss in (held_out[0], min(finite, key=lambda point: point[1]), held_out[-1])
    )
    return first, lowest, last


def _panel(kind: str, members: Sequence[SpaceRow], groups: Sequence[tuple[str, list[SpaceRow]]]) -> Panel:
    kept, total, plural = sum(w.kept for w in members), sum(w.total for w in members), PLURAL.get(kind, kind)
    rows = tuple(
        (Cell(text=where), *(Cell(text=span(extent(getattr(w, n) for w in group))) for n in ("kept", "total")))
        for where, group in groups
        if group[0].kind == kind
    )
    columns = (Column(title="layers", kind="text"), Column(title="kept"), Column(title="of"))
    shares = [(w.kept / w.total, f"{_place(w)}: {w.kept:,} of {w.total:,} {plural} kept") for w in members]
    description = f"{kept:,} of {total:,} {plural} in {several(len(members), 'space')}, a column each."
    figure = plots.columns(f"Share of {plural} kept", description, shares, [w.layer for w in members])
    summary = (f"{kept:,} of {total:,}", percent(kept / total))
    return Panel(title=plural, summary=summary, figure=figure, table=Table(columns=columns, rows=rows))


def _place(width: SpaceRow) -> str:
    return width.space if width.layer is None else f"layer {width.layer}, {width.space}"
