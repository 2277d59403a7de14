"""Several batches as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from dnge_compress.graph.derivation.pictures import GRID, PIXELS
from dnge_compress.signals.inference import Inputs, examples_in, first_examples

MASK = "attention_mask"
NUMBERS_PER_POSITION = 48  # of images and the like: a small patch in three colours


def joined(batches: Sequence[Inputs], positions: int | None = None) -> Inputs:
    """One batch of all examples, or of so many that about `positions` are read at most: taken evenly.

    Texts with a mask are padded to the longest; of other inputs, those of the shape that has most positions are taken.
    """
    if positions is not None:
        batches = _thinned(batches, positions)
    groups: dict[Any, list[Inputs]] = {}
    for batch in batches:
        groups.setdefault(shapes_of(batch), []).append(batch)
    group = max(groups.values(), key=lambda found: (sum(map(positions_in, found)), positions_in(found[0])))
    named = [_named(batch) for batch in group]
    if _is_padded(named[0]):
        longest = max(tensors[MASK].shape[1] for tensors in named)
        named = [{k: nnf.pad(t, (0, longest - t.shape[1])) for k, t in tensors.items()} for tensors in named]
    counts = [examples_in(batch) for batch in group]
    whole = {name: _cat([tensors[name] for tensors in named], counts) for name in named[0]}
    if GRID in named[0]:
        whole[PIXELS] = torch.cat([tensors[PIXELS] for tensors in named])
    if isinstance(group[0], Mapping):
        return whole
    return tuple(whole.values()) if isinstance(group[0], tuple) else whole[0]


def _cat(parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Along the examples; what has none, such as position ids for all of them, stays as it is."""
    has_examples = all(t.dim() > 0 and len(t) == count for t, count in zip(parts, counts, strict=True))
    return torch.cat(list(parts)) if has_examples else parts[0]


def _named(batch: Inputs) -> dict[Any, Tensor]:
    if isinstance(batch, Mapping):
        return dict(batch)
    return dict(enumerate(batch)) if isinstance(batch, tuple) else {0: batch}


def shapes_of(batch: Inputs) -> Any:
    """Equal for batches that can be joined."""
    named = _named(batch)
    padded = _is_padded(named)
    return tuple((k, t.dtype, None if padded else t.shape[1:]) for k, t in named.items())


def _is_padded(named: Mapping[Any, Tensor]) -> bool:
    return MASK in named and all(t.dim() == 2 and t.shape == named[MASK].shape for t in named.values())


def _thinned(batches: Sequence[Inputs], positions: int) -> list[Inputs]:
    """Of every batch the same share of its examples."""
    total = sum(map(positions_in, batches))
    if total <= positions:
        return list(batches)
    found: list[Inputs] = []
    carry = 0.0
    for batch in batches:
        carry += examples_in(batch) * positions / total
        found += first_examples([batch], int(carry))
        carry -= int(carry)
    return found or first_examples(batches, 1)


def positions_in(batch: Inputs) -> int:
    """How many positions a batch is read at: tokens, or patches of an image."""
    return max(t.numel() // (NUMBERS_PER_POSITION if t.is_floating_point() else 1) for t in _named(batch).values())
