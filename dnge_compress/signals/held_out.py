"""Some of the user's examples are kept from every fit, so that damage is measured on what no fit has seen."""

from __future__ import annotations

from collections.abc import Sequence

from dnge_compress.signals.inference import Inputs, examples_in, has_parts, part_of

HELD_EVERY = 8  # examples of which one is held out
LEAST_HELD = 16  # fewer say too little, and the fits need them more


def fitted_and_held_out(batches: Sequence[Inputs]) -> tuple[tuple[Inputs, ...], tuple[Inputs, ...]]:
    """The examples to fit on, and an eighth of all to judge by, the last ones of every batch; none where those would be
    too few. A batch whose examples can't be told apart is fitted on as a whole."""
    fitted, held = list[Inputs](), list[Inputs]()
    seen = 0
    for batch in batches:
        rows, before = examples_in(batch), seen // HELD_EVERY
        seen += rows
        away = seen // HELD_EVERY - before
        if away and (away == rows or has_parts(batch)):
            held.append(part_of(batch, rows - away, away) if away < rows else batch)
            if away < rows:
                fitted.append(part_of(batch, 0, rows - away))
        else:
            fitted.append(batch)
    if sum(map(examples_in, held)) < LEAST_HELD:
        return tuple(batches), ()
    return tuple(fitted), tuple(held)


def said(batches: Sequence[Inputs], held_out: Sequence[Inputs]) -> tuple[str, ...]:
    """What a plan says of the examples that were held out, if any were."""
    held, examples = (sum(map(examples_in, part)) for part in (held_out, batches))
    return (f"{held} of {examples} examples are held out from every fit, to measure damage on",) if held else ()
