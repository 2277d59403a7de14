"""Second moments of activations, in memory as long as they fit and in files behind that.

A matrix of moments has F² numbers: some hundred megabytes at a layer of 11,000 neurons, tens of gigabytes over a model
of billions of parameters. What doesn't fit into MEMORY_BYTES is written down as it comes, once, in its own precision;
when all inputs have passed, the moments are computed matrix by matrix and lie in files that the system pages in as they
are read. So the inputs pass once, however large the model is.
"""

from __future__ import annotations

import tempfile
import weakref
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dnge_compress.core.errors import DngeError

MEMORY_BYTES = 2 << 30  # of matrices of second moments that are held in memory at a time


class MomentStore:
    """Makes `SecondMoments`, the first ones in memory, the others in temporary files that vanish with their use."""

    def __init__(self) -> None:
        self._left = MEMORY_BYTES

    def moments(self, features: int, device: torch.device) -> SecondMoments:
        """Empty moments of so many features."""
        fits = 4 * features**2 <= self._left
        self._left -= 4 * features**2 if fits else 0
        file = None if fits else tempfile.TemporaryFile()  # noqa: SIM115
        found = SecondMoments(features, device, file)
        if file is not None:
            weakref.finalize(found, file.close)
        return found


class SecondMoments:
    """Mean and covariance of rows `[positions, F]`, as they come batch by batch.

    Sums run over distances from the first rows' mean: of features that hardly vary, rounding would leave nothing in a
    difference of large sums.
    """

    def __init__(self, features: int, device: torch.device, file: IO[bytes] | None) -> None:
        self.count = 0
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
            self._written.append((len(rows), rows.dtype))
            self._write(rows)

    def finish(self) -> tuple[Float[Tensor, " F"], Float[Tensor, "F F"]]:
        """Mean `[F]` and covariance `[F, F]`, in a file where that was too large. Nothing can be added then."""
        n = max(1, self.count)
        off = self._sum / n
        centre = self._centre if self._centre is not None else torch.zeros_like(off)
        if self._gram is not None:
            return centre + off, (self._gram / n).addr_(off, off, alpha=-1)
        gram = torch.zeros(self.features, self.features, device=off.device)
        start = 0
        for count, dtype in self._written:
            rows = self._read(start, (count, self.features), dtype).to(gram.device).float() - centre
            gram.addmm_(rows.T, rows)
            start += count * self.features * dtype.itemsize
        assert self._file is not None
        self._file.close()  # the rows have served
        with tempfile.TemporaryFile() as self._file:  # what is mapped into memory outlives its file
            self._write((gram / n).addr_(off, off, alpha=-1))
            return centre + off, self._read(0, tuple(gram.shape), gram.dtype)

    def _write(self, values: Tensor) -> None:
        assert self._file is not None
        try:
            values.detach().cpu().contiguous().view(torch.uint8).numpy().tofile(self._file)
            self._file.flush()
        except OSError as e:
            raise DngeError(
                f"the moments of a layer of {self.features:,} features need room in '{tempfile.gettempdir()}' "
                f"({e.strerror or e}); set TMPDIR to a larger disk, or take fewer calibration tokens"
            ) from e

    def _read(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that lies in the file from byte `start`, mapped into memory: it is paged in as it is read."""
        size = int(np.prod(shape)) * dtype.itemsize
        assert self._file is not None
        if not size:
            return torch.empty(shape, dtype=dtype)
        raw = np.memmap(self._file, np.uint8, mode="c", offset=start, shape=(size,))
        return torch.from_numpy(raw).view(dtype).view(shape)
