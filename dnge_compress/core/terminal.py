"""Documents and tables in a terminal: coloured where colours show, plain text elsewhere, ASCII where that is all."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from dnge_compress.core.document import Block, Cell, Column, Document, Facts, Figure, Notes, Paragraph, Passage, Table
from dnge_compress.core.wording import clean, safe, several

MAX_NOTES = 6
WIDTHS = {"bar": (12, 6, 0), "strip": (32, 16, 0)}  # of drawings, in characters; the widest that fits
HEIGHTS = "▁▂▃▄▅▆▇█"
STYLES = {"": "", "quiet": "dim", "accent": "cyan", "strong": "bold cyan"}
QUIET, ACCENT = STYLES["quiet"], STYLES["accent"]
ASCII = str.maketrans("→–−·×━─…▁▂▃▄▅▆▇█●◆│└", ">--|x=-._.,:-=+#o#||") | {ord("⟦"): "[[", ord("⟧"): "]]"}
MARKS = "⟦⟧"  # around what is marked, so that it can be told without colours


class Printable:
    """A value that prints as its document: `print(report)`, and in rich consoles."""

    def document(self) -> Document:
        """The value in sections."""
        raise NotImplementedError

    def __rich_console__(self, *_: object) -> Iterator[RenderableType]:
        yield Drawn(self.document())

    def __str__(self) -> str:
        return plain(Drawn(self.document()))


def show(what: Document | Table) -> None:
    """Print on stdout."""
    console = Console()
    drawn = Drawn(what)
    if console.is_terminal and not console.options.ascii_only:
        console.print(drawn)
        return
    text = plain(drawn)
    print(text.translate(ASCII).encode("ascii", "replace").decode() if console.options.ascii_only else text)


def plain(renderable: RenderableType, width: int | None = None) -> str:
    """A renderable as text without colours, at the console's width unless given."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def track(share: float, width: int, least: int = 0) -> Text:
    """A bar of so many characters, filled by a share (0..1); it can be read without colours."""
    full = max(least, round(min(1.0, share) * width))
    return Text.assemble(("━" * full, ACCENT), ("─" * (width - full), QUIET))


class Drawn:
    """A document or table as rich draws it."""

    def __init__(self, what: Document | Table) -> None:
        self.what = what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if isinstance(self.what, Table):
            yield _fitting(self.what, console, options)
        else:
            yield from _document(self.what, console, options)


def _document(document: Document, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    beside = [*document.facts, " → ".join(map(clean, document.stages))]
    text = " · ".join(filter(None, map(clean, beside)))
    title = Text.assemble((clean(document.title) or "model", "bold"), "   ", (text, QUIET))
    if document.place:
        title.append(f"\n{clean(document.place)}", QUIET)
    parts: list[RenderableType] = [title]
    for section in document.sections:
        for block in section.blocks:
            drawn = _block(block, section.title, console, options)
            parts += ["", drawn] if drawn is not None else []
    yield Padding(Group(*parts), (1, 1))


def _block(block: Block, title: str, console: Console, options: ConsoleOptions) -> RenderableType | None:
    if isinstance(block, Table | Paragraph) and "terminal" not in block.forms:
        return None
    match block:
        case Table():
            return _fitting(block, console, options)
        case Paragraph():
            return Text(clean(block.text), STYLES[block.style])
        case Passage():
            return Text.assemble(*(_piece(text, is_marked) for text, is_marked in block.pieces))
        case Facts():
            text = " · ".join(f"{clean(key)} {clean(value)}" for key, value in block.items)
            return _grid([(Text(clean(title).lower(), QUIET), Text(text))], gap=2)
        case Notes():
            shown = [*block.texts[:MAX_NOTES]]
            if len(block.texts) > MAX_NOTES:
                shown.append(f"and {several(len(block.texts) - MAX_NOTES, 'more note')} in {block.rest}")
            rows = [(Text("·", QUIET), Text(clean(note), QUIET)) for note in shown]
            return _grid(rows, gap=1)
        case Figure(lines=lines) if lines:
            return Text("\n".join(map(safe, lines)), ACCENT, no_wrap=True, overflow="ellipsis")
        case _:
            return None


def _piece(text: str, is_marked: bool) -> tuple[str, str]:
    lines = "\n".join(map(safe, text.expandtabs(4).split("\n")))
    return (lines.join(MARKS), ACCENT) if is_marked else (lines, QUIET)


def _fitting(table: Table, console: Console, options: ConsoleOptions) -> RenderableType:
    """The table with the widest drawings for which there is room; where there is none at all, columns stand closer."""
    kinds = [c.kind for c in table.columns if c.kind in WIDTHS]
    drawn = _table(table, 0)
    for width, gap in [*((width, 1) for width in (WIDTHS[kinds[0]] if kinds else (0,))), (0, 0)]:
        drawn = _table(table, width, gap)
        if console.measure(drawn, options=options.update(width=1000)).maximum <= options.max_width - 2:
            break
    return drawn


def _table(table: Table, drawing: int, gap: int = 1) -> Grid:
    shown = [i for i, c in enumerate(table.columns) if drawing or c.kind not in WIDTHS]
    grid = Grid(
        box=box.SIMPLE_HEAD, header_style=QUIET, border_style=QUIET, show_edge=False, pad_edge=False, padding=(0, gap)
    )
    for i in shown:
        column = table.columns[i]
        justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
        title = clean(column.title) if gap or column.is_long else clean(column.title).replace(" ", "\n")
        grid.add_column(title, no_wrap=not column.is_long, overflow="fold", justify=justify)
    above = ""
    for row in table.rows:
        texts = [_text(row[i], table.columns[i], drawing) for i in shown]
        if table.is_grouped and row[0].text == above:
            texts[0] = Text("")
        above = row[0].text
        grid.add_row(*texts)
        if any(row[i].change for i in shown):
            grid.add_row(*(Text(clean(row[i].change), ACCENT) for i in shown))
    if table.caption:
        grid.caption, grid.caption_style, grid.caption_justify = clean(table.caption), QUIET, "left"
    return grid


def _text(cell: Cell, column: Column, drawing: int) -> Text:
    if column.kind == "bar" and cell.bar is not None:
        return track(cell.bar, drawing, least=1)
    if column.kind == "strip":
        return Text(_heights(cell.strip, drawing), ACCENT)
    return Text.assemble((clean(cell.text), STYLES[cell.style]), (cell.detail and f" {clean(cell.detail)}", QUIET))


def _heights(values: tuple[float, ...], width: int) -> str:
    """A bar chart one line high; where there are more values than places, neighbours share one."""
    places = min(width, len(values))
    chart = ""
    for i in range(places):
        inside = values[len(values) * i // places : len(values) * (i + 1) // places]
        mean = sum(inside) / len(inside)
        chart += HEIGHTS[min(math.ceil(len(HEIGHTS) * mean), len(HEIGHTS)) - 1] if mean else " "
    return chart


def _grid(rows: list[tuple[Text, Text]], gap: int) -> Grid:
    grid = Grid.grid(padding=(0, gap))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid
