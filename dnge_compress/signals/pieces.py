"""Batches in pieces, so that what a model writes for one of them stays within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dnge_compress.graph.derivation.pictures import GRID
from dnge_compress.signals.divergence import are_scores
from dnge_compress.signals.inference import (
    Inputs,
    call,
    examples_in,
    first_examples,
    has_logits,
    inference_mode_of,
    part_of,
    pictured_patches,
)
from dnge_compress.signals.joined import positions_in

OUTPUT_WEIGHT = 4  # copies of the main output that a loss makes: logarithms, probabilities, draws of labels, gradient


def numbers_per_position(model: nn.Module, batch: Inputs) -> tuple[float, float]:
    """How many numbers the model's innermost modules write for each position of a batch, and how many its loss takes;
    measured on one example. 0 where the answers are no class scores: the loss takes their variance over a batch, which
    must stay whole."""
    few = first_examples([batch], 1)[0]
    found = 0

    def count(module: nn.Module, args: object, out: object) -> None:
        nonlocal found
        found += out.numel() if isinstance(out, Tensor) else 0

    hooks = [m.register_forward_hook(count) for m in model.modules() if not any(m.children())]
    try:
        with torch.no_grad(), inference_mode_of(model):
            answer = call(model, few)
    finally:
        for hook in hooks:
            hook.remove()
    if not are_scores(answer, has_logits(model)):
        return 0.0, 0.0
    positions = max(1, positions_in(few))
    return found / positions, OUTPUT_WEIGHT * answer.numel() / positions


def in_pieces(batches: Sequence[Inputs], per_position: float, limit: int) -> list[Inputs]:
    """Batches of fewer examples where whole ones would make the model write more than `limit` numbers; at least one
    example each."""
    found: list[Inputs] = []
    for batch in batches:
        examples = examples_in(batch)
        at_once = max(1, int(limit * examples / max(1.0, per_position * positions_in(batch))))
        parts = -(-examples // at_once)
        found += [batch] if parts == 1 else _split(batch, examples, -(-examples // parts))
    return found


def _split(batch: Inputs, examples: int, rows: int) -> list[Inputs]:
    """Pieces of so many examples; the batch whole, where nothing tells whose its patches of pictures are."""
    if isinstance(batch, Mapping) and GRID in batch and pictured_patches(batch) is None:
        return [batch]
    return [part_of(batch, first, rows) for first in range(0, examples, rows)]
