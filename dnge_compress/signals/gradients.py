"""How large the loss gradient is at every weight matrix, measured by running the model. No gradient is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.core.progress import Progress, silent
from dnge_compress.signals.divergence import label_loss, outputs_of
from dnge_compress.signals.inference import Inputs, call, has_logits, inference_mode_of, writes_text

Loss = Callable[[nn.Module, Inputs], tuple[Tensor, int]]  # a sum over labels, and how many they are


def mean_square_gradients(
    model: nn.Module, params: Sequence[str], batches: Sequence[Inputs], loss: Loss, progress: Progress = silent
) -> dict[str, float]:
    """Parameter name → mean over its elements and over `batches` of the squared gradient, per label.

    Only one gradient exists at a time: each is reduced as soon as it is there. The model is left as it was.
    """
    weights = {name: model.get_parameter(name) for name in params}
    sums = dict.fromkeys(params, 0.0)
    labels = 0
    with torch.enable_grad(), inference_mode_of(model), _reduced(weights, sums):
        for i, batch in enumerate(batches):
            total, count = loss(model, batch)
            total.backward()
            labels += count
            progress("measure gradients", i + 1, len(batches))
    return {name: value / max(1, labels) for name, value in sums.items()}


def sampled_labels(seed: int) -> Loss:
    """Labels drawn from the model's own answer, so that no real ones are needed: squared gradients are Fisher's."""
    generator = torch.Generator().manual_seed(seed)

    def loss(model: nn.Module, batch: Inputs) -> tuple[Tensor, int]:
        output = outputs_of(model, batch)
        return label_loss(output, has_logits(model), generator), output.numel() // output.shape[-1]

    return loss


def real_labels(seed: int) -> Loss:
    """The batch's own `labels`; else the next token, for a causal language model; else labels drawn as above."""
    sampled = sampled_labels(seed)

    def loss(model: nn.Module, batch: Inputs) -> tuple[Tensor, int]:
        if isinstance(batch, Mapping) and "labels" in batch:
            count = int((batch["labels"] != -100).sum())
            return model(**batch).loss * count, count
        if isinstance(batch, Mapping) and writes_text(model):
            mask = batch.get("attention_mask")
            ids = batch["input_ids"]
            targets = ids if mask is None else ids.masked_fill(mask == 0, -100)
            logits = call(model, batch)[:, :-1].float()
            wanted = targets[:, 1:]
            total = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
            return total, int((wanted != -100).sum())
        return sampled(model, batch)

    return loss


@contextmanager
def _reduced(weights: Mapping[str, nn.Parameter], sums: dict[str, float]) -> Iterator[None]:
    """Let these weights have gradients, which are squared, added up and dropped as they come."""

    def reduce(name: str, weight: Any) -> None:
        sums[name] += float(weight.grad.float().square().mean())
        weight.grad = None

    with ExitStack() as hooks:
        for name, weight in weights.items():
            weight.requires_grad_(True)
            hooks.enter_context(weight.register_post_accumulate_grad_hook(partial(reduce, name)))
        yield
