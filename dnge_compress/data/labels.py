"""Labels that come with a data loader's batches and that the model takes no argument for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.signals.user_data import UserData

LABELS = ("labels", "label")
NOTE = "the labels of the data's batches are left out: the model takes none"


def without_labels(batches: Sequence[Any], model: nn.Module) -> Any:
    """The batches without what can only be labels: those of a dict that the model has no argument for, and in pairs of
    inputs and whole numbers, one for each example, the latter, unless the model asks for a second argument."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_alone = not any(p.default is p.empty for p in positional[1:2])
    unknown = set() if takes_any else set(LABELS) - set(parameters)

    def bare(batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return {key: value for key, value in batch.items() if key not in unknown}
        return batch[0] if is_alone and _is_labelled(batch) else batch

    def has_any(batch: Any) -> bool:
        return bool(unknown & set(batch)) if isinstance(batch, Mapping) else is_alone and _is_labelled(batch)

    if not any(map(has_any, batches)):
        return batches
    return UserData(tuple(map(bare, batches)), (NOTE,))


def _is_labelled(batch: Any) -> bool:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
        return False
    inputs, labels = batch
    is_whole = labels.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    return inputs.dim() > 1 and labels.dim() == 1 and is_whole and len(labels) == len(inputs)
