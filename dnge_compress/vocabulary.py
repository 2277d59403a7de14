"""Which token ids are words, and how a text is framed: read from the tokenizer beside a model, if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer


@dataclass(frozen=True)
class Vocabulary:
    """Ids of words `[N]`, the frame put before and after a text, and whether ids rise as frequency falls.

    Vocabularies of WordPiece and BPE tokenizers are ordered by frequency once special tokens, placeholders and the
    alphabet are left out.
    """

    words: Tensor
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    is_ordered: bool = False


def vocabulary_of(model: Any) -> Vocabulary:
    """The vocabulary of a text model; all ids, unordered and without a frame, if no tokenizer lies beside it."""
    size = model.get_input_embeddings().weight.shape[0]
    return _from_tokenizer(model.name_or_path or "", size) or Vocabulary(torch.arange(size))


@lru_cache(maxsize=8)
def _from_tokenizer(path: str, size: int) -> Vocabulary | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True) if path else None
    except (OSError, ValueError, KeyError):  # a model made from a config, or a folder with weights alone
        return None
    if tokenizer is None:
        return None
    special = set(tokenizer.all_special_ids)
    entries = sorted((i, t) for t, i in tokenizer.get_vocab().items() if i < size and i not in special)
    words = [i for i, t in entries if _is_word(t)]
    frame = tokenizer("").input_ids
    if len(words) < 100:
        return None
    half = (len(frame) + 1) // 2
    return Vocabulary(torch.tensor(words), tuple(frame[:half]), tuple(frame[half:]), True)


def _is_word(token: str) -> bool:
    text = token.removeprefix("##").lstrip("Ġ▁")
    return len(text) > 1 and not (token.startswith(("[", "<")) and token.endswith(("]", ">")))
