"""Second moments of activations, in memory as long as they fit and in files behind that.

A matrix of moments has F² numbers: some hundred megabytes at a layer of 11,000 neurons, tens of gigabytes over a model
of billions of parameters. What doesn't fit into MEMORY_BYTES lies in files that the system pages in as they are read.
Where blocks pass one at a time, a matrix is summed up in memory and written down with its block; where the whole model
runs at once, what is read is written down as it comes, in its own precision, and summed up when all inputs have passed.
So the inputs pass once, however large the model is.
"""

from __future__ import annotations

import tempfile
import weakref
from typing import IO

import torch
from jaxtyping import Float
from torch import Tensor

from dnge_compress.core.paging import mapped, paged, written
from dnge_compress.core.processes import summed, world

MEMORY_BYTES = 1 << 29  # of matrices of second moments that are held in memory at a time


class MomentStore:
    """Makes `SecondMoments`, the first ones in memory, the others in temporary files that vanish with their use.
    `in_turn`: only those of one block are being summed up at a time."""

    def __init__(self, in_turn: bool = False) -> None:
        self._left, self._in_turn = MEMORY_BYTES, in_turn

    def moments(self, features: int, device: torch.device) -> SecondMoments:
        """Empty moments of so many features."""
        fits = 4 * features**2 <= self._left
        self._left -= 4 * features**2 if fits else 0
        file = None if fits or self._in_turn else tempfile.TemporaryFile()  # noqa: SIM115
        found = SecondMoments(features, device, file, stays=fits)
        if file is not None:
            weakref.finalize(found, file.close)
        return found


class SecondMoments:
    """Mean and covariance of rows `[positions, F]`, as they come batch by batch.

    Sums run over distances from the first rows' mean: of features that hardly vary, rounding would leave nothing in a
    difference of large sums.
    """

    def __init__(self, features: int, device: torch.device, file: IO[bytes] | None, stays: bool) -> None:
        self.count, self._stays = 0, stays
        self._centre: Tensor | None = None
        self._sum = torch.zeros(features, device=device)
        self.features, self._file = features, file
        self._gram = torch.zeros(features, features, device=device) if file is None else None
        self._written: list[tuple[int, torch.dtype]] = []

    def add(self, rows: Float[Tensor, "positions F"]) -> None:
        """Count some rows."""
        values = rows.float()
        if self._centre is None and len(rows):
            self._centre = values.mean(0)
        values = values - self._centre if self._centre is not None else values
        self.count += len(rows)
        self._sum += values.sum(0)
        if self._gram is not None:
            self._gram.addmm_(values.T, values)
        else:
            assert self._file is not None
            self._written.append((len(rows), rows.dtype))
            written(self._file, rows, self._what)

    def finish(self) -> tuple[Float[Tensor, " F"], Float[Tensor, "F F"]]:
        """Mean `[F]` and covariance `[F, F]`, in a file where that was too large. Nothing can be added then."""
        off = self._sum / max(1, self.count)
        centre = self._centre if self._centre is not None else torch.zeros_like(off)
        scatter, self._gram = self._gram if self._gram is not None else self._gram_of_file(centre), None
        scatter.addr_(off, off, alpha=-self.count)
        mean = centre + off
        if world() > 1:
            mean = self._of_all(mean, scatter)
        covariance = scatter.div_(max(1, self.count))
        return mean, covariance if self._stays else paged(covariance, self._what)

    def _of_all(self, mean: Tensor, scatter: Tensor) -> Tensor:
        """Join with what other processes have counted: the mean of all; `scatter` becomes that around it."""
        own, exact = self.count, mean.double()
        self.count = int(summed(torch.tensor(own)))
        of_all = summed(exact * own) / max(1, self.count)
        off = (exact - of_all).to(scatter.dtype)
        summed(scatter.addr_(off, off, alpha=own))
        return of_all.to(mean.dtype)

    def _gram_of_file(self, centre: Tensor) -> Tensor:
        """What the rows that were written down sum up to, as distances from the centre."""
        assert self._file is not None
        gram = torch.zeros(self.features, self.features, device=centre.device)
        start = 0
        for count, dtype in self._written:
            rows = mapped(self._file, start, (count, self.features), dtype).to(gram.device).float() - centre
            gram.addmm_(rows.T, rows)
            start += count * self.features * dtype.itemsize
        self._file.close()  # the rows have served
        return gram

    @property
    def _what(self) -> str:
        return f"the moments of a layer of {self.features:,} features"
