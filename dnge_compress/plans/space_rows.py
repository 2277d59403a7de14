"""What cuts do to every space, and the table that shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.wording import cost_span, count, extent, span
from dnge_compress.graph.counting import shapes_left
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import PRUNABLE, Shapes, Space
from dnge_compress.plans.condense import PLURAL, alike

Change = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SpaceRow:
    """One prunable space: units and parameters before and after, and the predicted cost of what went.

    Parameters are those of the rows and columns that belong to the space; spaces overlap (a block contains its
    neurons), so they don't add up over kinds. `kept` is 0 where the whole block was dropped.
    """

    space: str
    kind: str
    layer: int | None
    kept: int
    total: int
    params_before: int
    params_after: int
    cost: float


def rows_of(applied: AppliedCuts, costs: Mapping[str, float], shapes: Shapes) -> tuple[SpaceRow, ...]:
    """One row per prunable space; `costs` are predicted per space, `shapes` those of the parameters before."""
    after = applied.shapes(shapes)
    rows = []
    for space in applied.graph.of_kind(*PRUNABLE):
        shares = _blocks(space, shapes, after) if space.modules else _shares(applied, space, shapes, after)
        left = {name: share for name, share in shares.items() if not name.startswith(applied.dropped_prefixes)}
        rows.append(
            SpaceRow(
                space=space.name,
                kind=space.kind,
                layer=space.layer,
                kept=0 if shares and not left else applied.kept(space.name),
                total=space.units,
                params_before=sum(old for old, _ in shares.values()),
                params_after=sum(new for _, new in left.values()),
                cost=float(costs.get(space.name, 0.0)),
            )
        )
    return tuple(rows)


def spaces_table(rows: Sequence[SpaceRow]) -> Table:
    """Kept units (of each space), parameters (of all in the line) and predicted cost (of each), alike ones together."""
    lines = []
    for where, group in alike(rows):
        kept, total, cost = (extent(getattr(r, name) for r in group) for name in ("kept", "total", "cost"))
        before, after = sum(r.params_before for r in group), sum(r.params_after for r in group)
        is_whole = kept == total and not cost[1]
        lines.append(
            (
                Cell(text=PLURAL.get(group[0].kind, group[0].kind)),
                Cell(text=where, style="quiet"),
                Cell(bar=sum(r.kept for r in group) / sum(r.total for r in group)),
                Cell(text=f"{span(kept)} / {span(total)}"),
                Cell(text=f"{count(before)} → {count(after)}"),
                Cell(text="·", style="quiet") if is_whole else Cell(text=cost_span(cost)),
            )
        )
    columns = (
        Column(kind="text"),
        Column(title="layers", kind="text"),
        Column(kind="bar"),
        Column(title="units kept"),
        Column(title="parameters"),
        Column(title="predicted cost", unit="nats"),
    )
    return Table(columns=columns, rows=tuple(lines), is_grouped=True, look="spaces")


def _blocks(space: Space, shapes: Shapes, after: Shapes) -> dict[str, Change]:
    """Parameter → its elements before and after, for all that stands in the blocks of a layer space."""
    inside = tuple(f"{module}." for module in space.modules)
    return {n: (math.prod(shape), math.prod(after[n])) for n, shape in shapes.items() if n.startswith(inside)}


def _shares(applied: AppliedCuts, space: Space, shapes: Shapes, after: Shapes) -> dict[str, Change]:
    """Parameter → its elements that belong to the space, before and after; an element counts once."""
    own = {slot.param for slot in applied.graph.slots_of(space.name)}
    given = {name: shape for name, shape in shapes.items() if name in own}
    rest_before = shapes_left(applied.graph, given, {space.name: 0})
    rest_after = shapes_left(applied.graph, given, {**applied.counts, space.name: 0})
    return {
        name: (math.prod(shape) - math.prod(rest_before[name]), math.prod(after[name]) - math.prod(rest_after[name]))
        for name, shape in given.items()
    }
