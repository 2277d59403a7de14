"""Rows of units along an axis: where they lie, and which they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

Runs: TypeAlias = tuple[tuple[int, int], ...]  # (first row of unit 0, rows per unit) of each run of rows


def rows_of(runs: Runs, units: Iterable[int]) -> list[int]:
    """The rows of some units, run by run for each."""
    return [start + unit * n + i for unit in units for start, n in runs for i in range(n)]


def stretches(rows: Iterable[int]) -> list[tuple[int, int]]:
    """(start, length) of each stretch of rows without a gap."""
    found: list[tuple[int, int]] = []
    for row in sorted(rows):
        if found and row == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((row, 1))
    return found
