"""Inputs that an architecture can be called with, by what its forward takes and its config says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.derivation.pictures import pictures_of
from dnge_compress.graph.tracing.running import tensors_in

ROWS, TOKENS, TARGETS = 2, 12, 7
FRAMES = 40  # of a spectrogram
SAMPLES = 400  # of a waveform


def example_inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Random inputs that the model accepts, on its device and in its precision, or None if nothing tried is accepted.

    The model is run, in eval mode, and left as it was.
    """
    modes = [(module, module.training) for module in model.modules()]
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return next((inputs for inputs in _on(candidates(model), first) if _accepts(model, inputs)), None)
    except (ValueError, AttributeError, TypeError):  # a config that doesn't say what its model takes
        return None
    finally:
        for module, mode in modes:
            module.training = mode


def _accepts(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    try:
        run(model, inputs)
    except Exception:  # whatever a model raises about inputs is the answer "not these"
        return False
    return True


def _on(tried: Iterator[dict[str, Tensor]], like: Tensor) -> Iterator[dict[str, Tensor]]:
    for inputs in tried:
        yield {n: t.to(like.device, like.dtype if t.is_floating_point() else None) for n, t in inputs.items()}


def run(model: nn.Module, inputs: dict[str, Tensor], *, is_differentiable: bool = False) -> list[Tensor]:
    """Every floating tensor of the model's answer, called as a user would; without a cache where it is differentiated,
    since some models write into theirs."""
    has_cache = "use_cache" in inspect.signature(model.forward).parameters
    extra = {"use_cache": False} if is_differentiable and has_cache else {}
    return [t for t in tensors_in(model(**inputs, **extra)) if t.is_floating_point()]


def candidates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inputs to try, the likeliest first."""
    config: Any = model.config
    takes = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(1)
    text = _tokens(config, TOKENS, generator)
    pictures = pictures_of(model)
    if pictures is not None:
        yield pictures.in_text(model, text, torch.randn(ROWS, *pictures.shape, generator=generator))
    made: dict[str, list[Tensor]] = {}
    if "pixel_values" in takes:
        made["pixel_values"] = list(_images(config, generator))
    if "input_features" in takes:
        made["input_features"] = list(_spectrograms(config, generator))
    if "input_values" in takes:
        made["input_values"] = list(_waves(config, generator))
    if "input_ids" in takes:
        made["input_ids"] = [text, text[:, None].expand(-1, 3, -1).contiguous()]
    if "decoder_input_ids" in takes and getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = [_tokens(config, TARGETS, generator)]
    main = getattr(model, "main_input_name", "input_ids")
    seen = [name for name in (main, *made) if name in made]
    for first in made.get(seen[0], []) if seen else []:
        alone = {seen[0]: first}
        if seen[0] == "input_ids":
            alone["attention_mask"] = torch.ones_like(first)
        rest = {n: made[n] for n in dict.fromkeys(seen) if n != seen[0]}
        target = {n: v[0] for n, v in rest.items() if n == "decoder_input_ids"}
        if main != "input_ids" and "input_ids" in rest:
            yield alone | target | {"input_ids": rest["input_ids"][0]}
        yield alone | target
        if "pixel_values" in rest:
            for images in rest["pixel_values"]:
                yield alone | target | {"pixel_values": images}
        yield alone


def special_tokens(*configs: Any) -> set[int]:
    """The token ids that configs give a meaning."""
    return {v for c in configs for n, v in vars(c).items() if n.endswith(("_id", "_index")) and type(v) is int}


def _tokens(config: Any, length: int, generator: torch.Generator) -> Tensor:
    """Ordinary token ids; every text ends with the end token, which some classifiers and CLIP look for."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None) or getattr(config, "vocab_size", 0) or 16
    special = special_tokens(config, text)
    ordinary = torch.tensor([i for i in range(size) if i not in special])
    ids = ordinary[torch.randint(len(ordinary), (ROWS, length), generator=generator)]
    end = getattr(text, "eos_token_id", None)
    if type(end) is int and 0 <= end < size:
        ids[:, -1] = end
    return ids


def _images(config: Any, generator: torch.Generator) -> Iterator[Tensor]:
    parts = [getattr(config, n) for n in ("vision_config", "encoder", "backbone_config") if hasattr(config, n)]
    known = [getattr(c, "image_size", None) for c in (config, *parts)]
    channels = next((n for c in (config, *parts) if type(n := getattr(c, "num_channels", None)) is int), 3)
    sizes = [s for s in known if s is not None]
    for size in [*sizes, 64, 224, 32]:
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        frames = getattr(config, "num_frames", None)
        if frames is not None:
            yield torch.randn(ROWS, frames, channels, height, width, generator=generator)
        else:
            yield torch.randn(ROWS, channels, height, width, generator=generator)


def _spectrograms(config: Any, generator: torch.Generator) -> Iterator[Tensor]:
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
    bins = next((n for name in names if type(n := getattr(config, name, None)) is int), 80)
    frames = getattr(config, "max_source_positions", 0) * 2
    for length in dict.fromkeys((frames or FRAMES, FRAMES)):
        yield torch.randn(ROWS, bins, length, generator=generator)
        yield torch.randn(ROWS, min(length, FRAMES), bins, generator=generator)


def _waves(config: Any, generator: torch.Generator) -> Iterator[Tensor]:
    bins = getattr(config, "num_mel_bins", None)
    if type(bins) is int and type(length := getattr(config, "max_length", None)) is int:
        yield torch.randn(ROWS, length, bins, generator=generator)
    yield torch.randn(ROWS, SAMPLES, generator=generator)
    yield torch.randn(ROWS, 20 * SAMPLES, generator=generator)
