"""What inference on calibration inputs says about every unit: statistics of its activations and gradients.

A *consumer* is a matrix through which the rest of the network reads a space (a consumer slot). Signals are gathered at
the consumer's input, through the model's own modules under hooks: no second implementation of attention exists here.

Letters: U units, W values per unit at the consumer (head size, kernel positions), F = U·W features, D outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.core.progress import Progress, silent
from dnge_compress.graph.layer_types import CONVS, TRANSPOSED
from dnge_compress.graph.products import Watch, products_watched
from dnge_compress.graph.types import ModelGraph, Slot
from dnge_compress.signals.activations import rows_at, windows
from dnge_compress.signals.consumers import as_matrix, feature_axis, shares_of
from dnge_compress.signals.divergence import attended, attended_outputs, label_loss
from dnge_compress.signals.inference import Inputs, call, has_logits, inference_mode_of
from dnge_compress.signals.recurrence import recurrences_watched
from dnge_compress.signals.second_moments import MomentStore

CONV_ROWS_PER_FEATURE = 8


@dataclass(frozen=True, kw_only=True)
class Signal:
    """The weight `[D, F]` of one consumer of a space, and moments of its input, averaged over positions.

    mean `[F]` and covariance `[F, F]` of the activations read, over positions. Gradient moments are sums over the
    positions of an example, per label (a token of a language model, an image of a classifier), so that costs are
    nats per label in every layer: grad_square `[F]` = Σ g² at the activations, fisher `[U]` = (Σ a·g)², the squared
    gradient of a mask on the unit, taylor `[U]` = |Σ a·g|, out_fisher `[D]` = Σ g² at the consumer's outputs.
    Gradients are of the log-likelihood of labels sampled from the model itself (the true Fisher), or of random
    unit-variance output directions where there are no logits. Moments cover all F features of the consumer; `own` are
    the space's, which is all of them unless the consumer's input is a concatenation. Each group of a grouped conv is a
    consumer; `rows` are then those of the conv's outputs that are its own.
    """

    slot: Slot
    weight: Float[Tensor, "D F"]
    units: int
    own: slice
    rows: slice | None
    count: int
    mean: Float[Tensor, " F"]
    covariance: Float[Tensor, "F F"]
    grad_square: Float[Tensor, " F"]
    fisher: Float[Tensor, " U"]
    taylor: Float[Tensor, " U"]
    out_fisher: Float[Tensor, " D"]

    @property
    def own_weight(self) -> Tensor:
        """The part of the weight that reads the space `[D, U·W]`."""
        return self.weight[:, self.own]

    @property
    def variance(self) -> Tensor:
        """Var(a) per feature of the space's own `[U·W]`."""
        return self.covariance.diagonal().clamp_min(0)[self.own]

    @property
    def square(self) -> Tensor:
        """E[a²] per feature of the space's own `[U·W]`."""
        return self.variance + self.mean[self.own].square()

    def second_moments(self, is_centred: bool) -> Float[Tensor, "F F"]:
        """The covariance where something behind the consumer takes up the mean, else E[a aᵀ]."""
        return self.covariance if is_centred else self.covariance.addr(self.mean, self.mean)


Signals = Mapping[str, tuple[Signal, ...]]  # of every space, one per consumer


def gather_signals(
    model: nn.Module, graph: ModelGraph, batches: Sequence[Inputs], seed: int = 0, progress: Progress = silent
) -> Signals:
    """Space name → signals at each of its consumers, all gathered in one pass over the inputs."""
    spaces = graph.of_kind("neuron", "head", "channel")
    for copies in (False, True):  # of activations; needed, as the first batch tells, where the model overwrites them
        store = MomentStore()
        found = {
            s.name: [
                _Recorder(model, graph, slot, s.units, seed, store, copies, share)
                for slot in graph.consumers(s.name)
                for share in range(shares_of(model, slot))
            ]
            for s in spaces
        }
        if _run(model, graph, batches, [r for own in found.values() for r in own], seed, progress):
            break
    return {name: tuple(r.signal() for r in own) for name, own in found.items()}


def _run(
    model: nn.Module,
    graph: ModelGraph,
    batches: Sequence[Inputs],
    recorders: Sequence[_Recorder],
    seed: int,
    progress: Progress,
) -> bool:
    """Send all inputs through the model and back; False, after the first, if activations were overwritten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), inference_mode_of(model), gradients_started(model, graph), ExitStack() as hooks:
        hooks.enter_context(products_watched(model, _watchers(recorders)))
        hooks.enter_context(recurrences_watched(model, _recurrent_watchers(recorders)))
        for r in recorders:
            r.attach(hooks)
        for i, batch in enumerate(batches):
            mask, grid = attended(batch), _grid(batch)
            for r in recorders:
                r.mask, r.grid = mask, grid
            output = attended_outputs(call(model, batch), mask)
            label_loss(output, has_logits(model), generator).backward()
            if any(r.overwritten for r in recorders):
                return False
            for r in recorders:
                r.end_batch(labels=output.numel() // output.shape[-1])
            progress("calibrate", i + 1, len(batches))
    return True


def _grid(batch: Inputs) -> tuple[int, int] | None:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return None if ids is None or ids.dim() != 2 else (ids.shape[0], ids.shape[1])


def _positions(module: nn.Module, t: Tensor) -> tuple[int, ...]:
    """The axes of an activation that are not features."""
    return tuple(i for i in range(t.dim()) if i != feature_axis(module) % t.dim())


@contextmanager
def gradients_started(model: nn.Module, graph: ModelGraph) -> Iterator[None]:
    """Let gradients start behind the first module of every branch, so that no weight needs one."""

    def start(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if not isinstance(out, Tensor) or out.requires_grad:
            return None
        return out.detach().requires_grad_().clone()  # a leaf may not be changed in place by the activation behind it

    with ExitStack() as hooks:
        for module in {p.rpartition(".")[0] for s in graph.steps for p in s.params}:
            hooks.enter_context(model.get_submodule(module).register_forward_hook(start))
        yield


def _watchers(recorders: Sequence[_Recorder]) -> dict[tuple[str, int], list[Watch]]:
    """Recorders of experts whose matrices lie in one tensor, which hear of the products with it."""
    watchers: dict[tuple[str, int], list[Watch]] = {}
    for r in recorders:
        if r.slot.part is not None:
            watchers.setdefault((r.slot.param, r.slot.part), []).append(r.watch)
    return watchers


def _recurrent_watchers(recorders: Sequence[_Recorder]) -> dict[str, list[Watch]]:
    watchers: dict[str, list[Watch]] = {}
    for r in recorders:
        if isinstance(r.module, nn.RNNBase):
            watchers.setdefault(r.slot.param, []).append(r.watch)
    return watchers


class _Recorder:
    """Running sums at one consumer; lives for one pass.

    A model may overwrite what was read before the gradient comes (`x += f(x)`): then `overwritten` turns true, and
    recorders with `copies` keep activations of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ModelGraph,
        slot: Slot,
        units: int,
        seed: int,
        store: MomentStore,
        copies: bool,
        share: int,
    ) -> None:
        self.slot, self.units, self.copies, self.overwritten = slot, units, copies, False
        # Its own, so that the sample doesn't depend on who else records.
        self.generator = torch.Generator().manual_seed(seed)
        self.module = model.get_submodule(slot.param.rpartition(".")[0])
        weight = model.get_parameter(slot.param).detach()
        whole, shares = as_matrix(weight, graph, slot), shares_of(model, slot)
        self.rows = self.inputs = None
        if shares > 1:
            size, channels = len(whole) // shares, weight.shape[slot.axis]
            self.rows, self.inputs = (slice(share * n, (share + 1) * n) for n in (size, channels))
        self.weight = whole if self.rows is None else whole[self.rows]
        outputs, self.features = self.weight.shape
        per_row = self.features // weight.shape[slot.axis]  # kernel positions of a conv
        self.own = slice(slot.offset * per_row, (slot.offset + units * slot.width) * per_row)
        self.own_rows = slice(slot.offset, slot.offset + units * slot.width)
        device = self.weight.device
        self.labels = 0
        self.moments = store.moments(self.features, device)
        self.grad_square, self.out_fisher = (torch.zeros(n, device=device) for n in (self.features, outputs))
        self.fisher, self.taylor = (torch.zeros(units, device=device) for _ in range(2))
        self.mask: Tensor | None = None
        self.grid: tuple[int, int] | None = None  # examples and positions of a batch of texts
        self._batch_mask_gradient: Tensor | None = None

    def attach(self, hooks: ExitStack) -> None:
        if self.slot.part is not None or isinstance(self.module, nn.RNNBase):
            return  # no module reads or writes what the matrix does; it is told of the products
        hooks.enter_context(self.module.register_forward_pre_hook(lambda m, args: self._read(args[0])))
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
        self.moments.add(self._rows(self._own_inputs(x.detach())))
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
        """Activations of texts as `[N, T, F]`, where a model has flattened them."""
        if x.dim() == 2 and self.grid is not None and len(x) == self.grid[0] * self.grid[1]:
            return x.view(*self.grid, -1)
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
        x, g = self._own_inputs(x), self._own_inputs(g)
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
        """What was recorded, averaged."""
        mean, covariance = self.moments.finish()
        labels = max(1, self.labels)
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
