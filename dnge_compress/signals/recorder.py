"""What is recorded at one consumer while a model runs there and back: running sums of activations and gradients.

Letters: U units, W values per unit at the consumer (head size, kernel positions), F = U·W features, D outputs.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from dnge_compress.core.processes import summed
from dnge_compress.graph.layer_types import CONVS, TRANSPOSED
from dnge_compress.graph.types import ModelGraph
from dnge_compress.signals.activations import read_by, rows_at, windows
from dnge_compress.signals.consumers import Place, feature_axis, reading_at
from dnge_compress.signals.divergence import attended_outputs
from dnge_compress.signals.second_moments import MomentStore
from dnge_compress.signals.signal import Signal

CONV_ROWS_PER_FEATURE = 8


class Recorder:
    """Running sums at one consumer; lives for one pass.

    A model may overwrite what was read before the gradient comes (`x += f(x)`): then `overwritten` turns true, and
    recorders with `copies` keep activations of their own.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, place: Place, store: MomentStore, copies: bool) -> None:
        slot, units = place.slot, place.units
        self.slot, self.units, self.copies, self.overwritten = slot, units, copies, False
        self.generator = torch.Generator()  # its own, so that the sample doesn't depend on who else records
        self.module = model.get_submodule(slot.param.rpartition(".")[0])
        reading = reading_at(model, graph, place)
        self.weight, self.own, self.rows, self.inputs = reading.matrix, reading.own, reading.rows, reading.inputs
        outputs, self.features = self.weight.shape
        self.own_rows = slice(slot.offset, slot.offset + units * slot.width)
        self.device = self.weight.device  # what is read may come from another one
        self.labels = 0
        self.moments = store.moments(self.features, self.device)
        self.grad_square, self.out_fisher = (torch.zeros(n, device=self.device) for n in (self.features, outputs))
        self.fisher, self.taylor = (torch.zeros(units, device=self.device) for _ in range(2))
        self.mask: Tensor | None = None
        self.grid: tuple[int, int] | None = None  # examples and positions of a batch of texts
        self.pictures: int | None = None  # whose patches the model reads as one list
        self._batch_mask_gradient: Tensor | None = None

    def attach(self, hooks: ExitStack) -> None:
        """Listen to the module until the hooks are closed."""
        if self.slot.part is not None or isinstance(self.module, nn.RNNBase):
            return  # no module reads or writes what the matrix does; it is told of the products
        read = partial(self.module.register_forward_pre_hook, with_kwargs=True)
        hooks.enter_context(read(lambda m, args, kwargs: self._read(read_by(args, kwargs))))
        hooks.enter_context(self.module.register_forward_hook(lambda m, args, out: self._watch_output(out)))

    def watch(self, x: Tensor, out: Tensor) -> None:
        """One product of an expert's matrix, whose tokens count as examples of their own, or of a recurrent module's.
        Padding is what no gradient comes back to."""
        if self.mask is None:
            self.moments.add(x.detach().flatten(0, -2))
        elif x.requires_grad:
            held = x.detach()
            x.register_hook(lambda g: self.moments.add(held[g.abs().amax(-1) > 0]))
        self._watch_input(x)
        self._watch_output(out)

    def _read(self, x: Tensor) -> None:
        self.moments.add(self._rows(self._own_inputs(x.detach().to(self.device))))
        self._watch_input(x)

    def _own_inputs(self, x: Tensor) -> Tensor:
        """The channels that one group of a conv reads."""
        return x if self.inputs is None else x[:, self.inputs]

    def _watch_input(self, x: Tensor) -> None:
        if x.requires_grad:
            held, version = x.detach().clone() if self.copies else x.detach(), x._version
            x.register_hook(lambda g: self._input_gradient(held, g, self.copies or held._version == version))

    def _rows(self, x: Tensor) -> Tensor:
        """Activations as `[positions, F]`; conv inputs become kernel patches, a seeded sample of them."""
        conv = self.module
        if isinstance(conv, TRANSPOSED):
            rows = x.movedim(1, -1).flatten(0, -2)
            return rows[self._sample(len(rows), rows.device)]
        if not isinstance(conv, CONVS):
            return attended_outputs(self._by_example(x), self.mask).flatten(0, -2)
        seen, axes = windows(conv, x), len(conv.kernel_size)
        return rows_at(seen, axes, self._sample(math.prod(seen.shape[: 1 + axes]), x.device))

    def _sample(self, count: int, device: torch.device) -> Tensor:
        """Seeded numbers of so many rows as the moments need; all, if there aren't more."""
        limit = max(CONV_ROWS_PER_FEATURE * self.features // 4, 512)
        if count <= limit:
            return torch.arange(count, device=device)
        return torch.randint(count, (limit,), generator=self.generator).to(device)

    def _by_example(self, x: Tensor) -> Tensor:
        """Activations of texts or pictures as `[N, T, F]`, where a model has flattened them."""
        if x.dim() == 2 and self.grid is not None and len(x) == self.grid[0] * self.grid[1]:
            return x.view(*self.grid, -1)
        if x.dim() == 2 and self.pictures is not None and len(x) % self.pictures == 0:
            return x.view(self.pictures, -1, x.shape[-1])
        return x

    def _watch_output(self, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(self._output_gradient)

    def _output_gradient(self, g: Tensor) -> None:
        square = g.detach().float().square().sum(_positions(self.module, g))
        if isinstance(self.module, TRANSPOSED):  # of each product: an output is the sum of kernel / stride of them
            square = square.repeat_interleave(len(self.out_fisher) // len(square)) / math.prod(self.module.stride)
        self.out_fisher += square if self.rows is None else square[self.rows]

    def _input_gradient(self, x: Tensor, g: Tensor, is_intact: bool) -> None:
        self.overwritten |= not is_intact
        x, g = self._own_inputs(x.to(self.device)), self._own_inputs(g.to(self.device))
        square = g.float().square().sum(_positions(self.module, g))
        self.grad_square += square.repeat_interleave(self.features // len(square))
        product = self._by_example((x * g).float()) if self.slot.part is None else (x * g).float()
        per_example = product.sum(_positions(self.module, product)[1:]) if product.dim() > 2 else product
        mask_gradient = per_example[:, self.own_rows].reshape(len(per_example), self.units, -1).sum(-1)
        held = self._batch_mask_gradient
        if held is not None and len(held) != len(mask_gradient):
            self._settle()  # used again, on other positions
            held = None
        self._batch_mask_gradient = mask_gradient if held is None else held + mask_gradient

    def end_batch(self, labels: int) -> None:
        """Count what one batch has added."""
        self.labels += labels
        self._settle()

    def _settle(self) -> None:
        if self._batch_mask_gradient is not None:
            self.fisher += self._batch_mask_gradient.square().sum(0)
            self.taylor += self._batch_mask_gradient.abs().sum(0)
            self._batch_mask_gradient = None

    def signal(self) -> Signal:
        """What was recorded by all processes, averaged."""
        mean, covariance = self.moments.finish()
        labels = max(1, int(summed(torch.tensor(self.labels))))
        for sums in (self.grad_square, self.fisher, self.taylor, self.out_fisher):
            summed(sums)
        return Signal(
            slot=self.slot,
            weight=self.weight,
            units=self.units,
            own=self.own,
            rows=self.rows,
            count=self.moments.count,
            mean=mean,
            covariance=covariance,
            grad_square=self.grad_square / labels,
            fisher=self.fisher / labels,
            taylor=self.taylor / labels,
            out_fisher=self.out_fisher / labels,
        )


def _positions(module: nn.Module, t: Tensor) -> tuple[int, ...]:
    """The axes of an activation that are not features."""
    return tuple(i for i in range(t.dim()) if i != feature_axis(module) % t.dim())
