"""Condense the rows of a report: layers that came out alike share a line, so that a model of 32 or 100 layers still
fits on a screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from dnge_compress.report.rows import Row

MAX_LINES = 18
# Kinds in the order in which they are shown.
PLURAL = {"neuron": "neurons", "head": "heads", "channel": "channels", "layer": "layers"}

Range = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of the table: spaces of one kind that came out alike, or nearly so."""

    kind: str
    where: str
    kept: Range
    total: Range
    share: float
    before: int
    after: int
    cost: Range


class Width(Protocol):
    """What the rows of every report say about a space: how many of its units stay."""

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


W = TypeVar("W", bound=Width)


def lines(rows: Sequence[Row], limit: int = MAX_LINES) -> list[Line]:
    """The rows of a Report, condensed; see `alike`."""
    return [_line(where, group) for where, group in alike(rows, limit)]


def alike(rows: Sequence[W], limit: int = MAX_LINES) -> list[tuple[str, list[W]]]:
    """Spaces that came out alike together, with a word on where they are; about `limit` groups at most, by joining
    neighbours if need be.

    Spaces of dropped blocks are in no group: that of the layers names them.
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


def extent(values: Iterable[float]) -> Range:
    """The lowest and the highest of some numbers."""
    known = list(values)
    return min(known), max(known)


def _alike(rows: Sequence[W]) -> list[list[W]]:
    groups: dict[tuple[int, int], list[W]] = {}
    for row in rows:
        # Layer spaces are few and each has a name of its own.
        key = (len(groups), 0) if row.kind == "layer" else (row.kept, row.total)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _chunks(rows: Sequence[W], parts: int) -> list[list[W]]:
    edges = [round(i * len(rows) / parts) for i in range(parts + 1)]
    return [list(rows[a:b]) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def _line(where: str, group: Sequence[Row]) -> Line:
    return Line(
        group[0].kind,
        where,
        extent(r.kept for r in group),
        extent(r.total for r in group),
        sum(r.kept for r in group) / sum(r.total for r in group),
        sum(r.params_before for r in group),
        sum(r.params_after for r in group),
        extent(r.cost for r in group),
    )


def _which_blocks(group: Sequence[Width], rows: Sequence[Width]) -> str:
    """Which blocks a layer space lost, where it is the only one and the spaces inside the lost blocks tell."""
    gone = sorted({r.layer for r in rows if r.kept == 0 and r.layer is not None})
    only = sum(1 for r in rows if r.kind == "layer") == 1
    if only and len(gone) == group[0].total - group[0].kept:
        return f"without {ranges(gone)}" if gone else "all"
    return group[0].space if len(group) == 1 else f"{group[0].space} … {group[-1].space}"


def _where(group: Sequence[Width]) -> str:
    layers = sorted({r.layer for r in group if r.layer is not None})
    if layers:
        return ranges(layers)
    return group[0].space if len(group) == 1 else f"{group[0].space} … {group[-1].space}"


def ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    shown = [str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs]
    return ", ".join(shown) if len(shown) <= 3 else f"{', '.join(shown[:2])} … {shown[-1]}"
