"""The sections of the page about training, widths and ranks: each a plot and the table that says the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dnge_compress.jobs.report import plots
from dnge_compress.jobs.report.markup import Markup, tag
from dnge_compress.jobs.report.ranks import Grid, Row, grid
from dnge_compress.jobs.report.wording import NOT_MEASURED, percent, several
from dnge_compress.report.condense import PLURAL, alike, extent
from dnge_compress.report.tables import count, span

if TYPE_CHECKING:
    from dnge_compress.jobs.report import Curve, Rank, Width

LONG = 44  # names of modules up to here stay on one line on wide screens


def losses(curves: Sequence[Curve]) -> Iterator[Markup]:
    """The curves and what they come to."""
    told = "Nats per token over optimiser steps. Thin: training batches. Bold: held-out rows."
    yield tag("p", told, class_="caption")
    yield plots.curves(curves)
    headings = (tag("th", text, scope="col") for text in ("first", "lowest", "last"))
    head = tag("thead", tag("tr", tag("th", "held-out loss", scope="col"), *headings))
    rows = (
        tag("tr", tag("th", plots.swatch(i), c.name, scope="row"), *_points(c.held_out)) for i, c in enumerate(curves)
    )
    yield tag("table", head, tag("tbody", *rows), class_="legend")


def widths(widths: Sequence[Width]) -> Iterator[Markup]:
    """A panel for each kind of units: plot and table."""
    kinds = list(dict.fromkeys(w.kind for w in widths))
    groups = alike(widths)
    panels = []
    for kind in kinds:
        members = [w for w in widths if w.kind == kind]
        kept, total = sum(w.kept for w in members), sum(w.total for w in members)
        plural = PLURAL.get(kind, kind)
        summary = (f"{kept:,} of {total:,}", tag("small", percent(kept / total)))
        lines = (_width_line(where, group) for where, group in groups if group[0].kind == kind)
        table = tag("table", tag("thead", _columns("layers", "kept", "of")), tag("tbody", *lines))
        heading = tag("h3", plural, " ", tag("span", *summary, class_="of"))
        panels.append(tag("div", heading, plots.widths(kind, members), table, class_="panel"))
    yield tag("div", *panels, class_="panels")
    if len(groups) < len(widths):
        rows = (
            tag(
                "tr", tag("th", w.space, scope="row"), *_cells(f"{w.kept:,}", f"{w.total:,}", percent(w.kept / w.total))
            )
            for w in widths
        )
        yield _more("All spaces", tag("table", tag("thead", _columns("space", "kept", "of", "")), tag("tbody", *rows)))


def ranks(ranks: Sequence[Rank]) -> Iterator[Markup]:
    """A table whose last column is a heat map."""
    placed = grid(ranks)
    total = f"{several(placed.placed, 'adapter')}, {count(placed.params)} trainable parameters"
    yield tag("p", f"{total}, rank {placed.highest} at most.", class_="lead")
    headings = ["type of module", "adapters", "rank", "parameters", *(["rank by layer"] if placed.layers else [])]
    rows = [_rank_line(row, placed) for row in placed.rows if row.cells]
    if placed.layers:
        rows.append(tag("tr", tag("td", colspan=4), tag("td", plots.layer_axis(placed)), class_="axis-row"))
    rows += [_rank_line(row, placed) for row in placed.rows if not row.cells]
    yield tag("table", tag("thead", _columns(*headings)), tag("tbody", *rows), class_="heat")
    if placed.layers:
        told = "A cell is a layer: the stronger, the higher the rank. Where it is empty, there is no adapter."
        yield tag("p", told, class_="caption")
        yield _more("All ranks by layer", _matrix(placed))


def _points(held_out: Sequence[tuple[int, float]]) -> Iterator[Markup]:
    finite = [p for p in held_out if math.isfinite(p[1])]
    if not finite:
        yield tag("td", NOT_MEASURED if not held_out else "not finite", class_="quiet", colspan=3)
        return
    for step, loss in (held_out[0], min(finite, key=lambda point: point[1]), held_out[-1]):
        shown = f"{loss:.3f}" if math.isfinite(loss) else "not finite"
        yield tag("td", shown, tag("small", f"step {step:,}"))


def _width_line(where: str, group: Sequence[Width]) -> Markup:
    kept, total = span(extent(w.kept for w in group)), span(extent(w.total for w in group))
    return tag("tr", tag("th", where, scope="row"), *_cells(kept, total))


def _rank_line(row: Row, placed: Grid) -> Markup:
    cells = _cells(row.coverage, span(row.range), count(row.params))
    strip = tag("td", plots.heat(row, placed) if row.cells else None) if placed.layers else None
    name = tag("th", row.name, scope="row", class_="long" if len(row.name) > LONG else None)
    return tag("tr", name, *cells, strip)


def _matrix(placed: Grid) -> Markup:
    kinds = [row for row in placed.rows if row.cells]
    rows = (
        tag(
            "tr",
            tag("th", layer, scope="row"),
            *_cells(*(", ".join(map(str, row.cells.get(layer, ()))) for row in kinds)),
        )
        for layer in placed.layers
    )
    return tag("table", tag("thead", _columns("layer", *(row.name for row in kinds))), tag("tbody", *rows))


def _more(title: str, table: Markup) -> Markup:
    """A long table that is folded until someone wants it; it scrolls sideways where it is too wide."""
    return tag(
        "details",
        tag("summary", title),
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=title),
    )


def _columns(*headings: str) -> Markup:
    return tag("tr", *(tag("th", text, scope="col") if text else tag("td") for text in headings))


def _cells(*texts: str) -> Iterable[Markup]:
    return (tag("td", text) for text in texts)
