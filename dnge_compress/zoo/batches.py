"""Batches of real data for the networks of the zoo, and their loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from dnge_compress.core.errors import DataError
from dnge_compress.zoo.blueprint import Blueprint
from dnge_compress.zoo.corpora import tokens
from dnge_compress.zoo.data_root import DataRoot, Split
from dnge_compress.zoo.images import images

IGNORED = -100
_MASKED_SHARE = 0.15


@dataclass(frozen=True)
class ZooBatch:
    """Inputs and labels of one forward pass.

    `inputs` are keywords of a transformers model, or the one positional tensor of a plain module. `labels`
    stand beside the logits they judge, without any shift left to do: classes [B], or tokens [B, L] (the next
    token for a causal model; for BERT the hidden token, -100 at visible positions).
    """

    inputs: dict[str, Tensor] | Tensor
    labels: Tensor


def logits(model: nn.Module, batch: ZooBatch) -> Tensor:
    """Run any network of the zoo: [B, classes] or [B, L, V]."""
    if isinstance(batch.inputs, Tensor):
        return model(batch.inputs)
    return model(**batch.inputs).logits


def loss(model: nn.Module, batch: ZooBatch) -> Tensor:
    """Mean cross-entropy in nats over the predicted positions (only the masked ones for BERT)."""
    return cross_entropy(logits(model, batch), batch.labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits [..., V] against labels [...], -100 left out."""
    flat = logits.float().flatten(0, -2)
    return nn.functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED)


def example_batches(
    blueprint: Blueprint, split: Split, *, count: int, batch_size: int, seed: int, data_root: DataRoot | None = None
) -> list[ZooBatch]:
    """Draw `count` batches of the blueprint's own data set; the same seed gives the same batches.

    Raises: DataError if the data are missing or a batch holds more than there is.
    """
    stream = batches(blueprint, split, batch_size=batch_size, seed=seed, data_root=data_root)
    return list(islice(stream, count))


def batches(
    blueprint: Blueprint, split: Split, *, batch_size: int, seed: int, data_root: DataRoot | None = None
) -> Iterator[ZooBatch]:
    """Endless shuffled batches of the blueprint's own data set; see `example_batches`."""
    data_root = data_root or DataRoot.find()
    generator = torch.Generator().manual_seed(seed)
    if blueprint.is_language:
        return _text_batches(blueprint, tokens(blueprint.data, split, data_root=data_root), batch_size, generator)
    return _image_batches(blueprint, split, batch_size, generator, data_root)


def neighbour_batches(
    blueprint: Blueprint, *, batch_size: int, seed: int, data_root: DataRoot | None = None
) -> Iterator[ZooBatch]:
    """Endless train batches of BERT's preparation: name the tokens before and after every position.

    Inputs as for masked language modelling; labels [B, L, 2]. The task teaches attention to look at
    neighbours. Without it networks this small stay at the unigram loss for thousands of steps.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = tokens(blueprint.data, "train", data_root=data_root or DataRoot.find())
    while True:
        ids = _windows(stream, blueprint.length + 2, batch_size, generator)  # [B, L + 2]
        inputs = _masked(ids[:, 1:-1], blueprint.mask_id, generator).inputs
        yield ZooBatch(inputs, torch.stack([ids[:, :-2], ids[:, 2:]], dim=-1))


def _image_batches(
    blueprint: Blueprint, split: Split, batch_size: int, generator: torch.Generator, data_root: DataRoot
) -> Iterator[ZooBatch]:
    data = images(blueprint.data, split, data_root=data_root)
    total = len(data.labels)
    if batch_size > total:
        raise DataError(f"{blueprint.data} has {total} {split} images, fewer than a batch of {batch_size}")
    while True:
        order = torch.randperm(total, generator=generator)
        for start in range(0, total - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            x = data.batch(index)
            yield ZooBatch(x if blueprint.family in ("mlp", "cnn") else {"pixel_values": x}, data.labels[index])


def _text_batches(
    blueprint: Blueprint, stream: np.ndarray, batch_size: int, generator: torch.Generator
) -> Iterator[ZooBatch]:
    if len(stream) < blueprint.length + 2:
        raise DataError(f"{blueprint.data} has {len(stream)} tokens, too few for sequences of {blueprint.length}")
    while True:
        ids = _windows(stream, blueprint.length + 1, batch_size, generator)  # [B, L + 1]
        if blueprint.family == "bert":
            yield _masked(ids[:, 1:].contiguous(), blueprint.mask_id, generator)
        else:
            yield ZooBatch({"input_ids": ids[:, :-1].contiguous()}, ids[:, 1:].contiguous())


def _windows(stream: np.ndarray, width: int, batch_size: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(stream) - width + 1, (batch_size,), generator=generator).tolist()
    return torch.from_numpy(np.stack([stream[s : s + width] for s in starts]).astype(np.int64))


def _masked(ids: Tensor, mask_id: int, generator: torch.Generator) -> ZooBatch:
    """Hide 15 % of the positions of every sequence, the same number in each."""
    hidden_per_row = max(1, round(_MASKED_SHARE * ids.shape[1]))
    order = torch.rand(ids.shape, generator=generator).argsort(1)
    hidden = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, order[:, :hidden_per_row], True)
    return ZooBatch({"input_ids": ids.masked_fill(hidden, mask_id)}, ids.masked_fill(~hidden, IGNORED))
