"""Fits of a consumer's weight to what it should write, judged on examples that they haven't seen.

Where several processes work on one model, each gives its own positions, and all get the fit of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dnge_compress.core.paging import Shelf
from dnge_compress.core.processes import summed, world
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.layer_types import TRANSPOSED
from dnge_compress.graph.types import ModelGraph, Slot
from dnge_compress.signals.consumers import as_matrix, from_matrix, shift_of
from dnge_compress.signals.obs import factor
from dnge_compress.signals.refit import kept_features
from dnge_compress.signals.signal import Signal, Signals

JUDGED = 4  # one example in so many judges the others' fit
RIDGES = (0.01, 0.1, 1.0)  # of the mean second moment, towards the one-shot solution


@dataclass
class Fit:
    """A consumer's weight `[D, K]` on the kept features, and what it adds to the output `[D]`."""

    weight: Tensor
    added: Tensor

    def outputs(self, x: Float[Tensor, "P K"]) -> Float[Tensor, "P D"]:
        """What it writes for some inputs."""
        return x @ self.weight.T + self.added


@dataclass
class SampledFit:
    """A fit whose weight is a sum of few inputs `[P, K]`, as its `shares` `[P, D]` tell; the weight itself is only made
    when somebody asks."""

    x: Tensor
    shares: Tensor
    added: Tensor

    @property
    def weight(self) -> Float[Tensor, "D K"]:
        """The weight itself."""
        return self.shares.T @ self.x

    def outputs(self, x: Float[Tensor, "P K"]) -> Float[Tensor, "P D"]:
        """What it writes for some inputs."""
        return (x @ self.x.T) @ self.shares + self.added


@dataclass
class Consumer:
    """One matrix that reads a pruned space, and what was found for it: its parameter's new value, in the parameter's
    layout and zero in the removed columns, and what that adds to the output `[D]`."""

    graph: ModelGraph
    slot: Slot
    original: Tensor
    weight: Tensor  # [D, F], in the model's precision
    keep: Tensor  # [K]
    importance: Float[Tensor, " D"]
    first: Tensor  # the parameter's value in the one-shot solution
    first_added: Float[Tensor, " D"]
    shift: tuple[str, int] | None
    shift_value: Tensor | None  # the model's own, whatever it holds while both halves run
    shift_at: int | None  # where that lies in memory
    value: Tensor | None = None
    added: Tensor | None = None

    def one_shot(self) -> Fit:
        """Where the fit begins: the one-shot solution, or the whole weight where that is no number."""
        weight = as_matrix(self.first, self.graph, self.slot)[:, self.keep].float()
        if bool(torch.isfinite(weight).all() and torch.isfinite(self.first_added).all()):
            return Fit(weight, self.first_added)
        return Fit(self.weight[:, self.keep].float(), torch.zeros_like(self.first_added))

    def settle(self, found: Fit, shelf: Shelf) -> None:
        """Take a fit for the consumer's."""
        weight = torch.zeros(self.weight.shape, device=found.weight.device)
        weight[:, self.keep] = found.weight
        whole = from_matrix(weight, self.original, self.graph, self.slot)
        self.value, self.added = shelf.keep(whole.to(self.original.dtype)), found.added

    def values(self) -> dict[str, Tensor]:
        """New values of the parameters, if the consumer was reached."""
        if self.value is None or self.added is None:
            return {}
        values = {self.slot.param: self.value}
        if self.shift is not None and self.shift_value is not None:
            name, sign = self.shift
            values[name] = (self.shift_value.float() + sign * self.added).to(self.shift_value.dtype)
        return values


def consumers_of(
    model: nn.Module, signals: Signals, applied: AppliedCuts, values: Mapping[str, Tensor]
) -> dict[nn.Module, Consumer]:
    """The consumers of all cuts that can be fitted, `values` their one-shot solution."""
    found: dict[nn.Module, Consumer] = {}
    weights = model.state_dict(keep_vars=True)
    for cut in applied.cuts:
        for signal in signals.get(cut.space, ()) if cut.space not in applied.dropped_spaces else ():
            param = signal.slot.param
            module = model.get_submodule(param.rpartition(".")[0])
            fits = (
                signal.slot.part is None and signal.rows is None and not isinstance(module, (nn.RNNBase, *TRANSPOSED))
            )
            if fits and module not in found and param in values:
                found[module] = _consumer_of(weights, applied, signal, values)
    return found


def _consumer_of(
    weights: Mapping[str, Tensor], applied: AppliedCuts, signal: Signal, values: Mapping[str, Tensor]
) -> Consumer:
    """The consumer of a signal under cuts, `values` its one-shot solution."""
    slot, original = signal.slot, weights[signal.slot.param].detach()
    shift = shift_of(applied.graph, slot)
    added = torch.zeros(len(signal.weight), device=original.device)
    if shift is not None and shift[0] in values:
        added = shift[1] * (values[shift[0]].float() - weights[shift[0]].detach().float())
    return Consumer(
        graph=applied.graph,
        slot=slot,
        original=original,
        weight=signal.weight,
        keep=kept_features(applied, signal, original),
        importance=signal.out_fisher,
        first=values[slot.param],
        first_added=added,
        shift=shift,
        shift_value=None if shift is None else weights[shift[0]].detach().clone(),
        shift_at=None if shift is None else weights[shift[0]].data_ptr(),
    )


def spread_examples_of(examples: Int[Tensor, " P"]) -> Bool[Tensor, " P"]:
    """Positions to judge by: those of every fourth example."""
    return examples % JUDGED == JUDGED - 1


def can_judge(seen: int, rows: int) -> bool:
    """Whether a fit on some of the rows of all processes leaves others to judge it by; `seen` and `rows` are this
    one's."""
    return 0 < count_of_all(seen) < count_of_all(rows)


def mean_of_all(sums: Tensor, count: int) -> Tensor:
    """The mean over all processes of what adds up to `sums` over `count` things in this one; in place."""
    return summed(sums) / count_of_all(count)


def count_of_all(count: int) -> int:
    """How many things all processes have together."""
    return int(summed(torch.tensor(count, dtype=torch.float64)))


def best_fit(
    x: Float[Tensor, "P K"],
    target: Float[Tensor, "P D"],
    judged: Bool[Tensor, " P"],
    consumer: Consumer,
    start: Fit | None = None,
) -> Fit:
    """The fit that errs least on the judged positions, made again on all of them; with too few examples to judge by,
    where it starts: the one-shot solution, if nothing else is given.

    All fits are changes of that weight, so that large activations cost no digits: `rest` is what it leaves.
    """
    first, can_shift = start or consumer.one_shot(), consumer.shift is not None
    order, seen = judged.byte().argsort(stable=True), int((~judged).sum())
    if not can_judge(seen, len(judged)):
        return first
    x, rest = x[order], (target - x @ first.weight.T)[order]
    x0 = mean_of_all(x.sum(0), len(x)) if can_shift else x.new_zeros(x.shape[1])
    rest0 = mean_of_all(rest.sum(0), len(x)) if can_shift else rest.new_zeros(rest.shape[1])
    if can_shift:
        x -= x0
        rest -= rest0
    of_seen, of_all = _evidence(x, rest, seen)
    nothing, undone = torch.zeros_like(first.weight), consumer.weight[:, consumer.keep].float() - first.weight
    makers: list[Callable[[_Evidence], Fit | SampledFit]] = [
        lambda known: Fit(undone, undone @ x0 - rest0),  # no repair at all
        lambda known: Fit(undone, known.mean_rest(undone, can_shift)),
        lambda known: Fit(nothing, first.added - rest0),
        lambda known: Fit(nothing, known.mean_rest(nothing, can_shift)),
        *(lambda known, ridge=ridge: known.ridge(ridge, can_shift) for ridge in RIDGES),
    ]

    def error(fit: Fit | SampledFit) -> float:
        miss = rest[seen:] - fit.outputs(x[seen:])
        found = float((mean_of_all(miss.square().sum(0), len(miss)) * consumer.importance).sum())
        return found if math.isfinite(found) else math.inf

    errors = [error(make(of_seen)) for make in makers]
    change = makers[min(range(len(makers)), key=errors.__getitem__)](of_all)
    weight = change.weight
    return Fit(first.weight + weight, change.added + rest0 - weight @ x0)


def _evidence(x: Float[Tensor, "P K"], rest: Float[Tensor, "P D"], seen: int) -> tuple[_Evidence, _Evidence]:
    """The first positions, and all of them; from the side on which there is less to solve, if one process has all."""
    if len(x) < x.shape[1] and world() == 1:
        samples = _Samples(x, rest, x @ x.T)
        return samples.first(seen), samples
    some, others = _Sums.of(x[:seen], rest[:seen]), _Sums.of(x[seen:], rest[seen:])
    return some, some + others


@dataclass(frozen=True)
class _Sums:
    """What inputs and the rests of their targets add up to, in all processes together."""

    count: int
    x: Float[Tensor, " K"]
    rest: Float[Tensor, " D"]
    xx: Float[Tensor, "K K"]
    x_rest: Float[Tensor, "K D"]

    @classmethod
    def of(cls, x: Float[Tensor, "P K"], rest: Float[Tensor, "P D"]) -> _Sums:
        """Sums over the positions."""
        sums = (x.sum(0), rest.sum(0), x.T @ x, x.T @ rest)
        return cls(count_of_all(len(x)), *map(summed, sums))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def mean_rest(self, weight: Float[Tensor, "D K"], can_shift: bool) -> Float[Tensor, " D"]:
        """What is left on average under a weight, where something takes it up."""
        return (self.rest - weight @ self.x) / self.count if can_shift else torch.zeros_like(self.rest)

    def ridge(self, ridge: float, can_shift: bool) -> Fit:
        """Least squares, with a ridge (in mean second moments of a feature) towards no change."""
        gram, cross = self.xx / self.count, self.x_rest / self.count
        if can_shift:
            mean = self.x / self.count
            gram, cross = gram.addr(mean, mean, alpha=-1), cross.addr(mean, self.rest / self.count, alpha=-1)
        gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
        weight = torch.cholesky_solve(cross, factor(gram)).T
        return Fit(weight, self.mean_rest(weight, can_shift))


@dataclass(frozen=True)
class _Samples:
    """The inputs and rests themselves, with the inputs' `products` `[P, P]`, where there are fewer positions than
    features: the same solution (Woodbury's identity), from matrices of positions in place of features."""

    x: Float[Tensor, "P K"]
    rest: Float[Tensor, "P D"]
    products: Float[Tensor, "P P"]

    def first(self, count: int) -> _Samples:
        """The first positions."""
        return _Samples(self.x[:count], self.rest[:count], self.products[:count, :count])

    def mean_rest(self, weight: Float[Tensor, "D K"], can_shift: bool) -> Float[Tensor, " D"]:
        """As of sums."""
        return self.rest.mean(0) - weight @ self.x.mean(0) if can_shift else torch.zeros_like(self.rest[0])

    def ridge(self, ridge: float, can_shift: bool) -> SampledFit:
        """As of sums."""
        rest, gram = self.rest, self.products.clone()
        if can_shift:  # distances from the mean, on both sides
            rows = gram.mean(0)
            gram += rows.mean() - rows - rows[:, None]
            rest = rest - rest.mean(0)
        count, features = self.x.shape
        damping = ridge * float(gram.diagonal().sum()) / count / features + 1e-12
        gram.diagonal().add_(damping * count)
        shares = torch.cholesky_solve(rest, factor(gram))
        if not can_shift:
            return SampledFit(self.x, shares, torch.zeros_like(rest[0]))
        shares = shares - shares.mean(0)  # the same as of inputs without their mean
        return SampledFit(self.x, shares, self.rest.mean(0) - shares.T @ (self.x @ self.x.mean(0)))


_Evidence: TypeAlias = _Sums | _Samples
