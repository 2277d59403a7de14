"""What the tokenizer beside a model tells: how a text is framed, and which tokens spell each word of English.

`words.tsv` holds the 8,000 most frequent words and marks of English prose with their counts per million
(`dev/word_list.py` counts them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

WORDS = Path(__file__).with_name("words.tsv")
BARE_COVERAGE = 1 / 3  # where nothing is known of words
MOST_UNKNOWN = 0.05  # share of words that a tokenizer may not know before it counts as one of something else


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What texts are made of: token ids of each known word `[N]` and frequencies `[N]`; ids of all entries that are
    words or parts of words `[E]`, and the share of them that the known words use; the frame around a text."""

    spellings: tuple[tuple[int, ...], ...]
    frequencies: Tensor
    entries: Tensor
    coverage: float
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def vocabulary_of(model: Any) -> Vocabulary:
    """English words in the tokens of a text model; without a tokenizer, its bare token ids, all equally frequent."""
    size = model.get_input_embeddings().weight.shape[0]
    found = _english(model.name_or_path or "", size)
    return found or Vocabulary(
        spellings=tuple((i,) for i in range(size)),
        frequencies=torch.ones(size),
        entries=torch.arange(size),
        coverage=BARE_COVERAGE,
    )


@lru_cache(maxsize=8)
def _english(path: str, size: int) -> Vocabulary | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True) if path else None
    except (OSError, ValueError, KeyError):  # a model made from a config, or a folder with weights alone
        return None
    if tokenizer is None:
        return None
    lines = [line.split("\t") for line in WORDS.read_text(encoding="utf-8").splitlines()]
    texts = [f" {word}" if word[0].isalnum() else word for word, _ in lines]
    spellings = tokenizer(texts, add_special_tokens=False).input_ids
    unknown = tokenizer.unk_token_id
    legal = [bool(s) and unknown not in s and max(s) < size for s in spellings]
    if sum(legal) < (1 - MOST_UNKNOWN) * len(legal):
        return None
    kept = [(tuple(s), float(n)) for s, (_, n), ok in zip(spellings, lines, legal, strict=True) if ok]
    special = set(tokenizer.all_special_ids)
    entries = sorted(i for t, i in tokenizer.get_vocab().items() if i < size and i not in special and _is_word(t))
    used = {i for s, _ in kept for i in s}
    coverage = sum(i in used for i in entries) / len(entries) if entries else 1.0
    frame = tokenizer("").input_ids
    half = (len(frame) + 1) // 2
    return Vocabulary(
        spellings=tuple(s for s, _ in kept),
        frequencies=torch.tensor([n for _, n in kept]),
        entries=torch.tensor(entries, dtype=torch.long),
        coverage=coverage,
        before=tuple(frame[:half]),
        after=tuple(frame[half:]),
    )


def _is_word(token: str) -> bool:
    text = token.removeprefix("##").lstrip("Ġ▁")
    return len(text) > 1 and not (token.startswith(("[", "<")) and token.endswith(("]", ">")))
