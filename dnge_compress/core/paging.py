"""Tensors in temporary files that the system pages in as they are read: what is too large to lie in memory for as long
as it is needed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import IO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dnge_compress.core.errors import DngeError

MEMORY_BYTES = 256 << 20  # of one shelf
SMALL_BYTES = 1 << 20  # of a tensor that isn't worth a file

Keep: TypeAlias = Callable[[Tensor], Tensor]  # the same values, where they are to lie


def as_it_is(values: Tensor) -> Tensor:
    """The values where they are."""
    return values


class Shelf:
    """Keeps tensors of one kind, `what`: the first ones in memory, as many as fit into `memory` bytes, the others in
    files."""

    def __init__(self, what: str, memory: int | None = None) -> None:
        self._what, self._left = what, MEMORY_BYTES if memory is None else memory

    def keep(self, values: Tensor) -> Tensor:
        """The same values, to be held for long. Raises DngeError where the disk has no room."""
        if values.nbytes < SMALL_BYTES:
            return values
        self._left -= values.nbytes
        return values if self._left >= 0 else paged(values, self._what)


def paged(values: Tensor, what: str) -> Tensor:
    """The same values in a file of their own, which vanishes with its last use; those on a card stay there. `what` they
    are is named where the disk has no room. Raises DngeError."""
    if values.device.type != "cpu" or not values.numel():
        return values
    # What is mapped into memory outlives its file, and holds no descriptor: there may be thousands.
    with tempfile.NamedTemporaryFile() as file:
        written(file, values, what)
        return torch.from_file(file.name, shared=False, size=values.numel(), dtype=values.dtype).view(values.shape)


def written(file: IO[bytes], values: Tensor, what: str) -> None:
    """Add values at the end of a file. Raises DngeError."""
    left = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    try:
        file.flush()
        while left:  # past Python's buffer, which would be written again when the file is closed
            left = left[os.write(file.fileno(), left) :]
    except OSError as e:
        raise DngeError(
            f"{what} need room in '{tempfile.gettempdir()}' ({e.strerror or e}); set TMPDIR to a larger disk, or take "
            "fewer (calibration.tokens, copies)"
        ) from e


def mapped(file: IO[bytes], start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that lies in a file from byte `start`, mapped into memory: it is paged in as it is read."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    raw = np.memmap(file, np.uint8, mode="c", offset=start, shape=(size,))
    return torch.from_numpy(raw).view(dtype).view(shape)
