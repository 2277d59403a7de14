"""Texts about nothing: random token sequences with the word frequencies of English and a topic each.

Words come as often as in prose; half of the rarer ones are replaced by words whose embeddings in the model itself
point the way of a random centre's, as the content words of a text do. The tokenizer's own frame stands around, and
lengths vary. Without a tokenizer nothing is known of words: then two thirds of each sequence are topical token ids.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dnge_compress.vocabulary import Vocabulary, vocabulary_of

LENGTHS = (1.0, 0.5, 0.25)  # of the longest, with equal numbers of tokens
TOPIC_WORDS = 32  # effective number of words that a sequence's topic draws from
CONTENT_FROM = 300  # rank in frequency from which words carry content
TOPICAL_SHARE = 0.5  # of the content words
TOPICAL_SHARE_WITHOUT_WORDS = 2 / 3  # of all tokens, where no word list fits


def topical_texts(model: Any, tokens: int, longest: int, batch_tokens: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of token ids `[rows, length]` with about `tokens` tokens altogether, in random order, on the CPU."""
    vocabulary = vocabulary_of(model)
    topics = _Topics(model.get_input_embeddings().weight.detach().float().cpu(), vocabulary)
    frame = [torch.tensor(part).long() for part in (vocabulary.before, vocabulary.after)]
    batches: list[Tensor] = []
    for share in LENGTHS:
        length = max(4, round(longest * share)) - len(vocabulary.before) - len(vocabulary.after)
        rows = max(1, round(tokens / len(LENGTHS) / length))
        step = max(1, batch_tokens // length)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            ids = _texts(vocabulary, topics, count, length, generator)
            batches.append(torch.cat([frame[0].expand(count, -1), ids, frame[1].expand(count, -1)], 1))
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in order]


class _Topics:
    """Words that lie close together in a model's embedding space."""

    def __init__(self, embedding: Tensor, vocabulary: Vocabulary) -> None:
        count = len(vocabulary.spellings)
        self.has_words = len(vocabulary.frequencies.unique()) > 1
        self.content = torch.arange(min(CONTENT_FROM, count // 2) if self.has_words else 0, count)
        ids = [vocabulary.spellings[i] for i in self.content.tolist()]
        flat = torch.tensor([t for s in ids for t in s])
        owner = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(s) for s in ids]))
        total = torch.zeros(len(ids), embedding.shape[1]).index_add_(0, owner, embedding[flat])
        mean = total / owner.bincount(minlength=len(ids))[:, None]
        self.directions = nnf.normalize(mean - mean.mean(0), dim=1)

    def draw(self, rows: int, length: int, generator: torch.Generator) -> Tensor:
        """One topic per row and words from it `[rows, length]`, as indices into the vocabulary."""
        centres = torch.randint(len(self.content), (rows,), generator=generator)
        weights = with_perplexity(self.directions[centres] @ self.directions.T, TOPIC_WORDS)
        return self.content[torch.multinomial(weights, length, replacement=True, generator=generator)]


def _texts(vocabulary: Vocabulary, topics: _Topics, rows: int, length: int, generator: torch.Generator) -> Tensor:
    words = torch.multinomial(vocabulary.frequencies, rows * length, replacement=True, generator=generator)
    words = words.view(rows, length)
    share = TOPICAL_SHARE if topics.has_words else TOPICAL_SHARE_WITHOUT_WORDS
    replaced = (torch.rand(rows, length, generator=generator) < share) & (words >= topics.content[0])
    words = torch.where(replaced, topics.draw(rows, length, generator), words)
    spelled = [[t for w in row for t in vocabulary.spellings[w]][:length] for row in words.tolist()]
    return torch.tensor(spelled)


def with_perplexity(similarity: Tensor, words: int) -> Tensor:
    """Softmax of each row of `similarity` `[R, V]` at the temperature whose perplexity is `words`, by bisection."""
    low, high = torch.zeros(len(similarity), 1), torch.full((len(similarity), 1), 200.0)
    for _ in range(20):
        middle = (low + high) / 2
        logs = (similarity * middle).log_softmax(-1)
        wide = -(logs.exp() * logs).sum(-1, keepdim=True) > math.log(words)
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return (similarity * low).softmax(-1)
