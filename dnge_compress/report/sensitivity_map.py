"""Where a network is sensitive: a map of layers and kinds of units, the stronger the dearer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from dnge_compress.core.document import Cell, Column, Paragraph, Section, Table
from dnge_compress.core.wording import cost_span, extent, span
from dnge_compress.plans.sensitivity import Sensitivity
from dnge_compress.plans.space_rows import COST, PLURAL
from dnge_compress.report.axes import layers_between
from dnge_compress.report.heat import Shade, heat, layer_axis

Cells = Mapping[int, Sequence[Sensitivity]]


def sensitivity_section(found: Sequence[Sensitivity]) -> Section | None:
    """One row per kind of units and stack of layers, a cell per layer; the same as a folded table. Pages alone show it,
    and only where something of it is drawn."""
    rows = _rows(found)
    if not rows:
        return None
    has_layers = any(s.layer is not None for s in found)
    places = layers_between(place for cells in rows.values() for place in cells)
    scale = _scale([s.cost for cells in rows.values() for own in cells.values() for s in own])
    columns = (
        Column(title="units", kind="text"),
        Column(title="removed"),
        Column(title="predicted cost", unit="nats"),
        Column(title="by layer" if has_layers else "by space", kind="strip"),
    )
    table = Table(
        columns=columns,
        rows=tuple(_row(name, cells, places, scale) for name, cells in rows.items()),
        look="heat costs",
        axis=layer_axis(places) if has_layers else "",
        forms=("page",),
    )
    what = "layer" if has_layers else "space, in the order of the network"
    caption = (
        f"A cell is a {what}: the stronger, the more its cheapest units cost, on a logarithmic scale from "
        f"{scale[0]:.2g} to {scale[1]:.2g}. What may not go has no cell. {COST[0].upper()}{COST[1:]}."
    )
    return Section("Sensitivity", (table, Paragraph(caption, "quiet", ("page",)), _all_costs(found)))


def _rows(found: Sequence[Sensitivity]) -> dict[str, dict[int, list[Sensitivity]]]:
    """Name of a row → place → what stands there. Places are layers; spaces in the order of the network where no space
    is in a layer. Spaces outside all layers have no place beside others that are in one."""
    has_layers = any(s.layer is not None for s in found)
    order = {kind: i for i, kind in enumerate(PLURAL)}
    rows: dict[str, dict[int, list[Sensitivity]]] = {}
    for s in sorted(found, key=lambda s: (order.get(s.kind, len(order)), s.stack)):
        cells = rows.setdefault(_name(s), {})
        place = s.layer if has_layers else len(cells)
        if place is not None:
            cells.setdefault(place, []).append(s)
    return {name: cells for name, cells in rows.items() if cells}


def _name(s: Sensitivity) -> str:
    return f"{s.stack} {PLURAL.get(s.kind, s.kind)}".strip()


def _scale(costs: Iterable[float]) -> tuple[float, float]:
    """The lowest and the highest cost above zero."""
    return extent([cost for cost in costs if cost > 0] or [0.0])


def _row(name: str, cells: Cells, places: Sequence[int], scale: tuple[float, float]) -> tuple[Cell, ...]:
    own = [s for found in cells.values() for s in found]
    lowest, highest = (min(own, key=lambda s: s.cost), max(own, key=lambda s: s.cost))
    description = f"From {_said(lowest)} to {_said(highest)}; all are in the table below."
    shades = {place: _shade(cells[place], scale) for place in cells}
    removed = f"{span(extent(s.gone for s in own))} of {span(extent(s.total for s in own))}"
    return (
        Cell(text=name),
        Cell(text=removed),
        Cell(text=cost_span(extent(s.cost for s in own))),
        Cell(drawing=heat(f"Predicted cost of {name}", description, places, shades)),
    )


def _shade(found: Sequence[Sensitivity], scale: tuple[float, float]) -> Shade:
    """The cell of one place; of several spaces there, the mean."""
    mean = sum(s.cost for s in found) / len(found)
    return Shade(_strength(mean, scale), f"{mean:.2g}", "; ".join(map(_said, found)))


def _strength(cost: float, scale: tuple[float, float]) -> float | None:
    low, high = scale
    if cost <= 0:
        return None
    if high <= low:
        return 1.0
    # A mean with costs of nothing may lie below the lowest that is above zero.
    return max(0.0, (math.log(cost) - math.log(low)) / (math.log(high) - math.log(low)))


def _said(s: Sensitivity) -> str:
    where = s.space if s.layer is None else f"layer {s.layer}, {s.space}"
    what = "" if s.kind == "layer" else f" for {s.gone:,} of {s.total:,} {PLURAL.get(s.kind, s.kind)}"
    return f"{where}: {s.cost:.3g}{what}"


def _all_costs(found: Sequence[Sensitivity]) -> Table:
    rows = tuple(
        (
            Cell(text=s.space),
            Cell(text="" if s.layer is None else str(s.layer)),
            Cell(text=f"{s.gone:,} of {s.total:,}"),
            Cell(text=f"{s.cost:.3g}"),
        )
        for s in found
    )
    columns = (
        Column(title="space", kind="text"),
        Column(title="layer"),
        Column(title="removed"),
        Column(title="predicted cost", unit="nats"),
    )
    return Table(columns=columns, rows=rows, title="All predicted costs", forms=("page",))
