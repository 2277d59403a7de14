"""Least squares of the units that stay and of what reads them, together.

A refit of the reading matrix alone mixes kept units as they are. Here the rows that compute them move as well:

    y = W · a(z₁, z₂) + b,    zⱼ = Vⱼ x

is fitted to what the layer should write, over V, W and b at once. It starts from the refit of W, where the layer is
linear in every part, and takes quasi-Newton steps (L-BFGS) in coordinates in which inputs and features are white. No
gradient passes through the rest of the network, and examples that the fit doesn't see say when to stop. Where several
processes work on one model, each has positions of its own, and all find the fit of all.

Letters: P positions, H inputs of the layer, K kept units, D outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from dnge_compress.core.precision import fast_float32_products
from dnge_compress.core.processes import summed
from dnge_compress.signals.fits import Fit, count_of_all, mean_of_all
from dnge_compress.signals.obs import factor

ROUNDS = 3  # at most; after each, the judged examples decide whether to go on (three more: 2 % less damage, dev/LOG.md)
STEPS = 5  # of a round
SHARES = (1.0, 0.5, 0.25, 0.125)  # of a round's way that are tried in turn, until one errs less on the judged examples
RIDGE = 0.1  # of the mean second moment, in the coordinates of inputs and features
AT_ONCE = 2048  # rows; what is written for them stays near the processor
NOISE = 1e-5  # of what is wanted: what fast products may miss of it
LEAST_WEIGHT = 1e-3  # of an output, of their mean

# The units' activations from what the layers before them write.
Formula: TypeAlias = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Layer:
    """What is known of a layer on some positions, in the model's precision: its inputs `[P, H]`, with a column of ones
    if there are biases, what each matrix writes for the kept units `[P, K]`, and how activations come from that."""

    x: Float[Tensor, "P H"]
    written: tuple[Float[Tensor, "P K"], ...]
    formula: Formula

    def activations(self, changes: Sequence[Float[Tensor, "K H"]] = ()) -> Float[Tensor, "P K"]:
        """The units' activations, with `changes` added to the rows of the matrices."""
        found = torch.empty(self.written[0].shape, device=self.x.device)
        pieces = zip(*(values.split(AT_ONCE) for values in (found, self.x, *self.written)), strict=True)
        for piece, x, *written in pieces:
            zs = [z.float() for z in written]
            moved = [z.addmm(x.float(), v.T) for z, v in zip(zs, changes, strict=True)] if changes else zs
            piece.copy_(self.formula(moved))
        return found


@dataclass(frozen=True)
class JointFit:
    """Changes of the rows of each matrix that computes the units `[K, H]`, and the fit of the matrix that reads
    them."""

    changes: tuple[Float[Tensor, "K H"], ...]
    fit: Fit


def joint_fit(
    layer: Layer,
    target: Float[Tensor, "P D"],
    *,
    first: Fit,
    importance: Float[Tensor, " D"],
    seen: int,
    can_shift: bool,
) -> JointFit | None:
    """A fit made on the first `seen` positions that errs less than `first`, where it starts, on the others; None where
    none is found."""
    run = _Run(layer, target, first, importance, can_shift)
    seen_rows, unseen = _Part.of(range(seen)), _Part.of(range(seen, len(target)))
    scale = float(run.error(run.parts(), seen_rows))
    if not scale > NOISE * float(summed(run.target[:seen].square().sum()) / seen_rows.count):
        return None
    with fast_float32_products():
        best = _descended(run, seen_rows, unseen, scale)
    return None if best is None else run.found(best)


def _descended(run: _Run, seen: _Part, unseen: _Part, scale: float) -> list[Tensor] | None:
    """The parts with the least error on unseen rows, on the way down from no change on the seen ones, where the error
    is `scale`; None where none has less than no change."""
    parts = run.parts()
    least = float(run.error(parts, unseen))
    if not least > 0:
        return None
    optimiser = torch.optim.LBFGS(parts, max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        return run.error_with_gradient(parts, seen, scale)

    best, has_gained = [part.detach().clone() for part in parts], False
    for _ in range(ROUNDS):
        optimiser.step(closure)
        with torch.no_grad():
            ways = [[b + share * (part - b) for b, part in zip(best, parts, strict=True)] for share in SHARES]
        errors = (float(run.error(way, unseen)) for way in ways)
        error, way = next(((e, way) for e, way in zip(errors, ways, strict=True) if e < least), (least, None))
        if way is None:
            break
        least, best, has_gained = error, way, True
        if way is not ways[0]:  # the whole round went too far, and so would the next
            break
    return best if has_gained else None


@dataclass(frozen=True)
class _Part:
    """Some of the rows, and how many all processes have of the kind."""

    rows: range
    count: int

    @classmethod
    def of(cls, rows: range) -> _Part:
        """Those of this process's rows."""
        return cls(rows, count_of_all(len(rows)))

    def pieces(self) -> Iterator[slice]:
        """A few rows at a time."""
        return (slice(first, min(first + AT_ONCE, self.rows.stop)) for first in self.rows[::AT_ONCE])


class _Run:
    """The layer's error on a part of its rows, as a function of changes in white coordinates: one
    `[K, H]` for each matrix that computes the units, and `[D, K (+ 1)]` for the one that reads them."""

    def __init__(self, layer: Layer, target: Tensor, first: Fit, importance: Tensor, can_shift: bool) -> None:
        self.layer, self.first, self.can_shift = layer, first, can_shift
        weights = importance.float().clamp_min(0).sqrt()
        self.weights = (weights / weights.mean().clamp_min(1e-30)).clamp_min(LEAST_WEIGHT)
        self.inputs = _root(layer.x)
        self.white = _whitened(layer.x, self.inputs)
        self.features = _root(self._read(layer.activations()))
        self.target = (target - first.added) * self.weights
        reading = first.weight * self.weights[:, None]
        self.reading = torch.cat([reading, reading.new_zeros(len(reading), can_shift)], 1)  # [D, K (+ 1)]
        self.sizes = [_spread(z).clamp_min(1e-12) for z in layer.written]
        self.size = _spread(self.target).clamp_min(1e-12)
        self.nothing = self.size.new_zeros((), dtype=torch.float64)

    def parts(self) -> list[Tensor]:
        """No change."""
        outputs, units = self.first.weight.shape
        shapes = [(units, self.white.shape[1])] * len(self.sizes) + [(outputs, units + self.can_shift)]
        return [self.white.new_zeros(shape).requires_grad_() for shape in shapes]

    @torch.no_grad()
    def error(self, parts: Sequence[Tensor], rows: _Part) -> Tensor:
        """Mean square of what is missing, outputs weighed by their importance."""
        weights = self._weights(parts)
        return summed(sum((self._lost(weights, piece) for piece in rows.pieces()), self.nothing.clone())) / rows.count

    @torch.enable_grad()
    def error_with_gradient(self, parts: Sequence[Tensor], rows: _Part, scale: float) -> Tensor:
        """The error over `scale`, whose gradient is added to that of the parts, a piece of the rows at a time: what is
        written between the matrices is several times as large as what is held of it."""
        weights = self._weights(parts)
        leaves = [w.detach().requires_grad_() for w in weights]
        lost = self.nothing.clone()
        for piece in rows.pieces():
            part = self._lost(leaves, piece) / (rows.count * scale)
            part.backward()
            lost += part.detach()
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        torch.autograd.backward(weights, [summed(gradient) for gradient in gradients])
        return summed(lost)

    def found(self, parts: Sequence[Tensor]) -> JointFit:
        """The changes in the layer's own coordinates."""
        changes = [size * _back(part, self.inputs) for size, part in zip(self.sizes, parts[:-1], strict=True)]
        read = self.size * _back(parts[-1], self.features) / self.weights[:, None]
        units = self.first.weight.shape[1]
        added = self.first.added + read[:, units] if self.can_shift else self.first.added
        return JointFit(tuple(changes), Fit(self.first.weight + read[:, :units], added))

    def _weights(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The changes of the matrices that compute the units, for white inputs, and the matrix that reads these."""
        changes = [size * part for size, part in zip(self.sizes, parts[:-1], strict=True)]
        return [*changes, self.reading + self.size * _back(parts[-1], self.features)]

    def _lost(self, weights: Sequence[Tensor], rows: slice) -> Tensor:
        """Summed in double precision: a line search asks for small differences of it."""
        white = self.white[rows]
        written = (z[rows].float() for z in self.layer.written)
        read = self.layer.formula([torch.addmm(z, white, v.T) for z, v in zip(written, weights[:-1], strict=True)])
        return (self.target[rows] - self._read(read) @ weights[-1].T).square().sum(dtype=torch.float64)

    def _read(self, activations: Tensor) -> Tensor:
        """With a column of ones where something takes up a mean."""
        return torch.cat([activations, torch.ones_like(activations[:, :1])], 1) if self.can_shift else activations


def _spread(values: Float[Tensor, "P K"]) -> Tensor:
    """The standard deviation of all numbers, in all processes."""
    numbers, nothing = values.numel(), torch.zeros((), device=values.device)
    mean = mean_of_all(sum((piece.float().sum() for piece in values.split(AT_ONCE)), nothing), numbers)
    squares = sum(((piece.float() - mean).square().sum() for piece in values.split(AT_ONCE)), nothing)
    return mean_of_all(squares, numbers).sqrt()


def _root(rows: Float[Tensor, "P H"]) -> Float[Tensor, "H H"]:
    """The root of the second moments of the rows in all processes, lower triangular: rows divided by it are nearly
    white."""
    products = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for piece in rows.split(AT_ONCE):
        x = piece.float()
        products.addmm_(x.T, x)
    gram = mean_of_all(products, len(rows))
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    return factor(gram)


def _whitened(rows: Float[Tensor, "P H"], root: Float[Tensor, "H H"]) -> Float[Tensor, "P H"]:
    """The rows divided by their root."""
    found = torch.empty(rows.shape, device=rows.device)
    for white, piece in zip(found.split(AT_ONCE), rows.split(AT_ONCE), strict=True):
        white.copy_(torch.linalg.solve_triangular(root, piece.float().T, upper=False).T)
    return found


def _back(matrix: Float[Tensor, "K H"], root: Float[Tensor, "H H"]) -> Float[Tensor, "K H"]:
    """What a matrix on white coordinates is on the rows themselves."""
    return torch.linalg.solve_triangular(root, matrix, upper=False, left=False)
