"""Texts about nothing: random token sequences with the word frequencies of English and a topic each.

Where the word list covers a vocabulary, words come as often as in prose. The less of it the list covers, the more
places are taken by entries of the whole vocabulary whose embeddings in the model itself point the way of a random
centre's, as the content words of a text do, and the more texts are drawn otherwise: from the tokenizer's own words by
rank, with marks and numbers. A repair must know every token it may meet. The tokenizer's own frame stands around, and
lengths vary.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dnge_compress.signals.vocabulary import Vocabulary, vocabulary_of

LENGTHS = (1.0, 0.5, 0.25)  # of the longest, with equal numbers of tokens
MOST_BY_RANK = 0.5  # of the texts
TOPIC_WORDS = 32  # effective number of entries that a sequence's topic draws from


def topical_texts(model: Any, tokens: int, longest: int, batch_tokens: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of token ids `[rows, length]` with about `tokens` tokens altogether, in random order, on the CPU."""
    vocabulary = vocabulary_of(model)
    embedding = model.get_input_embeddings().weight.detach().float().cpu()
    frame = [torch.tensor(part).long() for part in (vocabulary.before, vocabulary.after)]
    batches: list[Tensor] = []
    by_rank = min(MOST_BY_RANK, 1 - vocabulary.coverage) if vocabulary.ranked else 0.0
    sources = [(vocabulary, 1 - by_rank), (vocabulary.ranked, by_rank)]
    for share, (source, part) in itertools.product(LENGTHS, sources):
        if source is None or not part:
            continue
        directions = embedding[source.entries]
        directions = nnf.normalize(directions - directions.mean(0), dim=1) if len(directions) else directions
        length = max(4, round(longest * share)) - len(vocabulary.before) - len(vocabulary.after)
        rows = max(1, round(part * tokens / len(LENGTHS) / length))
        step = max(1, batch_tokens // length)
        for first in range(0, rows, step):
            ids = _texts(source, directions, min(step, rows - first), length, generator)
            batches.append(torch.cat([frame[0].expand(len(ids), -1), ids, frame[1].expand(len(ids), -1)], 1))
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in order]


def _texts(vocabulary: Vocabulary, directions: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Token ids `[rows, length]`: at each place a known word, or an entry that belongs to the row's topic."""
    drawn = torch.multinomial(vocabulary.frequencies, rows * length, replacement=True, generator=generator)
    words = drawn.view(rows, length).tolist()
    is_topical = torch.rand(rows, length, generator=generator) >= vocabulary.coverage
    topical = torch.zeros(rows, length, dtype=torch.long)
    if bool(is_topical.any()):
        centres = torch.randint(len(directions), (rows,), generator=generator)
        weights = with_perplexity(directions[centres] @ directions.T, TOPIC_WORDS)
        topical = vocabulary.entries[torch.multinomial(weights, length, replacement=True, generator=generator)]
    made = []
    for own, flags, others in zip(words, is_topical.tolist(), topical.tolist(), strict=True):
        places = (
            (other,) if flag else vocabulary.spellings[w] for w, flag, other in zip(own, flags, others, strict=True)
        )
        made.append([token for place in places for token in place][:length])
    return torch.tensor(made)


def with_perplexity(similarity: Tensor, words: int) -> Tensor:
    """Softmax of each row of `similarity` `[R, V]` at the temperature whose perplexity is `words`, by bisection."""
    low, high = torch.zeros(len(similarity), 1), torch.full((len(similarity), 1), 200.0)
    for _ in range(20):
        middle = (low + high) / 2
        logs = (similarity * middle).log_softmax(-1)
        wide = -(logs.exp() * logs).sum(-1, keepdim=True) > math.log(words)
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return (similarity * low).softmax(-1)
