"""Text that a causal language model writes itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dnge_compress.signals.inference import device_of
from dnge_compress.signals.positions import positions_of


def text_length(model: Any, length: int) -> int:
    """`length`, or the most tokens that the model has positions for."""
    most = positions_of(model)
    return length if most is None else min(length, most)


def sample_batches(
    model: Any, starts: Sequence[Sequence[int]], length: int, rows_at_once: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches of token ids `[rows, length]` sampled from the model itself at temperature 1, one row after each of
    `starts`; starts of equal length share a batch. The model should be in inference mode."""
    for size in sorted({len(start) for start in starts}):
        given = torch.tensor([start for start in starts if len(start) == size])
        for part in given.split(rows_at_once):
            yield continued(model, part.to(device_of(model)), length, generator)[0]


def continued(model: Any, ids: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids `[N, length]` that go on after `ids`, and what each sampled one cost in nats `[N, sampled]`."""
    name = cache_name(model)
    ids, cache, token, costs = ids[:, :length], None, ids[:, :length], [torch.zeros(len(ids), 0)]
    with torch.no_grad():
        while ids.shape[1] < length:
            out = model(input_ids=token, use_cache=True, **{name: cache})
            cache = getattr(out, name, None)
            logs = out.logits[:, -1].float().log_softmax(-1).cpu()
            token = torch.multinomial(logs.exp(), 1, generator=generator)
            costs.append(-logs.gather(1, token))
            token = token.to(ids.device)
            ids = torch.cat([ids, token], 1)
            token = token if cache is not None else ids  # a model without memory reads it all again
    return ids, torch.cat(costs, 1)


def cache_name(model: Any) -> str:
    """What the model calls its memory of the tokens before, as argument and output; another word since 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
