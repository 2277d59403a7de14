"""Tokenised rows to train on, from the sources of a recipe.

- "text": every token is learned. With packing, texts follow each other, each closed by the end-of-text token, and the
  whole is cut into rows of `max_length`. A .txt file is then one text, line breaks and all; without packing each of its
  lines is a text.
- "prompt_completion": the completion and an end-of-text token are learned. Nothing is put between the two columns.
- "messages": the assistant's turns are learned (chat.py).
- "sampled": rows of tokens that the model wrote. They begin with its start-of-text token and may break off anywhere, so
  nothing is added when they are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from dnge_compress.core.errors import DataError
from dnge_compress.data.chat import check_template, encode_chat
from dnge_compress.data.fields import fields
from dnge_compress.data.formats import Placed, RowFile
from dnge_compress.data.pieces import Row, encode, encode_pieces, end_of_text, opening_of
from dnge_compress.data.rows import Ledger, Rows
from dnge_compress.data.sources import open_tables
from dnge_compress.recipes.job_schema import Dataset

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
    if any(source.type == "messages" for source in sources):
        check_template(tokenizer)
    reader = _Reader(tokenizer, Ledger(max_length, packing))
    for source in sources:
        if source.type == "sampled":
            reader.add_sampled(source, sampled)
        else:
            reader.add_tables(open_tables(source, folder), source)
    return reader.ledger.rows()


@dataclass(frozen=True)
class _Reader:
    """Tokenises rows into a ledger."""

    tokenizer: Any
    ledger: Ledger

    @cached_property
    def opening(self) -> list[int]:
        return opening_of(self.tokenizer)

    @cached_property
    def end(self) -> int:
        return end_of_text(self.tokenizer)

    def add_sampled(self, source: Dataset, sampled: Sampler | None) -> None:
        if sampled is None:
            raise DataError("datasets: type 'sampled' needs a model that writes, and here is none; give a path instead")
        for ids in sampled(source.tokens):
            self.ledger.counts["read"] += 1
            self.ledger.add_text(list(ids))

    def add_tables(self, tables: Sequence[RowFile] | Sequence[Placed], source: Dataset) -> None:
        read = self.ledger.counts["read"]
        for table in tables:
            done = self.ledger.counts["read"] - read
            rows = islice(table, None if source.max_rows is None else source.max_rows - done)
            is_lines = isinstance(table, RowFile) and table.suffix == ".txt"
            if source.type == "messages":
                for place, row in self._learnable(rows, source):
                    for turn in encode_chat(row["messages"], self.tokenizer, place):
                        self.ledger.add(turn)
            elif source.type == "prompt_completion":
                for _, row in self._learnable(rows, source):
                    self.ledger.add(self._answer(row["prompt"], row["completion"]))
            elif is_lines and self.ledger.packing:
                self._add_stream(rows)
            else:
                texts = (row["text"] for _, row in self._learnable(rows, source))
                self._add_texts(text.rstrip("\n") for text in texts) if is_lines else self._add_texts(texts)

    def _learnable(self, rows: Placed, source: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
        for place, row in rows:
            self.ledger.counts["read"] += 1
            ours = fields(row, source, place)
            if ours is None:
                self.ledger.counts["empty"] += 1
            else:
                yield place, ours

    def _add_texts(self, texts: Iterator[str]) -> None:
        for batch in _batches(texts):
            for ids in encode(batch, self.tokenizer):
                self.ledger.add_text(self.opening + self._closed(ids))

    def _add_stream(self, rows: Placed) -> None:
        """The lines of a .txt file as one text, in blocks of whole lines, so that a library fits into memory."""
        ids = list(self.opening)
        for block in _batches(self._lines(rows)):
            self.ledger.add_text(ids)
            ids = encode(["".join(block)], self.tokenizer)[0]
        self.ledger.add_text(self._closed(ids))

    def _lines(self, rows: Placed) -> Iterator[str]:
        for _, row in rows:
            self.ledger.counts["read"] += 1
            yield row["text"]

    def _answer(self, prompt: str, completion: str) -> Row:
        row = encode_pieces([(prompt, False), (completion, True)], self.tokenizer)
        ids = self.opening + self._closed(row.ids)
        learned = [False] * len(self.opening) + row.learned
        return Row(ids, learned + [True] * (len(ids) - len(learned)))

    def _closed(self, ids: list[int]) -> list[int]:
        return ids if ids[-1:] == [self.end] else [*ids, self.end]


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
