"""Some of the user's examples are kept from every fit, so that damage is measured on what no fit has seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Bool
from torch import Tensor

from dnge_compress.signals.inference import Inputs, examples_in, has_parts
from dnge_compress.signals.joined import joined, shapes_of
from dnge_compress.signals.stored import arranged, arrangement, tensors_in_batch

HELD_EVERY = 8  # examples of which one is held out
LEAST_HELD = 16  # fewer say too little, and the fits need them more
AT_ONCE = 32  # held-out examples in a batch


def fitted_and_held_out(batches: Sequence[Inputs]) -> tuple[tuple[Inputs, ...], tuple[Inputs, ...]]:
    """The examples to fit on, and every eighth of all to judge by; none where those would be too few. A batch whose
    examples can't be told apart is fitted on as a whole."""
    fitted, held = list[Inputs](), list[Inputs]()
    seen = 0
    for batch in batches:
        rows = examples_in(batch)
        numbers = torch.arange(seen + 1, seen + rows + 1)
        seen += rows
        is_held = (numbers % HELD_EVERY == 0) & _is_divisible(batch)
        parts = ((fitted, ~is_held), (held, is_held))
        for part, own in parts:
            if own.any():
                part.append(batch if own.all() else _rows_of(batch, own))
    if sum(map(examples_in, held)) < LEAST_HELD:
        return tuple(batches), ()
    return tuple(fitted), tuple(_together(held))


def said(batches: Sequence[Inputs], held_out: Sequence[Inputs]) -> tuple[str, ...]:
    """What a plan says of the examples that were held out, if any were."""
    held, examples = (sum(map(examples_in, part)) for part in (held_out, batches))
    return (f"{held} of {examples} examples are held out from every fit, to measure damage on",) if held else ()


def _is_divisible(batch: Inputs) -> bool:
    """Whether each tensor of a batch has a row for every example, or one for all of them."""
    rows = examples_in(batch)
    return has_parts(batch) and all(t.dim() == 0 or len(t) in (1, rows) for _, t in tensors_in_batch(batch))


def _rows_of(batch: Inputs, own: Bool[Tensor, " N"]) -> Inputs:
    """Some examples of a divisible batch."""
    named = dict(tensors_in_batch(batch))

    def part(name: str) -> Tensor:
        t = named[name]
        return t[own.to(t.device)] if t.dim() and len(t) == len(own) else t

    return arranged(arrangement(batch), part)


def _together(parts: Sequence[Inputs]) -> Iterator[Inputs]:
    """Neighbours of equal shapes as batches of AT_ONCE examples or a few more, so that a model runs less often."""
    for _, group in groupby(parts, shapes_of):
        waiting = list[Inputs]()
        for part in group:
            waiting.append(part)
            if sum(map(examples_in, waiting)) >= AT_ONCE:
                yield joined(waiting)
                waiting = []
        if waiting:
            yield joined(waiting)
