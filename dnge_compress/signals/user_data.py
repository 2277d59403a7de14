"""The user's own inputs: batches, which are checked, and cut to what the model has positions for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.core.errors import DataError, UnsupportedModelError, first_line
from dnge_compress.core.wording import kind
from dnge_compress.graph.derivation.pictures import PIXELS, picture_token
from dnge_compress.graph.types import ModelGraph
from dnge_compress.graph.vocabulary import refuse_unknown, rows_of
from dnge_compress.signals.inference import Inputs, call, device_of, first_examples, inference_mode_of, to_device
from dnge_compress.signals.positions import positions_of

MASKED = tuple(  # [rows, length] each, or [rows, length, features]
    (f"{side}{tokens}", f"{side}attention_mask")
    for side in ("", "decoder_")
    for tokens in ("input_ids", "inputs_embeds")
)
MASKS = {mask for _, mask in MASKED}


@dataclass(frozen=True)
class UserData(Sequence[Inputs]):
    """Batches, which it is a sequence of, and `notes` on what was left out of them."""

    batches: tuple[Inputs, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        return self.batches[index]


def checked_data(data: Any, model: nn.Module) -> UserData:
    """A user's batches on the model's device; texts that are longer than the model has positions for are cut there.

    Raises DataError naming the batch that doesn't fit.
    """
    if isinstance(data, Tensor | Mapping | str):
        raise DataError("data must be an iterable of batches (dicts or tensors), not one batch; wrap it in a list")
    if not isinstance(data, Iterable):
        raise DataError(f"data must be an iterable of batches (dicts or tensors), not a {kind(data)}; pass a list")
    batches: list[Inputs] = []
    for i, batch in enumerate(data):
        _check_values(batch, i)
        _check_shapes(batch, i)
        batches.append(to_device(batch, device_of(model)))
    if not batches:
        raise DataError("data is empty; pass at least one batch, or leave it out to use synthetic inputs")
    found = _cut(UserData(tuple(batches), data.notes if isinstance(data, UserData) else ()), model)
    _refuse_unknown_tokens(found.batches, model)
    try:
        with torch.no_grad(), inference_mode_of(model):
            call(model, first_examples(found.batches, 1)[0])
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as e:
        what = f"data batch 0 doesn't fit a {type(model).__name__}"
        raise DataError(f"{what} ({first_line(e)}); pass its inputs only") from e
    return found


def _refuse_unknown_tokens(batches: Sequence[Inputs], model: Any) -> None:
    """Raise DataError for ids in a batch that a model has no embedding for, or its decoder, which is given its own by
    name; those that stand for pictures or sounds need none."""
    readers = {"input_ids": model} if getattr(model, "main_input_name", None) == "input_ids" else {}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and hasattr(model, "get_decoder"):
        readers["decoder_input_ids"] = model.get_decoder()
    for name, reader in readers.items():
        with suppress(UnsupportedModelError):  # which reads no token ids
            rows = rows_of(reader)
            for i, batch in enumerate(batches):
                ids = _ids_in(batch, name)
                if ids is not None:
                    refuse_unknown(f"data batch {i} holds", int(ids.min()), int(ids.max()), rows=rows)


def _ids_in(batch: Inputs, name: str) -> Tensor | None:
    """The token ids that a batch has under that name; None where it has none, and for the ids of a model's own input
    where a batch holds more than text."""
    if isinstance(batch, Mapping):
        return _text_in(batch) if name == "input_ids" else batch.get(name)
    first = batch[0] if isinstance(batch, tuple) else batch
    return None if first.is_floating_point() or name != "input_ids" else first


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


def _cut(data: UserData, model: Any) -> UserData:
    """The batches with no text longer than the model has positions for."""
    texts = [_text_in(batch) for batch in data.batches]
    if getattr(model, "main_input_name", None) != "input_ids" or not any(text is not None for text in texts):
        return data
    limit = positions_of(model)
    long = [text is not None and limit is not None and text.shape[1] > limit for text in texts]
    if limit is None or not any(long):
        return data
    rows = sum(len(text) for text, is_long in zip(texts, long, strict=True) if is_long and text is not None)
    note = f"{rows} data rows are longer than the {limit} positions of this {type(model).__name__}, and cut there"
    batches = tuple(
        _shortened(batch, limit) if is_long else batch for batch, is_long in zip(data.batches, long, strict=True)
    )
    return UserData(batches, (*data.notes, note))


def _text_in(batch: Inputs) -> Tensor | None:
    """The token ids `[rows, tokens]` of a batch that holds nothing but text."""
    if not isinstance(batch, Mapping) or any(t.is_floating_point() for n, t in batch.items() if n not in MASKS):
        return None
    ids = batch.get("input_ids")
    return ids if ids is not None and ids.dim() == 2 else None


def _shortened(batch: Inputs, limit: int) -> Inputs:
    """Rows cut at a number of tokens; masks between tokens, `[rows, (heads,) tokens, tokens]`, on both sides."""
    assert isinstance(batch, Mapping)
    return {
        name: t[..., :limit, :limit] if name in MASKS and t.dim() > 2 else t[:, :limit] if t.dim() == 2 else t
        for name, t in batch.items()
    }


def _check_values(batch: Any, index: int) -> None:
    """Raise DataError for a batch that holds nothing, or numbers that aren't finite."""
    tensors = list(_tensors_of(batch, index))
    if not tensors:
        raise DataError(f"data batch {index} is empty: it holds no tensors; leave it out")
    for name, tensor in tensors:
        if not tensor.numel():
            raise DataError(
                f"data batch {index} is empty: {name or 'a tensor'} is of {list(tensor.shape)}; leave it out"
            )
        if not tensor.is_floating_point() or torch.isfinite(tensor).all():
            continue
        if name in MASKS and not torch.isnan(tensor).any():
            raise DataError(f"data batch {index} has infinite values in {name}; write torch.finfo(dtype).min for -inf")
        raise DataError(f"data batch {index} holds NaN or infinite values")


def _check_shapes(batch: Any, index: int) -> None:
    """Raise DataError for tokens or masks without rows, and for a mask that isn't of its tokens' shape: attention
    stretches or ignores it without a word."""
    for ids, mask in MASKED if isinstance(batch, Mapping) else ():
        for name in (ids, mask):
            if name in batch and batch[name].dim() < 2:
                raise DataError(
                    f"data batch {index} has {name} of {list(batch[name].shape)}; give rows of equal length, as in "
                    f"{name}[None]"
                )
        shapes = [list(batch[key].shape) for key in (ids, mask) if key in batch]
        if len(shapes) == 2 and len(shapes[1]) == 2 and shapes[0][:2] != shapes[1]:
            raise DataError(
                f"data batch {index} has {ids} of {shapes[0]} and {mask} of {shapes[1]}; make rows and lengths equal"
            )


def _tensors_of(batch: Any, index: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch, with their names ("" where they have none). Raises DataError for anything else."""
    unnamed = batch if isinstance(batch, tuple | list) else [batch]
    for name, part in batch.items() if isinstance(batch, Mapping) else (("", part) for part in unnamed):
        if not isinstance(part, Tensor):
            raise DataError(
                f"data batch {index} holds a {type(part).__name__}; batches are tensors, tuples or dicts of tensors"
            )
        yield name, part
