"""Calibration inputs for a model whose user gives no data.

Causal language models are calibrated on text sampled from themselves, encoders on random words that have a topic
(synthetic_text.py), vision models on random pictures of shapes that hide one another (synthetic_images.py). Everything
is seeded and the model is left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dnge_compress.core.errors import DataError, UnsupportedModelError
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.inference import Inputs, device_of, inference_mode_of, writes_text
from dnge_compress.signals.sampled_text import sample_batches, text_length
from dnge_compress.signals.synthetic_images import random_images
from dnge_compress.signals.synthetic_text import topical_texts

BATCH_TOKENS = 2048
MIN_IMAGES = 64


def synthesize(model: nn.Module, settings: Calibration, example_inputs: Inputs | None = None) -> list[Inputs]:
    """Batches of synthetic inputs for `model`, on its device. `example_inputs` tells the shapes of a plain module,
    and the image size of a convolutional network if it isn't its config's.

    Raises DataError for a kind that doesn't fit the model.
    """
    natural = default_kind(model, example_inputs)
    kind = settings.kind if settings.kind != "auto" else natural
    if kind not in (natural, {"sampled": "words"}.get(natural)):
        raise DataError(f"calibration of kind '{kind}' doesn't fit a {type(model).__name__}; use 'auto'")
    generator = torch.Generator().manual_seed(settings.seed)
    with inference_mode_of(model):
        if kind == "like":
            return _inputs_like(example_inputs, settings, generator, device_of(model))
        if kind == "images":
            return _painted_images(model, settings, generator, example_inputs)
        make = _sampled_text if kind == "sampled" else _topical_words
        return make(model, settings, generator)


def default_kind(model: nn.Module, example_inputs: Inputs | None) -> str:
    """What suits a model: "sampled", "words" or "images"; "like" for a plain module with example inputs."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", None) is None:
        if example_inputs is None:
            raise UnsupportedModelError(
                f"a plain {type(model).__name__} says nothing about its inputs; pass example_inputs=… or data=…"
            )
        return "like"
    if model.main_input_name == "pixel_values":
        return "images"
    return "sampled" if writes_text(model) else "words"


def _sampled_text(model: Any, settings: Calibration, generator: torch.Generator) -> list[Inputs]:
    length = text_length(model, settings.length)
    rows = max(1, round(settings.tokens / length))
    batches: list[Inputs] = []
    for ids in sample_batches(model, rows, length, max(1, 2 * BATCH_TOKENS // length), generator):
        batches += [{"input_ids": part} for part in ids.split(max(1, BATCH_TOKENS // length))]
    return batches


def _topical_words(model: Any, settings: Calibration, generator: torch.Generator) -> list[Inputs]:
    config, device = model.config, device_of(model)
    limit = getattr(config, "max_position_embeddings", settings.length)
    longest = min(settings.length, limit - 2 if config.model_type == "roberta" else limit)
    texts = topical_texts(model, settings.tokens, longest, BATCH_TOKENS, generator)
    return [{"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids, device=device)} for ids in texts]


def _painted_images(
    model: Any, settings: Calibration, generator: torch.Generator, example: Inputs | None
) -> list[Inputs]:
    config, device = model.config, device_of(model)
    size = getattr(config, "image_size", 32 if getattr(config, "embedding_size", 64) < 64 else 224)
    if example is not None:  # a convolutional network takes any size, and its config may not say which
        shown = example["pixel_values"] if isinstance(example, Mapping) else example
        size = tuple((shown[0] if isinstance(shown, tuple) else shown).shape[-2:])
    height, width = (size, size) if isinstance(size, int) else size
    patch = getattr(config, "patch_size", 4)
    patches = (height // patch) * (width // patch) if isinstance(patch, int) else 49
    rows = max(MIN_IMAGES, round(settings.tokens / max(patches, 1)))
    images = random_images((rows, config.num_channels, height, width), generator)
    step = max(1, BATCH_TOKENS // max(patches, 1))
    dtype = next(model.parameters()).dtype
    return [{"pixel_values": part.to(device, dtype)} for part in images.split(step)]


def _inputs_like(example: Any, settings: Calibration, generator: torch.Generator, device: torch.device) -> list[Inputs]:
    if isinstance(example, Mapping):
        raise DataError(
            "synthetic inputs for a plain module need example_inputs as a tensor or tuple; pass data=… for dicts"
        )
    tensors = example if isinstance(example, tuple | list) else (example,)
    positions = max(1, tensors[0][0].numel() // 64)
    rows = max(4 * MIN_IMAGES, round(settings.tokens / positions))
    made = []
    for t in tensors:
        if t.is_floating_point():
            shape = (rows, *t.shape[1:])
            noise = random_images(shape, generator) if t.dim() == 4 else torch.randn(shape, generator=generator)
            made.append(noise.to(device, t.dtype))
        else:
            high = int(t.max()) + 1
            made.append(torch.randint(high, (rows, *t.shape[1:]), generator=generator).to(device))
    step = max(1, BATCH_TOKENS // positions)
    parts = list(zip(*(t.split(step) for t in made), strict=True))
    return [p if isinstance(example, tuple | list) else p[0] for p in parts]
