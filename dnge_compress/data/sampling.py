"""Text to train on where there is none: rows of tokens that the model writes itself."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from dnge_compress.core.errors import DataError
from dnge_compress.core.progress import Progress, silent
from dnge_compress.signals.beginnings import beginnings, in_turn
from dnge_compress.signals.inference import device_of, inference_mode_of, writes_text
from dnge_compress.signals.sampled_text import cache_name, sample_batches, text_length


def sample_rows(model: nn.Module, tokens: int, length: int, seed: int, progress: Progress = silent) -> list[list[int]]:
    """At least `tokens` tokens in rows of `length` (or as many as the model has positions for), sampled at temperature
    1 after what its texts begin with. The same seed gives the same rows; the model is left as it was.

    `progress` gets ("write", tokens done, tokens in all). Raises DataError for a model that can't write.

        rows = sample_rows(model, tokens=65_536, length=512, seed=42)
    """
    with inference_mode_of(model):
        _check_writes(model)
        length = text_length(model, length)
        total = math.ceil(tokens / length)
        generator = torch.Generator().manual_seed(seed)
        rows: list[list[int]] = []
        starts = [start for start in beginnings(model, generator) if len(start) < length] or [(0,)]
        begun = in_turn(starts, total)
        for ids in sample_batches(model, begun, length, generator, partial(progress, "write")):
            rows += ids.tolist()
    return rows


def _check_writes(model: Any) -> None:
    name = type(model).__name__
    if not writes_text(model):
        raise DataError(
            f"type 'sampled' needs a causal language model, and a {name} writes no text; give a path instead"
        )
    token = torch.zeros(1, 1, dtype=torch.long, device=device_of(model))
    with torch.no_grad():
        cache = getattr(model(input_ids=token, use_cache=True), cache_name(model), None)
    if cache is None:
        raise DataError(
            f"a {name} remembers nothing between tokens (it returns no cache), so it can't write; give a path"
        )
