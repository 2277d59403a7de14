"""Inputs of the same names and shapes as an example, for models that take more than one text or image.

Spectrograms and waveforms are smooth noise, as sound is; what a decoder reads is sampled from the model itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dnge_compress.graph.derivation.example_inputs import special_tokens
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.draws import drawn
from dnge_compress.signals.inference import Inputs, device_of
from dnge_compress.signals.synthetic_images import random_images

MIN_ROWS = 64
LONG = 1024  # positions of an input of which fewer are made
NUMBERS_PER_POSITION = 64  # of an example's floating numbers, about as many as make up a token
ROWS_AT_ONCE = 32
DECODED = "decoder_input_ids"
ENCODED = {"input_ids", "attention_mask", "input_features", "input_values", "pixel_values"}
PARTIALS = 6  # tones in a waveform
SMOOTH = 4  # frames and bands over which a spectrogram hardly changes


def inputs_like(model: nn.Module, example: Any, settings: Calibration, generator: torch.Generator) -> list[Inputs]:
    """Batches shaped as `example`, a tensor, tuple or dict, on the model's device."""
    named = isinstance(example, Mapping)
    tensors = dict(example) if named else dict(enumerate(example if isinstance(example, tuple | list) else (example,)))
    positions = max(_positions(t) for t in tensors.values())
    least = MIN_ROWS if named else 4 * MIN_ROWS
    rows = max(least if positions < LONG else least // 4, round(settings.tokens / positions))
    step = max(1, min(ROWS_AT_ONCE, 2048 // positions)) if named else max(1, 2048 // positions)
    made = {name: _tensor_like(model, name, t, rows, generator) for name, t in tensors.items() if name != DECODED}
    batches: list[Inputs] = []
    for first in range(0, rows, step):
        part: dict[Any, Tensor] = {name: t[first : first + step].to(device_of(model)) for name, t in made.items()}
        if DECODED in tensors:
            part[DECODED] = decoded_by(model, part, tensors[DECODED].shape[1], generator)
        whole = tuple(part.values())
        batches.append(part if named else whole if isinstance(example, tuple | list) else whole[0])
    return batches


def _positions(t: Tensor) -> int:
    return max(1, t[0].numel() // NUMBERS_PER_POSITION) if t.is_floating_point() else max(1, t[0].numel())


def _tensor_like(model: nn.Module, name: Any, t: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    shape = (rows, *t.shape[1:])
    if not t.is_floating_point():
        if "mask" in str(name):
            return torch.ones(shape, dtype=t.dtype)
        if name == "input_ids":
            return _token_ids(model, t, shape, generator)
        return torch.randint(int(t.max()) + 1, shape, generator=generator).to(t.dtype)
    if t.dim() == 4:
        made = random_images(shape, generator)
    elif t.dim() == 5:
        made = random_images((rows * shape[1], *shape[2:]), generator).view(shape)
    elif name == "input_values" and t.dim() == 2:
        made = waveforms(shape, generator)
    elif name in ("input_features", "input_values"):
        made = spectrograms(shape, generator)
    else:
        made = torch.randn(shape, generator=generator)
    return made.to(t.dtype if t.dtype != torch.float32 else next(model.parameters()).dtype)


def _token_ids(model: Any, t: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random ordinary tokens; where the example ends every text with one token, so do these."""
    config = model.config.get_text_config()
    size = getattr(config, "vocab_size", None) or int(t.max()) + 1
    special = special_tokens(config)
    ordinary = torch.tensor([i for i in range(size) if i not in special] or [0])
    ids = ordinary[torch.randint(len(ordinary), shape, generator=generator)]
    last = t[..., -1].unique()
    if len(last) == 1 and int(last) in special:
        ids[..., -1] = int(last)
    return ids


@torch.no_grad()
def decoded_by(model: Any, batch: Mapping[Any, Tensor], length: int, generator: torch.Generator) -> Tensor:
    """Token ids `[rows, length]` that a decoder writes for these inputs, sampled at temperature 1."""
    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    start = start if start is not None else getattr(config, "bos_token_id", None) or 0
    rows = len(next(iter(batch.values())))
    ids = torch.full((rows, 1), start, device=device_of(model))
    source: dict[Any, Any] = dict(batch)
    if hasattr(model, "get_encoder") and length > 1:  # encoded once
        takes = inspect.signature(model.forward).parameters
        encoded = model.get_encoder()(**{k: v for k, v in batch.items() if k in ENCODED})
        source = {"encoder_outputs": encoded} | {k: v for k, v in batch.items() if k == "attention_mask" and k in takes}
    for _ in range(length - 1):
        output = model(**source, decoder_input_ids=ids, use_cache=False)
        logits = output.get("logits")
        if logits is None or logits.dim() != 3:  # a decoder without a vocabulary
            tokens = torch.randint(config.vocab_size, (rows, 1), generator=generator).to(ids.device)
        else:
            tokens, _ = drawn(logits[:, -1], generator)
        ids = torch.cat([ids, tokens], 1)
    return ids


def spectrograms(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Unit-variance spectrograms `[N, bands, frames]` (or transposed): energy that moves slowly, over noise."""
    rows, first, second = shape
    coarse = torch.randn(rows, 1, max(1, first // SMOOTH), max(1, second // SMOOTH), generator=generator)
    smooth = nnf.interpolate(coarse, (first, second), mode="bilinear", align_corners=False).squeeze(1)
    mixed = smooth + 0.3 * torch.randn(shape, generator=generator)
    return mixed / mixed.std()


def waveforms(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Unit-variance waveforms `[N, samples]`: a few harmonics of one tone that swell and fade, over noise."""
    rows, samples = shape
    time = torch.arange(samples, dtype=torch.float32)
    tone = 0.005 + 0.03 * torch.rand(rows, 1, generator=generator)  # cycles per sample: 80 to 560 Hz at 16 kHz
    swell = torch.randn(rows, 1, max(2, samples // 800), generator=generator)
    envelope = nnf.interpolate(swell, samples, mode="linear", align_corners=False).squeeze(1).abs()
    wave = torch.zeros(shape)
    for i in range(1, PARTIALS + 1):
        phase = 2 * torch.pi * torch.rand(rows, 1, generator=generator)
        wave += torch.randn(rows, 1, generator=generator) / i * torch.sin(2 * torch.pi * i * tone * time + phase)
    mixed = wave * envelope + 0.05 * torch.randn(shape, generator=generator)
    return mixed / mixed.std(1, keepdim=True).clamp_min(1e-6)


def texts_with_targets(
    model: nn.Module, texts: list[Tensor], length: int, generator: torch.Generator
) -> Iterator[Inputs]:
    """Source texts with what the decoder writes for them."""
    for ids in texts:
        source = {"input_ids": ids.to(device_of(model))}
        source["attention_mask"] = torch.ones_like(source["input_ids"])
        yield {**source, DECODED: decoded_by(model, source, length, generator)}
