"""Text that a masked language model writes itself: rows of masks, filled in a few rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dnge_compress.signals.draws import drawn
from dnge_compress.signals.inference import device_of

ROUNDS = 16


def fill_batches(
    model: Any,
    rows: int,
    length: int,
    rows_at_once: int,
    frame: tuple[Sequence[int], Sequence[int]],
    mask: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Batches of token ids `[rows, length]` between the tokens of `frame`, sampled at temperature 1, an equal share of
    the places in each round. The model should be in inference mode."""
    device = device_of(model)
    before, after = (torch.tensor(part, dtype=torch.long) for part in frame)
    inner = length - len(before) - len(after)
    for first in range(0, rows, rows_at_once):
        count = min(rows_at_once, rows - first)
        middle = torch.full((count, inner), mask)
        ids = torch.cat([before.expand(count, -1), middle, after.expand(count, -1)], 1).to(device)
        turn = torch.rand(count, inner, generator=generator).argsort(1) * ROUNDS // inner
        turn = torch.nn.functional.pad(turn, (len(before), len(after)), value=-1).to(device)
        for r in range(ROUNDS):
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[turn == r].float()
            logits[:, mask] = -torch.inf
            ids[turn == r] = drawn(logits, generator)[0][:, 0]
        yield ids
