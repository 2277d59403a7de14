"""Text to train on where there is none: rows of tokens that the model writes itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dnge_compress.errors import DataError
from dnge_compress.probe import Progress, device_of, inference_mode_of, text_length, writes_text, written

# A constant, so that the rows don't depend on the machine; the cache of 32 rows of 512 tokens is 2 GB for an 8B model.
ROWS_AT_ONCE = 32


def sample_rows(
    model: nn.Module, tokens: int, length: int, seed: int, progress: Progress | None = None
) -> list[list[int]]:
    """At least `tokens` tokens in rows of `length` (or as many as the model has positions for), sampled at temperature
    1 after its start-of-text token. The same seed gives the same rows; the model is left as it was.

    `progress` is told ("write", rows done, rows in all). Raises DataError for a model that can't write.

        rows = sample_rows(model, tokens=65_536, length=512, seed=42)
    """
    with inference_mode_of(model):
        _check_writes(model)
        length = text_length(model, length)
        total = math.ceil(tokens / length)
        generator = torch.Generator().manual_seed(seed)
        rows: list[list[int]] = []
        for ids in written(model, total, length, ROWS_AT_ONCE, generator):
            rows += ids.tolist()
            if progress is not None:
                progress("write", len(rows), total)
    return rows


def _check_writes(model: Any) -> None:
    name = type(model).__name__
    if not writes_text(model):
        raise DataError(
            f"type 'sampled' needs a causal language model, and a {name} writes no text; give a path instead"
        )
    token = torch.zeros(1, 1, dtype=torch.long, device=device_of(model))
    with torch.no_grad():
        cache = getattr(model(input_ids=token, use_cache=True), "past_key_values", None)
    if cache is None:
        raise DataError(
            f"a {name} remembers nothing between tokens (no past_key_values), so it can't write; give a path"
        )
