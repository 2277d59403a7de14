"""The user's own inputs: batches, which are checked, and texts, which the model's own tokenizer reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from dnge_compress.core.errors import DataError, first_line
from dnge_compress.graph.derivation.pictures import PIXELS, picture_token
from dnge_compress.graph.types import ModelGraph
from dnge_compress.signals.calibration import BATCH_TOKENS
from dnge_compress.signals.inference import Inputs, call, device_of, first_examples, inference_mode_of, to_device


def checked_data(data: Any, model: nn.Module) -> list[Inputs]:
    """A user's batches as a list on the model's device. Raises DataError naming the batch that doesn't fit."""
    if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
        raise DataError("data must be an iterable of batches (dicts or tensors), not one batch; wrap it in a list")
    batches: list[Inputs] = []
    for i, batch in enumerate(data):
        tensors = list(_tensors_of(batch, i))
        if any(t.is_floating_point() and not torch.isfinite(t).all() for t in tensors):
            raise DataError(f"data batch {i} holds NaN or infinite values")
        batches.append(to_device(batch, device_of(model)))
    if not batches:
        raise DataError("data is empty; pass at least one batch, or leave it out to use synthetic inputs")
    try:
        with torch.no_grad(), inference_mode_of(model):
            call(model, first_examples(batches, 1)[0])
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as e:
        what = f"data batch 0 doesn't fit a {type(model).__name__}"
        raise DataError(f"{what} ({first_line(e)}); pass its inputs only") from e
    return batches


def refuse_without_pictures(data: Sequence[Inputs], model: nn.Module, graph: ModelGraph, part: str) -> None:
    """Raise DataError where a model reads pictures, the data hold none, and something in `part` (a path, "" for the
    whole model) could be cut that no text reaches: it would be judged by nothing."""
    if picture_token(model) is None or any(isinstance(batch, Mapping) and PIXELS in batch for batch in data):
        return
    spaces = graph.of_kind("neuron", "head", "channel")
    modules = {slot.param.rpartition(".")[0] for s in spaces for slot in graph.consumers(s.name) if slot.part is None}
    unseen = {path for path in modules if not part or path.startswith(f"{part}.")}
    with torch.no_grad(), inference_mode_of(model), ExitStack() as hooks:
        for path in list(unseen):
            seen = partial(_leave_out, unseen, path)
            hooks.enter_context(model.get_submodule(path).register_forward_pre_hook(seen))
        call(model, first_examples(data, 1)[0])
    if unseen:
        raise DataError(
            f"the data hold no {PIXELS}, and no text reaches '{min(unseen)}', which would be cut by chance; "
            "give pictures with the texts, or name the part that reads text with prune.within"
        )


def _leave_out(paths: set[str], path: str, module: nn.Module, args: Any) -> None:
    paths.discard(path)


def read_texts(path: Path, model: nn.Module, length: int) -> list[Inputs]:
    """Batches of the texts in a file, cut at `length` tokens, on the model's device. Raises DataError.

    Texts of similar length share a batch, so that little is padded.
    """
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"data file '{path}' can't be read: {getattr(e, 'strerror', None) or e}") from None
    if not texts:
        raise DataError(f"data file '{path}' holds no text; write one text per line")
    tokenizer = _tokenizer_of(model)
    rows = [ids for text in texts if (ids := tokenizer(text, truncation=True, max_length=length)["input_ids"])]
    rows.sort(key=len)
    size = max(1, BATCH_TOKENS // length)
    batches: list[Inputs] = []
    for first in range(0, len(rows), size):
        batch = tokenizer.pad({"input_ids": rows[first : first + size]}, return_tensors="pt").to(device_of(model))
        batches.append({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    return batches


def _tokenizer_of(model: Any) -> Any:
    if getattr(model, "main_input_name", None) != "input_ids":
        raise DataError(f"--data gives text, but a {type(model).__name__} doesn't read any; use data=… in Python")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as e:
        raise DataError(f"'{model.name_or_path}' has no tokenizer for --data: {first_line(e)}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def _tensors_of(batch: Any, index: int) -> Iterator[Tensor]:
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    for part in parts:
        if not isinstance(part, Tensor):
            raise DataError(
                f"data batch {index} holds a {type(part).__name__}; batches are tensors, tuples or dicts of tensors"
            )
        yield part
