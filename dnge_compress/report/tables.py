"""How results look: a Report as rich renderables, plain text or Markdown, and the tables of the command line."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dnge_compress.report.condense import PLURAL, Range, lines

if TYPE_CHECKING:
    from dnge_compress.plans.prune_plan import PrunePlan
    from dnge_compress.report.report import Report
    from dnge_compress.report.rows import Row

MAX_NOTES = 6
BAR_WIDTHS = (12, 6, 0)
QUIET, ACCENT = "dim", "cyan"
ASCII = str.maketrans("→–−·×━─…▁▂▃▄▅▆▇█", ">--|x=-._.,:-=+#")


def report(report: Report, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """What a Report draws: title, spaces, totals, timings and notes."""
    facts = [report.recipe_name, f"scorer {report.scorer}" if report.scorer else ""]
    if report.predicted_cost:
        facts.append(f"predicted cost {report.predicted_cost:.3g}")
    title = Text.assemble((report.model_name or "model", "bold"), "   ", (" · ".join(filter(None, facts)), QUIET))
    times = " · ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.timings.items())
    parts: list[RenderableType] = [title, "", _fitting(report.rows, console, options), "", _totals(report)]
    if times:
        parts += ["", Text(times, QUIET)]
    if report.notes:
        parts += ["", listed(report.notes, "the plan")]
    yield Padding(Group(*parts), (1, 1))


def spaces(rows: Sequence[Row], bar_width: int = BAR_WIDTHS[0]) -> Table:
    """The table of kept units (of each space), parameters (of all in the line) and predicted cost (of each)."""
    bars = [""] * bool(bar_width)
    table = headed("", "layers", *bars, "units kept", "parameters", "cost", right_from=2 + len(bars))
    previous = ""
    for line in lines(rows):
        whole = line.kept == line.total and not line.cost[1]
        table.add_row(
            "" if line.kind == previous else PLURAL.get(line.kind, line.kind),
            Text(line.where, QUIET),
            *(bar(line.share, bar_width) for _ in bars),
            Text.assemble(span(line.kept), (f" / {span(line.total)}", QUIET)),
            Text.assemble((f"{count(line.before)} → ", QUIET), count(line.after)),
            Text("·", QUIET) if whole else _cost(line.cost),
        )
        previous = line.kind
    return table


def show(renderable: RenderableType) -> None:
    """Print on stdout: in colour on a terminal, as plain text into a pipe, in ASCII where that is all there is."""
    console = Console()
    if console.is_terminal and not console.options.ascii_only:
        console.print(renderable)
        return
    text = plain(renderable)
    print(text.translate(ASCII).encode("ascii", "replace").decode() if console.options.ascii_only else text)


def plain(renderable: RenderableType, width: int | None = None) -> str:
    """A renderable as text without colours, at the console's width unless told."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def markdown(report: Report) -> str:
    """A Report as two Markdown tables."""
    out = ["| | layers | units kept | parameters | predicted cost |", "|---|---|---|---|---|"]
    for line in lines(report.rows):
        kept = f"{span(line.kept)} / {span(line.total)}"
        params = f"{count(line.before)} → {count(line.after)}"
        out.append(f"| {PLURAL.get(line.kind, line.kind)} | {line.where} | {kept} | {params} | {_cost(line.cost)} |")
    out += ["", "| | before | after | saved |", "|---|---|---|---|"]
    for name, before, after, saved in _total_lines(report):
        out.append(f"| {name} | {before} | {after} | {saved} |")
    if report.notes:
        out += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(out) + "\n"


def scores(summary: Mapping[str, tuple[str, Sequence[float]]]) -> Table:
    """Lowest, median and highest score per space; `summary` maps a space to its kind and values."""
    table = headed("space", "", "units", "lowest", "median", "highest", right_from=2)
    for space, (kind, values) in summary.items():
        ordered = sorted(values)
        points = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        shown = (f"{point:.3g}" for point in points)
        table.add_row(Text(space), Text(PLURAL.get(kind, kind), QUIET), f"{len(ordered):,}", *shown)
    return table


def plan(made: PrunePlan, rows: Sequence[Row]) -> RenderableType:
    """What a plan will remove, and why it differs from what was asked."""
    before, after = made.params_before, made.params_after
    saved = f"{100 * (1 - after / max(before, 1)):.1f} %"
    title = Text.assemble(
        (f"{count(before)} → ", QUIET), f"{count(after)} parameters   ", (saved, f"bold {ACCENT}"), " saved"
    )
    parts: list[RenderableType] = [title, "", spaces(rows)]
    if made.notes:
        parts += ["", listed(made.notes, "the plan")]
    return Padding(Group(*parts), (1, 1))


def recipes(entries: Iterable[tuple[str, str]]) -> Table:
    """Names and descriptions of recipes."""
    table = headed("recipe", "", right_from=9)
    table.columns[-1].no_wrap = False
    for name, about in entries:
        table.add_row(Text(name), Text(about, QUIET))
    return table


def count(n: float, unit: str = "") -> str:
    """Three digits and a decimal prefix, e.g. 22.7 M."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size * 0.9995:
            digits = f"{n / size:#.3g}".rstrip(".") if n < size * 999.5 else f"{n / size:,.0f}"
            return f"{digits} {prefix}{unit}"
    return f"{n:.0f} {unit}".rstrip()


def headed(*headers: str, right_from: int) -> Table:
    """An empty table in our manner; columns are right-aligned from number `right_from`."""
    table = Table(
        box=box.SIMPLE_HEAD, header_style=QUIET, border_style=QUIET, show_edge=False, pad_edge=False, padding=(0, 1)
    )
    for i, header in enumerate(headers):
        table.add_column(header, no_wrap=True, justify="right" if i >= right_from else "left")
    return table


def listed(notes: Sequence[str], rest: str) -> Table:
    """The first notes, one a line, and how many more are in `rest`."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(overflow="fold")
    shown = [*notes[:MAX_NOTES]]
    if len(notes) > MAX_NOTES:
        shown.append(f"and {len(notes) - MAX_NOTES} more notes in {rest}")
    for note in shown:
        grid.add_row(Text("·", QUIET), Text(note, QUIET))
    return grid


def span(extent: Range) -> str:
    """A range in words, or one number where both ends are equal."""
    low, high = extent
    return f"{low:,.0f}" if low == high else f"{low:,.0f}–{high:,.0f}"


def bar(share: float, width: int) -> Text:
    """A bar `width` characters long, of which `share` (0..1) is full."""
    full = max(1, round(share * width))
    return Text.assemble(("━" * full, ACCENT), ("─" * (width - full), QUIET))


def _fitting(rows: Sequence[Row], console: Console, options: ConsoleOptions) -> Table:
    """The table of spaces with the widest bars for which there is room."""
    for bar_width in BAR_WIDTHS:
        table = spaces(rows, bar_width)
        if console.measure(table, options=options.update(width=1000)).maximum <= options.max_width - 2:
            break
    return table


def _totals(report: Report) -> Table:
    table = headed("", "before", "after", "saved", right_from=1)
    for name, before, after, saved in _total_lines(report):
        table.add_row(name, Text(before, QUIET), after, Text(saved, f"bold {ACCENT}"))
    return table


def _total_lines(report: Report) -> Iterator[tuple[str, str, str, str]]:
    totals = report.totals
    named = (
        ("parameters", totals.params, ""),
        ("without embeddings", totals.non_embedding_params, ""),
        ("multiply-accumulates", totals.macs, ""),
        ("bytes", totals.bytes, "B"),
    )
    for name, (before, after), unit in named:
        if before:
            yield name, count(before, unit), count(after, unit), f"{100 * (1 - after / before):.1f} %"


def _cost(extent: Range) -> str:
    low, high = (f"{value:.2g}" for value in extent)
    return low if low == high else f"{low}–{high}"
