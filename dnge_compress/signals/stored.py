"""Calibration inputs and signals as named tensors, for files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from dnge_compress.core.parts import Parts
from dnge_compress.graph.types import ModelGraph
from dnge_compress.signals.consumers import Place, reading_at
from dnge_compress.signals.inference import Inputs
from dnge_compress.signals.signal import Signal

GATHERED = ("mean", "covariance", "grad_square", "fisher", "taylor", "out_fisher")  # a signal's own tensors


def gathered_in(signal: Signal) -> dict[str, Tensor]:
    """What was gathered at a place, by name."""
    return {name: getattr(signal, name) for name in GATHERED}


def signal_at(model: nn.Module, graph: ModelGraph, place: Place, count: int, tensor: Callable[[str], Tensor]) -> Signal:
    """The signal at a place of a model: `count` positions were gathered there, and `tensor(name)` is what they gave."""
    reading = reading_at(model, graph, place)
    return Signal(
        slot=place.slot,
        weight=reading.matrix,
        units=place.units,
        own=reading.own,
        rows=reading.rows,
        count=count,
        **{name: tensor(name) for name in GATHERED},
    )


def tensors_in_batch(batch: Inputs) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch, each with a name."""
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, tuple):
        yield from ((str(i), part) for i, part in enumerate(batch))
    else:
        yield "", batch


def arrangement(batch: Inputs) -> Sequence[str] | int | None:
    """How a batch is put together: names of a mapping, a number of tensors, or None for one tensor."""
    if isinstance(batch, Mapping):
        return list(batch)
    return len(batch) if isinstance(batch, tuple) else None


def arranged(how: Any, tensor: Callable[[str], Tensor]) -> Inputs:
    """A batch put together so, of the tensors that `tensor(name)` returns."""
    if isinstance(how, list):
        return {name: tensor(name) for name in how}
    return tuple(tensor(str(i)) for i in range(how)) if isinstance(how, int) else tensor("")


def kept_batches(parts: Parts, make: Callable[[], Sequence[Inputs]]) -> tuple[Inputs, ...]:
    """Calibration inputs that are a part of a work."""
    made = cache(lambda: tuple(make()))
    tensors = parts.tensors(
        "inputs", lambda: {f"{i}/{name}": t for i, batch in enumerate(made()) for name, t in tensors_in_batch(batch)}
    )
    hows = parts.facts("arrangement", lambda: [arrangement(batch) for batch in made()])
    return tuple(arranged(how, below(f"{i}/", tensors.__getitem__)) for i, how in enumerate(hows))


def below(prefix: str, tensor: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """What returns the tensors whose names begin with a prefix, by the rest of their names."""
    return lambda name: tensor(prefix + name)
