"""The tokens of what a row teaches, and which of them are learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dnge_compress.data.chat import encode_chat
from dnge_compress.data.conversations import Conversation
from dnge_compress.data.lessons import Answer, Lesson
from dnge_compress.data.pieces import Row, begun, encode, encode_pieces, end_of_text, opening_of


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and how it begins and ends texts. Raises DataError where it has no end-of-text token to learn."""

    tokenizer: Any

    @cached_property
    def opening(self) -> list[int]:
        """What every text begins with."""
        return opening_of(self.tokenizer)

    @cached_property
    def end(self) -> int:
        """The token that ends a text."""
        return end_of_text(self.tokenizer)

    def rows(self, found: Lesson, place: str) -> list[Row]:
        """The rows of one lesson, before any is cut; as a rule one. Raises DataError naming the `place`."""
        if isinstance(found, Conversation):
            return encode_chat(found, self.tokenizer, place)
        if isinstance(found, Answer):
            return [self._answer(found)]
        ids = self.texts([found])[0]
        return [Row(ids, [True] * len(ids))]

    def texts(self, texts: list[str]) -> list[list[int]]:
        """The tokens of whole texts, begun and ended."""
        return [begun(self.closed(ids), self.opening) for ids in encode(texts, self.tokenizer)]

    def closed(self, ids: list[int]) -> list[int]:
        """A text's tokens with its end, which isn't doubled."""
        return ids if ids[-1:] == [self.end] else [*ids, self.end]

    def _answer(self, answer: Answer) -> Row:
        row = encode_pieces([(answer.prompt, False), (answer.completion, True)], self.tokenizer)
        ids = begun(row.ids, self.opening)
        learned = [False] * (len(ids) - len(row.ids)) + row.learned
        closed = self.closed(ids)
        return Row(closed, learned + [True] * (len(closed) - len(ids)))
