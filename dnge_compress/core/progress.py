"""How long work reports where it is: its stage, the steps done of how many, and a note such as the loss."""

from __future__ import annotations

import sys
from typing import Protocol, runtime_checkable

from dnge_compress.core.errors import DataError

LINES = 20  # of a long stage, about


@runtime_checkable
class Progress(Protocol):
    """Called along the way; a stage is named by what is done ("calibrate"), `total` is 0 while it isn't known."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take note of where a stage is."""


def reporter(progress: Progress | bool | None) -> Progress:
    """What a verb reports to: `progress`, or nobody; True has been taken by then (core/verbs.py). Raises DataError."""
    if progress is None or isinstance(progress, bool):
        return silent
    if not callable(progress):
        raise DataError(f"progress is {progress!r:.80}; pass True, False, or a function of (stage, done, total, note)")
    return progress


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Say nothing."""


def printed(stage: str, done: int, total: int, note: str = "") -> None:
    """Print a line on stderr, about twenty of them in a stage."""
    if done % max(1, total // LINES) == 0 or done == total:
        print(f"dnge: {stage} {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)
