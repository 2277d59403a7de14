"""Documents as Markdown, for model cards and pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dnge_compress.core.document import Block, Cell, Column, Document, Facts, Notes, Paragraph, Section, Table
from dnge_compress.core.wording import clean

SPECIAL = re.compile(r"[\\`*\[\]|~#]|(?<!\w)_|_(?!\w)")  # underscores inside words mean nothing


def markdown(document: Document) -> str:
    """Title, headings and tables; sections without content are left out."""
    facts = [*map(escape, document.facts), " → ".join(map(escape, document.stages)), escape(document.place)]
    out = [f"# {escape(document.title) or document.eyebrow}", "", " · ".join(filter(None, facts))]
    for section in document.sections:
        lines = list(_lines(section))
        if lines:
            out += ["", f"## {section.title}", "", *lines]
    return "\n".join(out) + "\n"


def body(document: Document) -> str:
    """The sections' content alone, without any heading."""
    parts = ["\n".join(lines) for section in document.sections if (lines := list(_lines(section)))]
    return "\n\n".join(parts) + "\n"


def escape(text: object) -> str:
    """User text that stays text in Markdown and in the HTML it becomes, on one line."""
    plain = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\g<0>", plain)


def _lines(section: Section) -> Iterator[str]:
    is_table = False
    for block in section.blocks:
        if not isinstance(block, Table | Paragraph) or "markdown" in block.forms:
            if is_table:  # it would go on with whatever stands right below
                yield ""
            yield from _block(block)
            is_table = isinstance(block, Table | Facts)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Table():
            shown = [i for i, c in enumerate(block.columns) if c.kind not in ("bar", "strip")]
            yield _line(*(_heading(block.columns[i]) for i in shown))
            yield "|---|" + "".join("--:|" if block.columns[i].kind == "number" else "---|" for i in shown[1:])
            for row in block.rows:
                yield _line(*(_cell(row[i]) for i in shown))
        case Paragraph():
            yield escape(block.text)
        case Facts():
            yield from (_line("", ""), "|---|--:|")
            for key, value in block.items:
                yield _line(escape(key), escape(value))
        case Notes():
            for note in block.texts:
                yield f"- {escape(note)}"


def _heading(column: Column) -> str:
    return escape(f"{column.title} ({column.unit})" if column.unit else column.title)


def _cell(cell: Cell) -> str:
    text = f"{cell.text} {cell.detail}".strip()
    return escape(f"{text} ({cell.change})" if cell.change else text)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
