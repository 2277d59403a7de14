"""A JobReport as Markdown tables, for a model card."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dnge_compress.jobs.report.measures import measured
from dnge_compress.jobs.report.ranks import grid
from dnge_compress.jobs.report.wording import NOT_MEASURED, clean, duration, several, spoken
from dnge_compress.report.condense import PLURAL, alike, extent
from dnge_compress.report.tables import count, span

if TYPE_CHECKING:
    from dnge_compress.jobs.report import Curve, JobReport, Milestone, Rank, Width

SPECIAL = re.compile(r"[\\`*\[\]|~#]|(?<!\w)_|_(?!\w)")  # underscores inside words mean nothing


def report(report: JobReport) -> str:
    """Headings and tables; sections without content are left out."""
    sections = {
        "Before and after": _comparison(report.milestones) if report.milestones else (),
        "Losses": _losses(report.curves),
        "Units kept": _widths(report.widths) if report.widths else (),
        "Ranks": _ranks(report.ranks) if report.ranks else (),
        "Time": _stages(report.times) if report.times else (),
        "Data": _facts({spoken(key): f"{n:,}" for key, n in report.rows.items()}),
        "Machine": _facts({spoken(key): value for key, value in report.machine.items()}),
        "Notes": (f"- {escape(note)}" for note in report.notes),
    }
    out = [f"# {escape(report.model) or 'Job report'}", "", _subtitle(report)]
    for title, lines in sections.items():
        found = list(lines)
        if found:
            out += ["", f"## {title}", "", *found]
    return "\n".join(out) + "\n"


def escape(text: object) -> str:
    """User text that stays text in Markdown and in the HTML it becomes, on one line."""
    plain = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\g<0>", plain)


def _subtitle(report: JobReport) -> str:
    facts = [escape(report.name), " → ".join(map(escape, report.stages)), escape(report.output_dir)]
    return " · ".join(filter(None, facts))


def _comparison(milestones: Sequence[Milestone]) -> Iterator[str]:
    measures, original = measured(milestones), milestones[0]
    headings = [f"{m.name} ({m.unit})" if m.unit else m.name for m in measures]
    yield from _header("", *headings)
    for milestone in milestones:
        cells = []
        for measure in measures:
            change = measure.change(milestone, original)
            cells.append(f"{measure.text(milestone)} ({change})" if change else measure.text(milestone))
        yield _line(escape(milestone.name), *cells)


def _losses(curves: Sequence[Curve]) -> Iterator[str]:
    told = [(c.name, finite) for c in curves if (finite := [p for p in c.held_out if math.isfinite(p[1])])]
    if told:
        yield from _header("held-out loss, nats per token", "first", "lowest", "last")
    for name, held_out in told:
        points = (held_out[0], min(held_out, key=lambda point: point[1]), held_out[-1])
        yield _line(escape(name), *(f"{loss:.3f} (step {step:,})" for step, loss in points))


def _widths(widths: Sequence[Width]) -> Iterator[str]:
    yield from _header("", "layers", "units kept")
    for where, group in alike(widths):
        kept, total = extent(w.kept for w in group), extent(w.total for w in group)
        kind = group[0].kind
        yield _line(PLURAL.get(kind, escape(kind)), escape(where), f"{span(kept)} / {span(total)}")


def _ranks(ranks: Sequence[Rank]) -> Iterator[str]:
    placed = grid(ranks)
    yield from _header("", "adapters", "rank", "parameters")
    for row in placed.rows:
        yield _line(escape(row.name), row.coverage, span(row.range), count(row.params))
    yield _line("together", several(placed.placed, "adapter"), "", count(placed.params))


def _stages(times: Mapping[str, float | None]) -> Iterator[str]:
    yield from _header("stage", "time")
    for stage, seconds in times.items():
        yield _line(escape(stage), NOT_MEASURED if seconds is None else duration(seconds))


def _facts(facts: Mapping[str, str]) -> Iterator[str]:
    if facts:
        yield from _header("", "")
    for key, value in facts.items():
        yield _line(escape(key), escape(value))


def _header(first: str, *others: str) -> Iterator[str]:
    yield _line(first, *others)
    yield "|---|" + "--:|" * len(others)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
