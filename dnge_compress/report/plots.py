"""The plots of the page: bars, dots, columns, and lines over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dnge_compress.core.wording import percent
from dnge_compress.report import drawing
from dnge_compress.report.axes import Point, decimals, layer_ticks, thinned, ticks
from dnge_compress.report.drawing import CROWDED, SIDE
from dnge_compress.report.markup import tag

COLOURS = 5  # how many series the style sheet tells apart by colour; dashes tell more


def bar(share: float, original: float | None = None) -> Markup:
    """A bar from zero, `share` (0..1) of its place long; a line marks the original."""
    parts = [tag("rect", class_="ghost", width=SIDE, height=SIDE), tag("rect", width=SIDE * share, height=SIDE)]
    return drawing.inline([*parts, drawing.tick(original)], "bar")


def dot(place: float, original: float | None = None) -> Markup:
    """A dot on a scale whose ends are the lowest and the highest value; a stem leads to the original."""
    # Round caps reach over the end of a line, so the scale keeps off the edges.
    at, origin = (40 + 920 * p if p is not None else None for p in (place, original))
    assert at is not None
    parts: list[Markup | None] = [drawing.line("axis", (0, SIDE / 2), (SIDE, SIDE / 2))]
    if origin is not None:
        parts.append(drawing.line("stem", (origin, SIDE / 2), (at, SIDE / 2)))
    return drawing.inline(
        [*parts, drawing.tick(original, 40), drawing.line("point", (at, SIDE / 2), (at, SIDE / 2))], "dots"
    )


def columns(title: str, description: str, shares: Sequence[tuple[float, str]], layers: Sequence[int | None]) -> Markup:
    """A column for each share (0..1) of a whole, with a text that says it; a lone one is a bar. `layers` are the
    numbers below."""
    if len(shares) == 1:
        return bar(shares[0][0])
    step = SIDE / len(shares)
    gap = 0.18 * step if len(shares) <= CROWDED else 0.0
    shapes = []
    for i, (share, label) in enumerate(shares):
        place = {"x": i * step + gap / 2, "width": step - gap}
        whole = tag("rect", class_="ghost", y=0, height=SIDE, **place)
        kept = tag("rect", y=SIDE * (1 - share), height=SIDE * share, **place)
        shapes.append(tag("g", tag("title", f"{label} ({percent(share)})"), whole, kept))
    return drawing.framed(
        shapes,
        (title, description),
        left=[(0.0, "0"), (0.5, "50"), (1.0, "100 %")],
        below=[((i + 0.5) / len(shares), f"{layer}") for i, layer in layer_ticks(layers)],
        kind="columns",
        style=f"max-width:{5 + 4 * len(shares)}rem",
    )


@dataclass(frozen=True)
class Curve:
    """Losses along one training: (optimiser step, nats per token)."""

    name: str
    train: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()


def curves(found: Sequence[Curve]) -> Markup:
    """Loss over optimiser steps: thin lines for training, bold ones with points for held-out rows."""
    points = [p for c in found for p in (*c.train, *c.held_out) if math.isfinite(p[1])]
    across = ticks(0, max((step for step, _ in points), default=1))
    up = ticks(min((loss for _, loss in points), default=0), max((loss for _, loss in points), default=1))
    first, last, low, high = 0.0, max((step for step, _ in points), default=1) or 1, up[0], up[-1]

    def path(series: Sequence[Point], kind: str, number: int, label: str) -> Markup | None:
        places = [((s - first) / (last - first) * SIDE, (high - v) / (high - low) * SIDE) for s, v in series]
        drawn = tag("path", d=drawing.through(places), class_=f"{kind} series-{number % COLOURS} dash-{number % 4}")
        marks = [drawing.line(f"point series-{number % COLOURS}", p, p) for p in places if math.isfinite(p[1])]
        shown = [drawn, *marks] if kind == "held-out" and len(places) <= 60 else [drawn]
        return tag("g", tag("title", label), *shown) if places else None

    # Held-out lines come last and lie on top; among them the job's own, which comes first, is topmost.
    numbered = [*enumerate(found)][::-1]
    lines = [path(thinned(c.train), "train", i, f"{c.name}: training batches") for i, c in numbered]
    lines += [path(c.held_out, "held-out", i, f"{c.name}: held-out rows") for i, c in numbered]
    shown = [*drawing.rules(len(up)), *lines]
    places = decimals(up)
    return drawing.framed(
        [line for line in shown if line is not None],
        ("Loss while training", f"Nats per token, optimiser steps 0 to {last:,}: {', '.join(c.name for c in found)}."),
        left=[(i / (len(up) - 1), f"{value:.{places}f}") for i, value in enumerate(up)],
        below=[(step / last, f"{step:,.0f}") for step in across if step <= last],
        kind="curves",
    )


def tradeoff(points: Sequence[tuple[float, float]], marked: float | None, across: str, up: str) -> Markup:
    """A line through points (x ≥ 0, y ≥ 0) in order of x, both axes from zero; an upright line marks one x. `across`
    and `up` say what the axes are."""
    xs, ys = ticks(0, points[-1][0]), ticks(0, max(y for _, y in points))
    right, top = max(points[-1][0], xs[-1]), ys[-1]
    places = [(x / right * SIDE, (1 - y / top) * SIDE) for x, y in points]
    rules = drawing.rules(len(ys))
    dots = [
        tag("g", tag("title", f"{x:g}: {y:.3g}"), drawing.line("point series-0", place, place))
        for (x, y), place in zip(points, places, strict=True)
    ]
    shapes = [*rules, drawing.tick(None if marked is None else marked / right)]
    shapes += [tag("path", d=drawing.through(places), class_="held-out series-0 dash-0"), *dots]
    said = "" if marked is None else f"; the upright line marks {marked:g}"
    below, beside = decimals(xs), decimals(ys)
    return drawing.framed(
        [shape for shape in shapes if shape is not None],
        (f"{up} over {across}", f"{'; '.join(f'{x:g}: {y:.3g}' for x, y in points)}{said}."),
        left=[(y / top, f"{y:.{beside}f}") for y in ys],
        below=[(x / right, f"{x:.{below}f}") for x in xs],
        kind="curves",
    )


def swatch(number: int) -> Markup:
    """The line of a series, for the legend."""
    return drawing.inline(
        [drawing.line(f"held-out series-{number % COLOURS} dash-{number % 4}", (0, SIDE / 2), (SIDE, SIDE / 2))],
        "swatch",
    )
