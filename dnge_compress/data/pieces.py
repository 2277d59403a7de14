"""Text in pieces, of which some are learned: each token belongs to one piece, as it does when a model answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dnge_compress.core.errors import DataError


@dataclass(frozen=True)
class Row:
    """Token ids, and which of them are learned."""

    ids: list[int]
    learned: list[bool]


def encode_pieces(pieces: Iterable[tuple[str, bool]], tokenizer: Any) -> Row:
    """The tokens of pieces (text, whether it is learned) that follow each other, without special tokens.

    No token spans two pieces: when a model answers, its prompt has been tokenised without the answer, so a token that
    holds the end of the one and the beginning of the other would teach what never occurs. Where the tokens of all so
    far begin with those of the pieces before, a piece has the rest of them; where they don't, it is tokenised alone.
    """
    row, text = Row([], []), ""
    before: list[int] = []
    for piece, learned in pieces:
        if not piece:
            continue
        text += piece
        together = encode([text], tokenizer)[0]
        follows = together[: len(before)] == before
        ids = together[len(before) :] if follows else _encode_alone(piece, tokenizer)
        row.ids.extend(ids)
        row.learned.extend([learned] * len(ids))
        before = together
    return row


def encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """The tokens of whole texts, without special tokens."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def opening_of(tokenizer: Any) -> list[int]:
    """The start-of-text token, if it is the tokenizer's habit to begin a text with it."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []


def begun(ids: list[int], opening: list[int]) -> list[int]:
    """A text's tokens behind the opening, which isn't doubled where the text brings it along."""
    return ids if opening and ids[: len(opening)] == opening else opening + ids


def encode_whole(text: str, tokenizer: Any, most: int, **options: bool) -> tuple[list[int], bool]:
    """The tokens of a text with the special ones that the tokenizer puts around it, cut at `most`, and whether that cut
    any. A start token isn't doubled where the text brings it along."""
    ids = tokenizer(text, verbose=False, **options)["input_ids"]
    is_doubled = ids[:1] == ids[1:2] and ids[:1] in ([tokenizer.bos_token_id], [tokenizer.cls_token_id])
    is_cut = len(ids) - is_doubled > most
    if is_cut:
        ids = tokenizer(text, truncation=True, max_length=most + is_doubled, **options)["input_ids"]
    return ids[is_doubled:], is_cut


def end_of_text(tokenizer: Any) -> int:
    """The token that ends a text. Raises DataError."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-text token to learn; set eos_token in its tokenizer_config.json")
    return tokenizer.eos_token_id


def _encode_alone(text: str, tokenizer: Any) -> list[int]:
    """The tokens of `text` after a line break, because some tokenizers begin every text with a space of their own."""
    start, both = encode(["\n", "\n" + text], tokenizer)
    return both[len(start) :] if both[: len(start)] == start else encode([text], tokenizer)[0]
