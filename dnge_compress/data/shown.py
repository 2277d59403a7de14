"""Rows as they will be learned, for people to see: their text in pieces, and which of them count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnge_compress.data.conversations import Conversation
from dnge_compress.data.lessons import Answer, Lesson, lesson
from dnge_compress.data.sources import Opened

if TYPE_CHECKING:
    from dnge_compress.data.pieces import Row

Piece = tuple[str, bool]  # text, and whether it is learned


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row of a file. Tokens are counted where a tokenizer is known; learned ones without a row's first, which nothing
    predicts. `pieces` is empty where there is nothing to learn."""

    place: str
    pieces: tuple[Piece, ...]
    tokens: int | None = None
    learned_tokens: int | None = None


def shown_rows(found: Opened, count: int, tokenizer: Any = None) -> Iterator[ShownRow]:
    """The first rows of a source, as the tokenizer and its chat template write them; without one, as they stand in the
    file. What a job cuts at max_length is still there, and what it packs stands alone. Raises DataError."""
    speaks = tokenizer is None or bool(tokenizer.chat_template)
    rows = (placed for table in found.tables for placed in table)
    for place, row in islice(rows, count):
        taught = lesson(row, found.source, place, speaks=speaks)
        if taught is None:
            yield ShownRow(place=place, pieces=())
        elif tokenizer is None:
            yield ShownRow(place=place, pieces=tuple(_as_they_stand(taught)))
        else:
            yield from _encoded(taught, tokenizer, place)


def _as_they_stand(taught: Lesson) -> Iterator[Piece]:
    if isinstance(taught, Conversation):
        if taught.tools:
            yield f"tools: {', '.join(map(_name_of, taught.tools))}\n", False
        for message, is_learned in zip(taught.messages, taught.learned, strict=True):
            calls = "".join(f"calls {_name_of(call)}" for call in message.get("tool_calls", ()))
            yield f"{message['role']}: ", False
            yield "\n".join(filter(None, (message.get("content") or "", calls))), is_learned
            yield "\n", False
    elif isinstance(taught, Answer):
        yield from ((taught.prompt, False), (taught.completion, True))
    else:
        yield taught, True


def _name_of(tool: Any) -> str:
    """What a tool, or a call of one, is called."""
    return str((tool.get("function") or tool).get("name", "?"))


def _encoded(taught: Lesson, tokenizer: Any, place: str) -> Iterator[ShownRow]:
    from dnge_compress.data.chat import check_template  # here, since transformers takes seconds to import
    from dnge_compress.data.encoding import Encoder

    if isinstance(taught, Conversation):
        check_template(tokenizer)
    rows = Encoder(tokenizer).rows(taught, place)
    for number, row in enumerate(rows, 1):
        part = f", part {number} of {len(rows)}" if len(rows) > 1 else ""
        yield ShownRow(
            place=place + part,
            pieces=tuple(_decoded(row, tokenizer)),
            tokens=len(row.ids),
            learned_tokens=sum(row.learned[1:]),
        )


def _decoded(row: Row, tokenizer: Any) -> Iterator[Piece]:
    """Runs of tokens as text; each is what the text becomes longer by, since tokens alone may lose their spaces."""
    done, before = 0, ""
    for is_learned, run in groupby(row.learned):
        done += len(list(run))
        text = tokenizer.decode(row.ids[:done], clean_up_tokenization_spaces=False)
        yield text[len(before) :], is_learned
        before = text


def title_of(found: Opened) -> str:
    """What to call a source."""
    return Path(found.source.path).name
