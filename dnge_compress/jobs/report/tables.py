"""A JobReport as rich renderables, in the manner of `dnge_compress.tables`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dnge_compress.jobs.report.measures import measured
from dnge_compress.jobs.report.ranks import Row, grid
from dnge_compress.jobs.report.wording import NOT_MEASURED, clean, duration, several, spoken
from dnge_compress.report.condense import MAX_LINES, PLURAL, alike, extent
from dnge_compress.report.tables import ACCENT, BAR_WIDTHS, QUIET, bar, count, headed, listed, span

if TYPE_CHECKING:
    from dnge_compress.jobs.report import JobReport, Milestone, Rank, Width

STRIP_WIDTHS = (32, 16, 0)
HEIGHTS = "▁▂▃▄▅▆▇█"


def report(report: JobReport, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """What a JobReport draws: title, comparison, stages, widths, ranks, data, machine and notes."""
    parts = [
        _title(report),
        _comparison(report.milestones) if report.milestones else None,
        _stages(report.times) if report.times else None,
        _fitting(lambda width: _widths(report.widths, width), BAR_WIDTHS, console, options) if report.widths else None,
        _fitting(lambda width: _ranks(report.ranks, width), STRIP_WIDTHS, console, options) if report.ranks else None,
        _facts("data", {spoken(key): f"{n:,}" for key, n in report.rows.items()}),
        _facts("machine", {spoken(key): clean(value) for key, value in report.machine.items()}),
        listed([clean(note) for note in report.notes], "report.json") if report.notes else None,
    ]
    shown = [part for part in parts if part is not None]
    spaced = [line for part in shown for line in ("", part)][1:]
    yield Padding(Group(*spaced), (1, 1))


def _title(report: JobReport) -> Text:
    facts = [clean(report.name), " → ".join(map(clean, report.stages))]
    title = Text.assemble((clean(report.model) or "model", "bold"), "   ", (" · ".join(filter(None, facts)), QUIET))
    return title.append(f"\n{clean(report.output_dir)}", QUIET) if report.output_dir else title


def _comparison(milestones: Sequence[Milestone]) -> Table:
    """Values of each milestone, and below them the change against the first."""
    measures, original = measured(milestones), milestones[0]
    table = headed("", *(m.name for m in measures), right_from=1)
    _fold(table, 0)
    for milestone in milestones:
        known = [m.of(milestone) is not None for m in measures]
        values = [m.text(milestone) if k else "·" for m, k in zip(measures, known, strict=True)]
        is_first = milestone is original
        table.add_row(clean(milestone.name), *(Text(v, QUIET if is_first else "") for v in values))
        if not is_first:
            table.add_row("", *(Text(m.change(milestone, original), ACCENT) for m in measures))
    if any(m.of(milestone) is None for m in measures for milestone in milestones):
        table.caption, table.caption_style, table.caption_justify = f"· {NOT_MEASURED}", QUIET, "left"
    return table


def _stages(times: Mapping[str, float | None]) -> Table:
    total = sum(s for s in times.values() if s is not None)
    table = headed("stage", "time", "", right_from=1)
    _fold(table, 0)
    table.columns[2].justify = "left"
    for stage, seconds in times.items():
        if seconds is None:
            table.add_row(clean(stage), Text(NOT_MEASURED, QUIET), "")
        else:
            table.add_row(clean(stage), duration(seconds), bar(seconds / total if total else 0, BAR_WIDTHS[0]))
    if len(times) > 1:
        table.add_row(Text("together", QUIET), Text(duration(total), QUIET), "")
    return table


def _widths(widths: Sequence[Width], bar_width: int) -> Table:
    bars = [""] * bool(bar_width)
    table = headed("", "layers", *bars, "units kept", right_from=2 + len(bars))
    _fold(table, 0)
    _fold(table, 1)
    previous = ""
    for where, group in alike(widths):
        kind = group[0].kind
        kept, total = extent(w.kept for w in group), extent(w.total for w in group)
        table.add_row(
            "" if kind == previous else PLURAL.get(kind, clean(kind)),
            Text(clean(where), QUIET),
            *(bar(sum(w.kept for w in group) / sum(w.total for w in group), bar_width) for _ in bars),
            Text.assemble(span(kept), (f" / {span(total)}", QUIET)),
        )
        previous = kind
    return table


def _ranks(ranks: Sequence[Rank], strip_width: int) -> Table:
    """One line per type of module; the strip shows the ranks from the first layer to the last."""
    placed = grid(ranks)
    strips = ["rank by layer"] * bool(strip_width and placed.layers)
    table = headed("adapters on", *strips, "rank", "parameters", right_from=1 + len(strips))
    _fold(table, 0)
    for row in placed.rows[:MAX_LINES]:
        strip = (Text(_strip(row, placed.layers, placed.highest, strip_width), ACCENT) for _ in strips)
        table.add_row(clean(row.name), *strip, span(row.range), count(row.params))
    if len(placed.rows) > MAX_LINES:
        table.add_row(Text(f"and {several(len(placed.rows) - MAX_LINES, 'more type')}", QUIET))
    summary = several(placed.placed, "adapter")
    table.add_row(Text(summary, QUIET), *("" for _ in strips), "", Text(count(placed.params), QUIET))
    return table


def _strip(row: Row, layers: Sequence[int], highest: int, width: int) -> str:
    """A bar chart of ranks one line high; where there are more layers than places, neighbours share one."""
    if not row.cells or not highest:
        return ""
    places = min(width, len(layers))
    chart = ""
    for i in range(places):
        inside = layers[len(layers) * i // places : len(layers) * (i + 1) // places]
        found = [rank for layer in inside for rank in row.cells.get(layer, ())]
        mean = sum(found) / max(1, len(found))
        chart += HEIGHTS[min(math.ceil(len(HEIGHTS) * mean / highest), len(HEIGHTS)) - 1] if mean else " "
    return chart


def _facts(title: str, facts: Mapping[str, str]) -> Table | None:
    if not facts:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(title, QUIET), " · ".join(f"{key} {value}" for key, value in facts.items()))
    return table


def _fitting(
    draw: Callable[[int], Table], widths: Sequence[int], console: Console, options: ConsoleOptions
) -> RenderableType:
    """The table with the widest bars for which there is room."""
    for width in widths:
        table = draw(width)
        if console.measure(table, options=options.update(width=1000)).maximum <= options.max_width - 2:
            break
    return table


def _fold(table: Table, column: int) -> None:
    """Let a column of names take several lines: they come from users and can be of any length."""
    table.columns[column].no_wrap, table.columns[column].overflow = False, "fold"
