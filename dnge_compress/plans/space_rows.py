"""What cuts do to every space, and the table that shows it: spaces that came out alike share a line, so that a model of
32 or 100 layers still fits on a screen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.errors import PlanError
from dnge_compress.core.wording import UNKNOWN, cost_span, count, extent, ranges, span
from dnge_compress.graph.counting import shapes_left
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import PRUNABLE, Shapes, Space

Change = tuple[int, int]
MAX_LINES = 18
COST = "predicted cost: nats of divergence per label, of each space alone, unrepaired"
# Kinds in the order in which they are shown.
PLURAL = {"neuron": "neurons", "head": "heads", "channel": "channels", "layer": "layers", "expert": "experts"}


@dataclass(frozen=True, kw_only=True)
class SpaceRow:
    """One prunable space: units and parameters before and after, and the predicted cost of what went.

    Parameters are those of the rows and columns that belong to the space; spaces overlap (a block contains its
    neurons), so they don't add up over kinds. `kept` is 0 where the whole block was dropped.
    A `cost` of None is unknown.
    """

    space: str
    kind: str
    layer: int | None
    kept: int
    total: int
    params_before: int = 0
    params_after: int = 0
    cost: float | None = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.total or not self.total:
            raise PlanError(f"{self.kept} of {self.total} units of space '{self.space}' can't be kept")


def rows_of(applied: AppliedCuts, costs: Mapping[str, float] | None, shapes: Shapes) -> tuple[SpaceRow, ...]:
    """One row per prunable space; `costs` are predicted per space, or None where nobody knows them, `shapes` those of
    the parameters before."""
    after = applied.shapes(shapes)
    rows = []
    for space in applied.graph.of_kind(*PRUNABLE):
        shares = _shares(applied, space, shapes, after) | _inside(space, shapes, after)
        left = {name: share for name, share in shares.items() if not name.startswith(applied.dropped_prefixes)}
        kept = 0 if shares and not left else applied.kept(space.name)
        is_unknown = costs is None and kept < space.units
        rows.append(
            SpaceRow(
                space=space.name,
                kind=space.kind,
                layer=space.layer,
                kept=kept,
                total=space.units,
                params_before=sum(old for old, _ in shares.values()),
                params_after=sum(new for _, new in left.values()),
                cost=None if is_unknown else float((costs or {}).get(space.name, 0.0)),
            )
        )
    return tuple(rows)


def alike(rows: Sequence[SpaceRow], limit: int = MAX_LINES) -> list[tuple[str, list[SpaceRow]]]:
    """Groups of spaces that kept equally many units, each with the layers it is in; about `limit` groups at most, for
    which neighbours are joined where necessary.

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


def spaces_table(rows: Sequence[SpaceRow]) -> Table:
    """Kept units (of each space), parameters (of all in the line) and predicted cost (of each), alike ones together."""
    lines = []
    for where, group in alike(rows):
        kept, total = (extent(getattr(r, name) for r in group) for name in ("kept", "total"))
        known = [r.cost for r in group if r.cost is not None]
        cost = extent(known) if len(known) == len(group) else None
        before, after = sum(r.params_before for r in group), sum(r.params_after for r in group)
        is_whole = kept == total and cost is not None and not cost[1]
        lines.append(
            (
                Cell(text=PLURAL.get(group[0].kind, group[0].kind)),
                Cell(text=where, style="quiet"),
                Cell(bar=sum(r.kept for r in group) / sum(r.total for r in group)),
                Cell(text=f"{span(kept)} / {span(total)}"),
                Cell(text=f"{count(before)} → {count(after)}") if before else Cell(text="·", style="quiet"),
                Cell(text="·", style="quiet") if is_whole else Cell(text=cost_span(cost) if cost else UNKNOWN),
            )
        )
    columns = (
        Column(kind="text", is_long=True),
        Column(title="layers", kind="text", is_long=True),
        Column(kind="bar"),
        Column(title="units kept"),
        Column(title="parameters"),
        Column(title="predicted cost", unit="nats"),
    )
    return Table(columns=columns, rows=tuple(lines), caption=COST, is_grouped=True, look="spaces")


def _inside(space: Space, shapes: Shapes, after: Shapes) -> dict[str, Change]:
    """Parameter → its elements before and after, for all that stands in the modules of a space."""
    inside = tuple(f"{module}." for module in space.modules)
    return {n: (math.prod(shape), math.prod(after[n])) for n, shape in shapes.items() if n.startswith(inside)}


def _shares(applied: AppliedCuts, space: Space, shapes: Shapes, after: Shapes) -> dict[str, Change]:
    """Parameter → its elements that belong to the space, before and after; an element counts once."""
    own = {slot.param for slot in applied.graph.slots_of(space.name)}
    given = {name: shape for name, shape in shapes.items() if name in own}
    rest_before = shapes_left(applied.graph, given, {space.name: 0})
    rest_after = shapes_left(applied.graph, given, {**applied.counts, space.name: 0})
    # Of a stack of experts that lose as many each, the space has one part.
    parts = {
        s.param: shapes[s.param][0]
        for s in applied.graph.slots_of(space.name)
        if s.part is not None and s.param in shapes
    }
    return {
        name: (
            (math.prod(shape) - math.prod(rest_before[name])) // parts.get(name, 1),
            (math.prod(after[name]) - math.prod(rest_after[name])) // parts.get(name, 1),
        )
        for name, shape in given.items()
    }


def _alike(rows: Sequence[SpaceRow]) -> list[list[SpaceRow]]:
    groups: dict[tuple[int, int], list[SpaceRow]] = {}
    for row in rows:
        # Layer spaces are few and each has a name of its own.
        key = (len(groups), 0) if row.kind == "layer" else (row.kept, row.total)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _chunks(rows: Sequence[SpaceRow], parts: int) -> list[list[SpaceRow]]:
    edges = [round(i * len(rows) / parts) for i in range(parts + 1)]
    return [list(rows[a:b]) for a, b in itertools.pairwise(edges) if b > a]


def _which_blocks(group: Sequence[SpaceRow], rows: Sequence[SpaceRow]) -> str:
    """Which blocks a layer space lost, where it is the only one and the spaces inside the lost blocks tell."""
    gone = sorted({r.layer for r in rows if r.kept == 0 and r.layer is not None})
    only = sum(1 for r in rows if r.kind == "layer") == 1
    if only and len(gone) == group[0].total - group[0].kept:
        return f"without {ranges(gone)}" if gone else "all"
    return _where(group)


def _where(group: Sequence[SpaceRow]) -> str:
    layers = sorted({r.layer for r in group if r.layer is not None})
    if layers:
        return ranges(layers)
    return group[0].space if len(group) == 1 else f"{group[0].space} … {group[-1].space}"
