"""Tokenised rows on disk: one safetensors file, so that every process and every restart trains on the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from dnge_compress.core.files import atomic_file
from dnge_compress.jobs.data.rows import Examples


def store(path: Path, examples: Examples) -> None:
    """Write rows, whole or not at all. Raises CheckpointError."""
    arrays = {"ids": examples.ids, "learned": examples.learned, "starts": examples.starts}
    with atomic_file(path) as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)


def stored(path: Path) -> Examples:
    """The rows that `store` wrote."""
    found = load_file(path)
    return Examples(found["ids"], found["learned"], found["starts"])
