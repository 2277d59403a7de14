"""Safetensors files with a header of texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dnge_compress.core.files import atomic_file


class UnorderedTensors(dict[str, Tensor]):
    """Tensors by name from a file that keeps no order: safetensors sorts them by type and name."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write one file, whole or not at all. Raises CheckpointError."""
    with atomic_file(path) as part:
        save_file({name: owned(tensor) for name, tensor in tensors.items()}, part, dict(header or {}))


def owned(values: Tensor) -> Tensor:
    """A tensor in memory that shares it with no other, as safetensors wants it."""
    found = values.detach().cpu().contiguous()
    return found.clone() if found.nbytes < found.untyped_storage().nbytes() else found


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file. Raises OSError or SafetensorError."""
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118 (no mapping)
