"""`dnge data`: look at rows as they will be learned. Only a model's tokenizer needs transformers."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnge_compress.cli.output import print_json
from dnge_compress.core.document import Document, Paragraph, Passage, Section
from dnge_compress.core.progress_bars import loading_libraries
from dnge_compress.core.terminal import show as draw
from dnge_compress.core.wording import several
from dnge_compress.data.kinds import LEARNED
from dnge_compress.data.shown import ShownRow, shown_rows, title_of
from dnge_compress.data.sources import Opened, opened, source_of


def show(options: Namespace) -> None:
    """`dnge data show FILE [--model MODEL] [--rows N]`"""
    found = opened(source_of(options.file), Path.cwd())
    rows = list(shown_rows(found, options.rows, _tokenizer(options.of) if options.of else None))
    if options.json:
        source = found.source.model_dump(exclude_none=True, include={"path", "type", "columns", "split"})
        print_json(
            {**source, "read_as": found.said, "learned": LEARNED[found.source.type], "rows": list(map(_raw, rows))}
        )
    else:
        draw(_document(found, rows))


def _tokenizer(path: str) -> Any:
    with loading_libraries():
        from dnge_compress.checkpoint.strict_loading import quiet  # here, since transformers takes seconds to import
        from dnge_compress.signals.tokenizer import needed_tokenizer
    with quiet():
        return needed_tokenizer(path, "to show rows with")


def _raw(row: ShownRow) -> dict[str, Any]:
    return {**asdict(row), "pieces": [{"text": text, "learned": is_learned} for text, is_learned in row.pieces]}


def _document(found: Opened, rows: list[ShownRow]) -> Document:
    facts = (f"read as {found.said}", LEARNED[found.source.type], "⟦ ⟧ marks it")
    sections = []
    for row in rows:
        counts = (
            "" if row.tokens is None else f" · {several(row.tokens, 'token')}, {row.learned_tokens} of them learned"
        )
        head = Paragraph(f"{row.place}{counts if row.pieces else ' · nothing to learn, so it is left out'}", "quiet")
        sections.append(Section(row.place, (head, Passage(row.pieces)) if row.pieces else (head,)))
    return Document(title=title_of(found), facts=facts, sections=tuple(sections))
