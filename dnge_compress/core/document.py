"""What a report says, as values: titles, tables, facts and notes. `terminal`, `markdown` and `report.page` write them.

Texts may come from users and hold anything; the writers make them safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Style = Literal["", "quiet", "accent", "strong"]
Form = Literal["terminal", "markdown", "page"]
EVERYWHERE: tuple[Form, ...] = ("terminal", "markdown", "page")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table.

    `detail` is said quietly behind the text, `change` against the table's first row. `bar` is a share (0..1),
    `strip` some numbers (0..1) drawn side by side; `drawing` is markup that pages show for them.
    """

    text: str = ""
    style: Style = ""
    detail: str = ""
    change: str = ""
    bar: float | None = None
    strip: tuple[float, ...] = ()
    drawing: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """`title`, and the `unit` where there is room for it. Of the kinds, "bar" and "strip" are drawings, which are left
    out where there is no room; texts may take several lines, if they are `long`."""

    title: str = ""
    unit: str = ""
    kind: Literal["text", "number", "bar", "strip"] = "number"
    is_long: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells. `is_grouped`: a first cell that repeats the one above is left empty in a terminal. `title` makes
    it a table that a page folds until someone wants it; `axis` is markup that a page shows below the last column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    title: str = ""
    axis: str = ""
    look: str = ""  # the class of its style on a page
    is_grouped: bool = False
    forms: tuple[Form, ...] = EVERYWHERE


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Notes:
    """Remarks, one a line; in a terminal the first few, and that the `rest` holds more."""

    texts: tuple[str, ...]
    rest: str


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two."""

    text: str
    style: Style = ""
    forms: tuple[Form, ...] = EVERYWHERE


@dataclass(frozen=True)
class Figure:
    """Markup that pages show, and lines of text for it in terminals."""

    markup: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passage:
    """Text in pieces, breaks and all, and whether each is marked; only terminals show it."""

    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """On a page, a heading with a summary, a figure, and the table that says the same."""

    title: str
    summary: tuple[str, str]
    figure: str
    table: Table


@dataclass(frozen=True)
class Panels:
    """Panels side by side; only pages show them."""

    panels: tuple[Panel, ...]


Block: TypeAlias = Table | Facts | Notes | Paragraph | Figure | Passage | Panels


@dataclass(frozen=True)
class Section:
    """Blocks under a title; facts alone stand side by side with others of their kind on a page."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number that changed, in large letters."""

    name: str
    change: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report. `facts` stand beside its title, `place` (a folder) below; `stages` in their order."""

    title: str
    facts: tuple[str, ...] = ()
    place: str = ""
    eyebrow: str = ""
    stages: tuple[str, ...] = ()
    headlines: tuple[Headline, ...] = ()
    sections: tuple[Section, ...] = field(default=())
