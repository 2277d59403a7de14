"""How long work says where it is: stage, steps done of how many, and a note such as the loss."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called along the way; `total` is 0 while it isn't known."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take note of where a stage is."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Say nothing."""
