"""How much of the inputs a model takes at a time, so that what it writes for them stays within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from dnge_compress.graph.layer_types import CONVS
from dnge_compress.signals.divergence import are_scores
from dnge_compress.signals.inference import (
    Inputs,
    call,
    examples_in,
    first_examples,
    has_logits,
    has_parts,
    inference_mode_of,
    part_of,
)
from dnge_compress.signals.joined import positions_in

MOST_ROWS = 16384  # of inputs, that a matrix is fitted on
MOST_WRITTEN = 1 << 27  # numbers, by one module
ANSWER_NUMBERS = 1 << 25  # in the answers to one piece of a batch, copies included
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


def answered_in_pieces(model: nn.Module, batches: Sequence[Inputs]) -> list[Inputs]:
    """The batches in pieces whose answers don't fill the memory, as those over a large vocabulary would."""
    _, answered = numbers_per_position(model, batches[0])
    return in_pieces(batches, answered, ANSWER_NUMBERS)


def positions_at_once(model: nn.Module, readers: Sequence[nn.Module], batches: Sequence[Inputs], halves: int) -> int:
    """How many positions (joined.positions_in) of such inputs a model takes at once, in so many `halves`, when all that
    its `readers` read is kept until they are fitted; measured on one example.

    No linear reader gets more than MOST_ROWS rows of a half; of a convolution's patches a sample is taken, so that only
    what is written counts: MOST_WRITTEN numbers by any module up to the last reader.
    """
    few = first_examples(batches, 1)[0]
    rows = written = largest = 0

    def count(module: nn.Module, args: tuple[object, ...], out: object) -> None:
        nonlocal rows, written, largest
        tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
        largest = max([largest, *(t.numel() for t in tensors)])
        if module in readers:
            written = largest
            if not isinstance(module, CONVS) and tensors:
                rows = max(rows, tensors[0].numel() // max(1, tensors[0].shape[-1]))

    innermost = [m for m in model.modules() if m in readers or not any(m.children())]
    with torch.no_grad(), inference_mode_of(model), ExitStack() as hooks:
        for module in innermost:
            hooks.enter_context(module.register_forward_hook(count))
        call(model, few)
    examples = min(MOST_ROWS / max(1, rows), MOST_WRITTEN / max(1, halves * written))
    each = sum(map(positions_in, batches)) / sum(map(examples_in, batches))
    return max(1, int(examples * each))


def _split(batch: Inputs, examples: int, rows: int) -> list[Inputs]:
    """Pieces of so many examples; the batch whole, where nothing tells whose its patches of pictures are."""
    return [part_of(batch, first, rows) for first in range(0, examples, rows)] if has_parts(batch) else [batch]
