"""Tokenised rows to train on, from the sources of a recipe.

- "text": every token is learned. With packing, texts follow each other, each closed by the end-of-text token, and the
  whole is cut into rows of `max_length`. A .txt file is then one text, line breaks and all; without packing each of its
  lines is a text.
- "prompt_completion": the completion and an end-of-text token are learned. Nothing is put between the two columns.
  Where they hold messages, they are a conversation, of which the assistant's turns in the completion are learned.
- "messages" and "sharegpt": the assistant's turns are learned (chat.py).
- "alpaca": the output is learned, as a conversation where the tokenizer has a chat template (lessons.py).
- "sampled": rows of tokens that the model wrote. They begin with its start-of-text token and may break off anywhere, so
  nothing is added when they are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from dnge_compress.core.errors import DataError
from dnge_compress.data.chat import check_template
from dnge_compress.data.encoding import Encoder
from dnge_compress.data.formats import Placed, RowFile
from dnge_compress.data.kinds import LEARNED
from dnge_compress.data.kinship import signs_of
from dnge_compress.data.lessons import CONVERSATIONS, Lesson, lesson
from dnge_compress.data.pieces import begun, encode
from dnge_compress.data.rows import Ledger, Rows
from dnge_compress.data.sources import Opened, opened
from dnge_compress.recipes.data_schema import Dataset

BATCH_CHARACTERS = 1_000_000
Sampler = Callable[[int], Iterable[Sequence[int]]]


def read_rows(
    sources: Sequence[Dataset],
    tokenizer: Any,
    *,
    max_length: int,
    packing: bool,
    folder: Path,
    sampled: Sampler | None = None,
) -> Rows:
    """The rows of all sources, packed ones last. Relative paths are looked for in `folder`.

    `sampled` gives the rows of type "sampled", for a number of tokens. Raises DataError naming file and row.

        rows = read_rows(recipe.datasets, tokenizer, max_length=512, packing=True, folder=Path("recipes"))
    """
    reader, notes = _Reader(Encoder(tokenizer), Ledger(max_length, packing)), []
    for source in sources:
        if source.type == "sampled":
            reader.add_sampled(source, sampled)
            continue
        found = opened(source, folder)
        if found.source.type in CONVERSATIONS:
            check_template(tokenizer)
        learned = LEARNED[found.source.type]
        notes.append(f"'{Path(source.path).name}' is read as {found.said}: {learned}")
        reader.add_tables(found)
    return replace(reader.ledger.rows(), notes=tuple(notes))


@dataclass(frozen=True)
class _Reader:
    """Tokenises rows into a ledger."""

    encoder: Encoder
    ledger: Ledger

    def add_sampled(self, source: Dataset, sampled: Sampler | None) -> None:
        if sampled is None:
            raise DataError("datasets: type 'sampled' needs a model that writes, and here is none; give a path instead")
        for ids in sampled(source.tokens):
            self.ledger.counts["read"] += 1
            self.ledger.add_text(list(ids), is_real=False)

    def add_tables(self, opened: Opened) -> None:
        source, read = opened.source, self.ledger.counts["read"]
        for table in opened.tables:
            done = self.ledger.counts["read"] - read
            if done == source.max_rows:
                break
            rows = islice(table, None if source.max_rows is None else source.max_rows - done)
            is_lines = isinstance(table, RowFile) and table.suffix == ".txt"
            if is_lines and self.ledger.packing:
                self._add_stream(rows)
            elif source.type == "text":
                self._add_texts(self._lessons(rows, source), is_lines)
            else:
                for place, found, number in self._lessons(rows, source):
                    for row in self.encoder.rows(found, place):
                        self.ledger.add(row, lesson=number)

    def _lessons(self, rows: Placed, source: Dataset) -> Iterator[tuple[str, Lesson, int]]:
        """Where a lesson stands, the lesson, and its number among all."""
        speaks = bool(self.encoder.tokenizer.chat_template)
        for place, row in rows:
            self.ledger.counts["read"] += 1
            found = lesson(row, source, place, speaks=speaks)
            if found is None:
                self.ledger.counts["empty"] += 1
            else:
                yield place, found, self.ledger.kinship.add(signs_of(row, source, found))

    def _add_texts(self, lessons: Iterator[tuple[str, Lesson, int]], is_lines: bool) -> None:
        numbers: list[int] = []

        def texts() -> Iterator[str]:
            for _, found, number in lessons:
                numbers.append(number)
                yield str(found).rstrip("\n") if is_lines else str(found)

        for batch in _batches(texts()):
            for ids, number in zip(self.encoder.texts(batch), numbers, strict=True):
                self.ledger.add_text(ids, lesson=number)
            numbers.clear()

    def _add_stream(self, rows: Placed) -> None:
        """The lines of a .txt file as one text, in blocks of whole lines, so that a library fits into memory."""
        ids: list[int] | None = None
        for block in _batches(self._lines(rows)):
            if ids is not None:
                self.ledger.add_text(ids)
            found = encode(["".join(block)], self.encoder.tokenizer)[0]
            ids = begun(found, self.encoder.opening) if ids is None else found
        self.ledger.add_text(self.encoder.closed(ids or list(self.encoder.opening)))

    def _lines(self, rows: Placed) -> Iterator[str]:
        for _, row in rows:
            self.ledger.counts["read"] += 1
            yield row["text"]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
