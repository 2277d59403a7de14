"""A disk that is full or closed, in one line: torch, safetensors and the system each say it in their own way."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dnge_compress.core.errors import CheckpointError, first_line

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
WORDS = ("No space left", "Disk quota", "Read-only file system", "PytorchStreamWriter failed", "unexpected pos")


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turn whatever a disk that takes no more raises into a CheckpointError; other errors pass."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as e:
        if getattr(e, "errno", None) not in CODES and not any(word in str(e) for word in WORDS):
            raise
        raise CheckpointError(
            f"'{folder}' can't be written ({first_line(e)}); the last whole checkpoint stays: make room and run the "
            "job again"
        ) from e
