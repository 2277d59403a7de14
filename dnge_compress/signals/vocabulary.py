"""What the tokenizer beside a model tells: how a text is framed, which tokens spell each word of English, and which of
its own entries are frequent.

`words.tsv` holds the 8,000 most frequent words and marks of English prose with their counts per million
(`dev/word_list.py` counts them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnge_compress.signals.tokenizer import tokenizer_of

WORDS = Path(__file__).with_name("words.tsv")
BARE_COVERAGE = 1 / 3  # where nothing is known of words
MOST_UNKNOWN = 0.05  # share of words that a tokenizer may not know before it counts as one of something else
UNIFORM, MARKS, NUMBERS = 1 / 3, 0.1, 0.1  # shares of what is drawn by rank
ZIPF_SHIFT = 2.7  # Mandelbrot's, for English
A_WORD = "the"
DAYS, YEARS = range(1, 32), range(1800, 2026)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What texts are made of: token ids of each known word `[N]` and frequencies `[N]`; ids of all entries that are
    words or parts of words `[E]`, and the share of them that the known words use; the frame around a text; the mask.

    `ranked` is another vocabulary for a part of the texts, if the tokenizer gives one: its own words as often as their
    rank says (tokenizers number what is frequent first), with marks and numbers.
    """

    spellings: tuple[tuple[int, ...], ...]
    frequencies: Tensor
    entries: Tensor
    coverage: float
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    mask: int | None = None
    ranked: Vocabulary | None = None


def vocabulary_of(model: Any) -> Vocabulary:
    """What a text model's tokenizer knows; without one, its bare token ids, all equally frequent."""
    return _vocabulary(model.name_or_path or "", model.get_input_embeddings().weight.shape[0])


@lru_cache(maxsize=8)
def _vocabulary(path: str, size: int) -> Vocabulary:
    bare = Vocabulary(
        spellings=tuple((i,) for i in range(size)),
        frequencies=torch.ones(size),
        entries=torch.arange(size),
        coverage=BARE_COVERAGE,
    )
    tokenizer = tokenizer_of(path)
    if tokenizer is None:
        return bare
    before, after = _frame(tokenizer, size)
    mask = tokenizer.mask_token_id
    found = _english(tokenizer, size) or _ordinary(tokenizer, size) or bare
    return replace(
        found,
        before=before,
        after=after,
        mask=mask if mask is not None and mask < size else None,
        ranked=_by_rank(tokenizer, size),
    )


def _frame(tokenizer: Any, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that a tokenizer sets before and after a text."""
    frame = tuple(token for token in tokenizer("").input_ids if token < size)
    bare, framed = (list(tokenizer(A_WORD, add_special_tokens=add).input_ids) for add in (False, True))
    for at in range(len(framed) - len(bare) + 1 if bare else 0):
        if framed[at : at + len(bare)] == bare:
            return frame[:at], frame[at:]
    half = (len(frame) + 1) // 2
    return frame[:half], frame[half:]


def _english(tokenizer: Any, size: int) -> Vocabulary | None:
    """English words and their tokens; None for a tokenizer of something else."""
    kept = _spelled(tokenizer, _words(), size)
    if len(kept) < (1 - MOST_UNKNOWN) * len(_words()):
        return None
    entries = _entries(tokenizer, size, filter(_is_word, tokenizer.get_vocab()))
    used = {i for s, _ in kept for i in s}
    return Vocabulary(
        spellings=tuple(s for s, _ in kept),
        frequencies=torch.tensor([n for _, n in kept]),
        entries=torch.tensor(entries, dtype=torch.long),
        coverage=sum(i in used for i in entries) / len(entries) if entries else 1.0,
    )


def _ordinary(tokenizer: Any, size: int) -> Vocabulary | None:
    """All entries but the special ones, equally frequent: a notation of which nothing is known."""
    entries = _entries(tokenizer, size, tokenizer.get_vocab())
    if not entries:
        return None
    return Vocabulary(
        spellings=tuple((i,) for i in entries),
        frequencies=torch.ones(len(entries)),
        entries=torch.tensor(entries),
        coverage=BARE_COVERAGE,
    )


def _by_rank(tokenizer: Any, size: int) -> Vocabulary | None:
    """A tokenizer's whole words by rank, a part of them uniformly, with marks and numbers; None where it has none."""
    entries = _entries(tokenizer, size, filter(_is_word, _starts_of_words(tokenizer.get_vocab())))
    if not entries:
        return None
    zipf = 1 / (torch.arange(len(entries)) + ZIPF_SHIFT)
    by_rank = (1 - UNIFORM) * zipf / zipf.sum() + UNIFORM / len(entries)
    marks = {word: n for word, n in _words().items() if not word.strip()[0].isalnum()}
    numbers = dict.fromkeys(map(str, (*DAYS, *YEARS)), 1.0)
    spellings: list[tuple[int, ...]] = [(i,) for i in entries]
    weights, rest = [], 1.0
    for texts, share in ((marks, MARKS), (numbers, NUMBERS)):
        kept = _spelled(tokenizer, texts, size)
        if kept:
            spellings += [s for s, _ in kept]
            counts = torch.tensor([n for _, n in kept])
            weights.append(share * (counts / counts.sum()))
            rest -= share
    return Vocabulary(
        spellings=tuple(spellings),
        frequencies=torch.cat([rest * by_rank, *weights]),
        entries=torch.tensor(entries),
        coverage=1.0,
    )


@lru_cache(maxsize=1)
def _words() -> dict[str, float]:
    """How often words and marks occur; words with the space before them."""
    lines = [line.split("\t") for line in WORDS.read_text(encoding="utf-8").splitlines()]
    return {f" {word}" if word[0].isalnum() else word: float(n) for word, n in lines}


def _spelled(tokenizer: Any, texts: Mapping[str, float], size: int) -> list[tuple[tuple[int, ...], float]]:
    """The tokens of each text whose tokens the model all knows, and how often it occurs."""
    spellings, unknown = tokenizer(list(texts), add_special_tokens=False).input_ids, tokenizer.unk_token_id
    pairs = zip(map(tuple, spellings), texts.values(), strict=True)
    return [(s, n) for s, n in pairs if s and unknown not in s and max(s) < size]


def _entries(tokenizer: Any, size: int, tokens: Iterable[str]) -> list[int]:
    """The ids of some tokens, ascending, without special ones and those that the model has no row for."""
    special, ids = set(tokenizer.all_special_ids), tokenizer.get_vocab()
    return sorted(i for i in (ids[token] for token in tokens) if i < size and i not in special)


def _starts_of_words(tokens: Iterable[str]) -> list[str]:
    """Tokens that begin a word: with a sign for the space before it where the tokenizer has one, else without one for
    what goes on."""
    tokens = list(tokens)
    return [t for t in tokens if t.startswith(("Ġ", "▁"))] or [t for t in tokens if not t.startswith("##")]


def _is_word(token: str) -> bool:
    text = token.removeprefix("##").lstrip("Ġ▁")
    return len(text) > 1 and not (token.startswith(("[", "<")) and token.endswith(("]", ">")))
