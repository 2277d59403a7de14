"""Text that a causal language model writes itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dnge_compress.signals.inference import device_of


def text_length(model: Any, length: int) -> int:
    """`length`, or the most tokens that the model has positions for."""
    return min(length, getattr(model.config, "max_position_embeddings", length))


def sample_batches(
    model: Any, rows: int, length: int, rows_at_once: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches of token ids `[rows, length]` sampled from the model itself at temperature 1, after its start-of-text
    token. The model should be in inference mode."""
    config, device = model.config, device_of(model)
    start = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
    if isinstance(start, list):
        start = start[0]
    if start is None or not 0 <= start < config.vocab_size:
        start = 0
    name = cache_name(model)
    for first in range(0, rows, rows_at_once):
        ids = torch.full((min(rows_at_once, rows - first), 1), start, device=device)
        cache, token = None, ids
        with torch.no_grad():
            for _ in range(length - 1):
                out = model(input_ids=token, use_cache=True, **{name: cache})
                cache = getattr(out, name, None)
                p = out.logits[:, -1].float().softmax(-1).cpu()
                token = torch.multinomial(p, 1, generator=generator).to(device)
                ids = torch.cat([ids, token], 1)
                token = token if cache is not None else ids  # a model without memory reads it all again
        yield ids


def cache_name(model: Any) -> str:
    """What the model calls its memory of the tokens before, as argument and output; another word since 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
