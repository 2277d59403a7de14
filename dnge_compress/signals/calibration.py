"""Calibration inputs for a model whose user gives no data.

Language models are calibrated on text that they write themselves (sampled_text.py, masked_text.py), other encoders on
random words that have a topic (synthetic_text.py), vision models on random pictures of shapes that hide one another
(synthetic_images.py), moved towards what their batch norms have seen (batch_norms.py). Models that read pictures in a
text have one in each. Everything is seeded and the model is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.core.errors import DataError, UnsupportedModelError
from dnge_compress.core.progress import Progress, silent
from dnge_compress.graph.derivation.example_inputs import example_inputs as made_inputs
from dnge_compress.graph.derivation.pictures import Pictures, picture_token, pictures_of
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.batch_norms import batch_norms, matched
from dnge_compress.signals.beginnings import beginnings, ends, in_turn
from dnge_compress.signals.inference import Inputs, device_of, inference_mode_of, writes_text
from dnge_compress.signals.made_inputs import DECODED, inputs_like, texts_with_targets
from dnge_compress.signals.masked_text import fill_batches
from dnge_compress.signals.sampled_text import sample_batches, text_length
from dnge_compress.signals.synthetic_images import random_images
from dnge_compress.signals.synthetic_text import topical_texts
from dnge_compress.signals.vocabulary import vocabulary_of

BATCH_TOKENS = 2048
MAKE = "make inputs"  # the stage of progress
MIN_IMAGES = 64
LONGER, FILLED = 2, 4  # times the recipe's length: what a model writes, and the longest that it fills in
FILLED_LENGTHS = (1.0, 0.8, 0.6, 0.4)  # of the longest text, with equal numbers of tokens
PATCHES_ALONG_SIDE = 16  # of pictures in a text, where a model takes any size
TARGET_TOKENS = 24  # that a decoder writes for each source text
ORDINARY = {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}


def synthesize(
    model: nn.Module, settings: Calibration, example_inputs: Inputs | None = None, progress: Progress = silent
) -> list[Inputs]:
    """Batches of synthetic inputs for `model`, on its device. `example_inputs` tells the shapes of a plain module,
    and the image size of a convolutional network if it isn't its config's.

    Raises DataError for a kind that doesn't fit the model.
    """
    natural = default_kind(model, example_inputs)
    kind = settings.kind if settings.kind != "auto" else natural
    if kind not in (natural, {"sampled": "words"}.get(natural)):
        raise DataError(f"calibration of kind '{kind}' doesn't fit a {type(model).__name__}; use 'auto'")
    if settings.prompts and (kind != "sampled" or not writes_text(model)):
        raise DataError(f"calibration.prompts begin texts, and a {type(model).__name__} writes none; leave them out")
    generator = torch.Generator().manual_seed(settings.seed)
    with inference_mode_of(model):
        if kind == "like":
            return _inputs_like(model, settings, generator, example_inputs)
        if kind == "images":
            return _painted_images(model, settings, generator, example_inputs)
        if kind == "sampled":
            return _sampled_text(model, settings, generator, progress)
        return _topical_words(model, settings, generator)


def calibration_inputs(
    model: nn.Module, settings: Calibration, example_inputs: Inputs | None = None, progress: Progress = silent
) -> list[Inputs]:
    """What `synthesize` makes; images are moved towards what the model's batch norms have seen."""
    batches = synthesize(model, settings, example_inputs, progress)
    if not are_matched(model, batches):
        return batches
    named = [found for found in map(_only_images, batches) if found is not None]
    name, parts = named[0][0], [part for _, part in named]
    moved = matched(model, torch.cat(parts), name, progress).split([len(part) for part in parts])
    if isinstance(batches[0], tuple):
        return [(part,) for part in moved]
    return [{name: part} if name else part for part in moved]


def length_note(model: Any, settings: Calibration, example_inputs: Inputs | None = None) -> str:
    """That texts are shorter than the recipe wants, since the model has no positions for more; "" if they aren't."""
    if default_kind(model, example_inputs) not in ("sampled", "words"):
        return ""
    length = text_length(model, settings.length)
    if length == settings.length:
        return ""
    return f"calibration.length {settings.length} is cut to {length}: the model has no more positions"


def are_matched(model: nn.Module, batches: Sequence[Inputs]) -> bool:
    """Whether inputs are images that the model's batch norms can be asked about."""
    return bool(batches and batch_norms(model)) and all(_only_images(batch) is not None for batch in batches)


def _only_images(batch: Inputs) -> tuple[str, Tensor] | None:
    """The images of a batch that holds nothing else, and the argument that takes them, "" for the first one."""
    named = dict(batch) if isinstance(batch, Mapping) else {"": batch[0] if isinstance(batch, tuple) else batch}
    if (isinstance(batch, tuple) and len(batch) > 1) or len(named) > 1:
        return None
    name, found = next(iter(named.items()))
    return (name, found) if found.dim() == 4 and found.is_floating_point() else None


def default_kind(model: nn.Module, example_inputs: Inputs | None) -> str:
    """What suits a model: "sampled", "words" or "images"; "like" for a plain module with example inputs."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", None) is None:
        if example_inputs is None:
            raise UnsupportedModelError(
                f"a plain {type(model).__name__} says nothing about its inputs; pass example_inputs=… or data=…"
            )
        return "like"
    if picture_token(model) is not None and _has_token_table(model):
        return "words"
    if isinstance(example_inputs, Mapping) and not example_inputs.keys() <= ORDINARY:
        return "like"
    several = getattr(config, "is_encoder_decoder", False) or type(model).__name__.endswith("MultipleChoice")
    if several or hasattr(config, "num_frames") or (hasattr(config, "vision_config") and not _writes(model)):
        return "like"
    if model.main_input_name == "pixel_values":
        return "images" if hasattr(config, "num_channels") else "like"
    if model.main_input_name != "input_ids" or not _has_token_table(model):
        return "like"
    return "sampled" if writes_text(model) or _mask_of(model) is not None else "words"


def _mask_of(model: Any) -> int | None:
    """The mask token of a masked language model; None for another model, or where no tokenizer tells it."""
    return vocabulary_of(model).mask if type(model).__name__.endswith("ForMaskedLM") else None


def _has_token_table(model: Any) -> bool:
    try:
        return isinstance(model.get_input_embeddings(), nn.Embedding)
    except NotImplementedError:
        return False


def _writes(model: Any) -> bool:
    try:
        return model.get_output_embeddings() is not None
    except NotImplementedError:
        return False


def _sampled_text(model: Any, settings: Calibration, generator: torch.Generator, progress: Progress) -> list[Inputs]:
    if not writes_text(model):
        return _filled_masks(model, settings, generator, progress)
    starts = beginnings(model, generator, settings.prompts)
    longest = max(map(len, starts))
    length = text_length(model, LONGER * settings.length + longest - 1)
    if longest >= length:
        raise DataError(f"calibration.prompts take {longest} of {length} positions and leave none; write shorter ones")
    rows = max(1, round(settings.tokens / length))
    begun = in_turn(starts, rows)
    step = max(1, BATCH_TOKENS // length)
    ids = torch.cat(list(sample_batches(model, begun, length, generator, partial(progress, MAKE))))
    mask = _until(ids, ends(model), torch.tensor(sorted(map(len, begun)), device=ids.device))
    order = torch.randperm(len(ids), generator=generator).to(ids.device)
    ids, mask = ids[order], mask[order]
    if bool(mask.all()):
        return [{"input_ids": part} for part in ids.split(step)]
    return [
        {"input_ids": part, "attention_mask": own} for part, own in zip(ids.split(step), mask.split(step), strict=True)
    ]


def _until(ids: Tensor, ends: tuple[int, ...], begun: Tensor) -> Tensor:
    """A mask `[N, T]` of the tokens up to the first that ends the text; ends among a row's first `begun` `[N]` don't
    count."""
    is_end = torch.isin(ids, torch.tensor(ends, device=ids.device))
    is_end &= torch.arange(ids.shape[1], device=ids.device) >= begun[:, None]
    return (is_end.long().cumsum(1) - is_end.long() == 0).long()


def _filled_masks(model: Any, settings: Calibration, generator: torch.Generator, progress: Progress) -> list[Inputs]:
    vocabulary, mask = vocabulary_of(model), _mask_of(model)
    assert mask is not None
    longest, batches = text_length(model, FILLED * settings.length), []
    for i, share in enumerate(FILLED_LENGTHS):
        progress(MAKE, i, len(FILLED_LENGTHS))
        length = max(4, round(share * longest))
        rows = max(1, round(settings.tokens / len(FILLED_LENGTHS) / length))
        frame = (vocabulary.before, vocabulary.after)
        for ids in fill_batches(model, rows, length, max(1, BATCH_TOKENS // length), frame, mask, generator):
            batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    progress(MAKE, len(FILLED_LENGTHS), len(FILLED_LENGTHS))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _topical_words(model: Any, settings: Calibration, generator: torch.Generator) -> list[Inputs]:
    device = device_of(model)
    texts = topical_texts(model, settings.tokens, text_length(model, settings.length), BATCH_TOKENS, generator)
    pictures = pictures_of(model, PATCHES_ALONG_SIDE)
    if pictures is not None:
        return list(_pictured(model, texts, pictures, settings.tokens, generator))
    return [{"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids, device=device)} for ids in texts]


def _pictured(
    model: Any, texts: list[Tensor], pictures: Pictures, tokens: int, generator: torch.Generator
) -> Iterator[Inputs]:
    """Texts with a picture each, behind what every text begins with, until there are about so many tokens, those that
    stand for pictures among them."""
    begun, like = len(vocabulary_of(model).before), next(p for p in model.parameters() if p.is_floating_point())
    entries = vocabulary_of(model).entries
    token, other = pictures.token, int(entries[entries != pictures.token][0])
    for batch in texts:
        length = batch.shape[1] + len(pictures.tokens)
        for ids in batch.split(max(1, BATCH_TOKENS // length)):
            painted = random_images((len(ids), *pictures.shape), generator).to(like.dtype)
            made = pictures.in_text(model, ids.masked_fill(ids == token, other), painted, begun)
            yield {name: t.to(like.device) for name, t in made.items()}
            tokens -= len(ids) * length
            if tokens <= 0:
                return


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


def _inputs_like(model: Any, settings: Calibration, generator: torch.Generator, example: Any) -> list[Inputs]:
    """Inputs of any names and shapes; a text with a decoder's answer where the model turns one into the other."""
    if example is None:
        example = made_inputs(model)
    if example is None:
        raise DataError(
            f"no inputs that a {type(model).__name__} takes could be made; give it text (--data FILE), or in Python "
            "any inputs, data=… or example_inputs=…"
        )
    reads_text = isinstance(example, Mapping) and example.keys() == {"input_ids", "attention_mask", DECODED}
    if reads_text and len(example["input_ids"].shape) == 2:
        texts = topical_texts(model, settings.tokens, text_length(model, settings.length), BATCH_TOKENS, generator)
        return list(texts_with_targets(model, texts, min(settings.length, TARGET_TOKENS), generator))
    return inputs_like(model, example, settings, generator)
