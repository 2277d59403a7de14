"""A cut layer that is refitted on both sides, the matrices that compute its units and the one that reads them, while
the whole and the pruned network run side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dnge_compress.core.processes import agreed
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut, Slot
from dnge_compress.signals.fits import Consumer, Fit, best_fit, can_judge, count_of_all, spread_examples_of
from dnge_compress.signals.joint_fit import Formula, Layer, joint_fit
from dnge_compress.signals.producers import Producer, formula_of, formulas, producers_of

MOST_NUMBERS = 1 << 25  # activations of a layer that one fit is made on; some copies of them are held


@dataclass(frozen=True)
class Positions:
    """Where a layer is fitted `[P]`, of the rows of the second half, and of which numbered example each is; those that
    no fit of its producers may see come behind the first `seen`."""

    rows: Int[Tensor, " P"]
    examples: Int[Tensor, " P"]
    seen: int


class LayerRefit:
    """One such layer: what its producers have read and written last, and how their rows move."""

    def __init__(self, producers: tuple[Producer, ...], keep: Int[Tensor, " K"]) -> None:
        self.producers, self.keep = producers, keep
        self.has_bias = any(p.bias for p in producers)
        self.inputs: dict[nn.Module, Tensor] = {}  # of both halves
        self.written: dict[Producer, Tensor] = {}  # in the pruned network, for the units that stay
        self.formula: Formula | None = None
        self.changes: tuple[Tensor, ...] = ()

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that compute the units."""
        return list(dict.fromkeys(p.module for p in self.producers))

    @property
    def largest(self) -> int:
        """The numbers that stay of the largest matrix that computes the units."""
        wholes = [(producer.module.get_parameter("weight"), producer.slot.axis) for producer in self.producers]
        return max((len(self.keep) * w.numel() // w.shape[axis] for w, axis in wholes), default=0)

    @property
    def _is_usable(self) -> bool:
        """Whether all of them were heard, and have read the same."""
        return len(self.written) == len(self.producers) and len({id(read) for read in self.inputs.values()}) == 1

    def hear(self, module: nn.Module, read: Tensor, written: Tensor) -> None:
        """What one of them has read and written, both halves."""
        self.inputs[module] = read
        half = written[len(written) // 2 :]
        # An index copies: some activations write over what was written.
        self.written |= {p: half[..., self._rows(p.slot)] for p in self.producers if p.module is module}

    def fit(
        self,
        consumer: Consumer,
        read: Float[Tensor, "P K"],
        target: Float[Tensor, "P D"],
        positions: Positions,
        rows: int,
    ) -> Fit | None:
        """The fit of the consumer that belongs to new rows of the producers; None where nothing better is found.

        `read` and `target` are what the consumer reads in the pruned network, and should write, at these positions of
        its second half, which has so many `rows`. The consumer is fitted at the end on all of them.
        """
        seen, examples = positions.seen, positions.examples
        if not self._is_usable or not can_judge(seen, len(read)):
            return None
        few = slice(None, None, -(-count_of_all(read.numel()) // MOST_NUMBERS))
        inputs, written = self._second_half()
        if inputs.shape[:-1].numel() != rows:  # what was written is spread or gathered before it is read
            return None
        x = self._with_ones(inputs.flatten(0, -2)[positions.rows])
        zs = tuple(z.flatten(0, -2)[positions.rows] for z in written)
        formula = formula_of([z[few] for z in zs], read[few], torch.finfo(inputs.dtype).eps)
        known = formulas(len(zs))
        number = agreed(-1 if formula is None else known.index(formula))
        if number is None or number < 0:
            return None
        self.formula = known[number]
        found = joint_fit(
            Layer(x[few], tuple(z[few] for z in zs), self.formula),
            target[few],
            first=best_fit(read[:seen], target[:seen], spread_examples_of(examples[:seen]), consumer),
            importance=consumer.importance,
            seen=len(range(seen)[few]),
            can_shift=consumer.shift is not None,
        )
        if found is None:
            return None
        self.changes = found.changes
        moved = Layer(x, zs, self.formula).activations(self.changes)
        return best_fit(moved, target, spread_examples_of(examples), consumer, found.fit)

    def found(self) -> dict[str, Tensor]:
        """What the fit has found, in named tensors; none where that is nothing."""
        if not self.changes or self.formula is None:
            return {}
        number = torch.tensor(formulas(len(self.producers)).index(self.formula))
        return {"formula": number, **{f"change/{i}": change for i, change in enumerate(self.changes)}}

    def take(self, found: Mapping[str, Tensor]) -> None:
        """Go on from what a fit has found, maybe before the work was stopped; `found` may hold more."""
        if "formula" in found:
            self.formula = formulas(len(self.producers))[int(found["formula"])]
            self.changes = tuple(found[f"change/{i}"] for i in range(len(self.producers)))

    def read(self, before: Float[Tensor, "*rows F"]) -> Float[Tensor, "*rows F"]:
        """What the consumer reads in the pruned network under the new rows, `before` under the old ones."""
        if not self.changes:
            return before
        inputs, written = self._second_half()
        assert self.formula is not None
        x, zs = self._with_ones(inputs).flatten(0, -2), tuple(z.flatten(0, -2) for z in written)
        after = Layer(x, zs, self.formula).activations(self.changes)
        after = after.to(before.dtype).reshape(*before.shape[:-1], len(self.keep))
        return before.index_copy(-1, self.keep, after)

    def forget(self) -> None:
        """Let go of what was heard: all of it together is many times as large as the weights."""
        self.inputs.clear()
        self.written.clear()

    def values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New values of the producers' parameters; rows that go are as they were."""
        found: dict[str, Tensor] = {}
        for producer, change in zip(self.producers, self.changes, strict=False):
            param, rows = producer.slot.param, self._rows(producer.slot)
            width = change.shape[1] - self.has_bias
            moved = change[:, :width].T if producer.is_transposed else change[:, :width]
            found[param] = _added(found.get(param, weights[param]), 1 if producer.is_transposed else 0, rows, moved)
            if producer.bias is not None:
                found[producer.bias] = _added(found.get(producer.bias, weights[producer.bias]), 0, rows, change[:, -1])
        return found

    def _second_half(self) -> tuple[Tensor, list[Tensor]]:
        inputs, written = next(iter(self.inputs.values())), [self.written[p] for p in self.producers]
        return inputs[len(inputs) // 2 :].to(written[0].device), written

    def _rows(self, slot: Slot) -> Tensor:
        return slot.rows(self.keep.cpu()).to(self.keep.device)

    def _with_ones(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], -1) if self.has_bias else x


def layer_refits(
    model: nn.Module, applied: AppliedCuts, consumers: Mapping[nn.Module, Consumer], most: float
) -> dict[nn.Module, LayerRefit]:
    """Those of the cut layers that can be refitted on both sides, by the module that reads them; `most` is how many
    numbers may stay of a matrix that computes their units. One that reads another cut space itself is refitted for that
    alone."""
    if not most:
        return {}
    cuts = {slot.param: cut for cut in applied.cuts for slot in applied.graph.consumers(cut.space)}
    found = {m: _layer_refit(model, applied, cuts[c.slot.param], c) for m, c in consumers.items()}
    return {
        module: layer
        for module, layer in found.items()
        if layer is not None and layer.largest <= most and not cuts.keys() & {p.slot.param for p in layer.producers}
    }


def _layer_refit(model: nn.Module, applied: AppliedCuts, cut: Cut, consumer: Consumer) -> LayerRefit | None:
    """The refit of a cut layer that is read by one matrix, in which a unit is a column; None where it isn't one,
    or lies on several devices."""
    slots = applied.graph.consumers(cut.space)
    is_plain = len(slots) == 1 and slots[0].width == 1 and not slots[0].offset
    units = applied.graph.space(cut.space).units
    if not is_plain or consumer.weight.shape[1] != units:
        return None
    producers = producers_of(model, applied, cut.space)
    has = {p.bias is not None for p in producers}
    devices = {p.module.get_parameter("weight").device for p in producers} | {consumer.original.device}
    return LayerRefit(producers, consumer.keep) if len(has) == len(devices) == 1 else None


def _added(weight: Tensor, axis: int, rows: Tensor, change: Tensor) -> Tensor:
    whole = weight.detach().float()
    return whole.index_add(axis, rows, change.to(whole.device)).to(weight.dtype)
