"""Condense rows about spaces: layers that came out alike share a line, so that a model of 32 or 100 layers still fits
on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

MAX_LINES = 18
# Kinds in the order in which they are shown.
PLURAL = {"neuron": "neurons", "head": "heads", "channel": "channels", "layer": "layers"}


class KeptUnits(Protocol):
    """What every row says about a space: how many of its units stay; 0 where its block went."""

    @property
    def space(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def kept(self) -> int: ...
    @property
    def total(self) -> int: ...


K = TypeVar("K", bound=KeptUnits)


def alike(rows: Sequence[K], limit: int = MAX_LINES) -> list[tuple[str, list[K]]]:
    """Spaces that came out alike together, with a word on where they are; about `limit` groups at most, by joining
    neighbours if need be.

    Spaces of dropped blocks are in no group: the line of the layers names those blocks.
    """
    kinds = [*PLURAL, *sorted({r.kind for r in rows} - set(PLURAL))]
    groups = {kind: _alike([r for r in rows if r.kind == kind and r.kept]) for kind in kinds}
    crowded = sum(map(len, groups.values())) > limit
    quota = max(1, limit // max(1, sum(1 for g in groups.values() if g)))
    found = []
    for kind, same in groups.items():
        if crowded and len(same) > quota:
            same = _chunks([r for r in rows if r.kind == kind and r.kept], quota)
        found += [(_which_blocks(group, rows) if kind == "layer" else _where(group), group) for group in same]
    return found


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: "0–2, 5"; of many runs, the first two and the last."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    shown = [str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs]
    return ", ".join(shown) if len(shown) <= 3 else f"{', '.join(shown[:2])} … {shown[-1]}"


def _alike(rows: Sequence[K]) -> list[list[K]]:
    groups: dict[tuple[int, int], list[K]] = {}
    for row in rows:
        # Layer spaces are few and each has a name of its own.
        key = (len(groups), 0) if row.kind == "layer" else (row.kept, row.total)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _chunks(rows: Sequence[K], parts: int) -> list[list[K]]:
    edges = [round(i * len(rows) / parts) for i in range(parts + 1)]
    return [list(rows[a:b]) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def _which_blocks(group: Sequence[KeptUnits], rows: Sequence[KeptUnits]) -> str:
    """Which blocks a layer space lost, where it is the only one and the spaces inside the lost blocks tell."""
    gone = sorted({r.layer for r in rows if r.kept == 0 and r.layer is not None})
    only = sum(1 for r in rows if r.kind == "layer") == 1
    if only and len(gone) == group[0].total - group[0].kept:
        return f"without {ranges(gone)}" if gone else "all"
    return group[0].space if len(group) == 1 else f"{group[0].space} … {group[-1].space}"


def _where(group: Sequence[KeptUnits]) -> str:
    layers = sorted({r.layer for r in group if r.layer is not None})
    if layers:
        return ranges(layers)
    return group[0].space if len(group) == 1 else f"{group[0].space} … {group[-1].space}"
