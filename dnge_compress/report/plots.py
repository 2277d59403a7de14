"""The plots of the page: SVG stretched over its place, text around it in HTML, so that letters keep their size on
every screen. Horizontal coordinates and vertical ones run from 0 to 1000; lines keep their width by CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dnge_compress.core.wording import count, extent, percent
from dnge_compress.report.axes import Point, decimals, layer_ticks, thinned, ticks
from dnge_compress.report.markup import tag

SIDE = 1000.0
Mark = tuple[float, str]  # a place (0..1) along an axis and what stands there
COLOURS = 5  # how many series the style sheet tells apart by colour; dashes tell more
FAINTEST = 0.12  # opacity of the lowest rank
# Up to how many layers cells have room for numbers, always and on wide screens; less where one of them is long.
NUMBERED = ((14, "few"), (36, "some"))
LONG_NUMBERED = ((6, "few"), (14, "some"))
SHORT = 4  # characters
CROWDED = 36  # more columns than this stand without gaps


def bar(share: float, original: float | None = None) -> Markup:
    """A bar from zero, `share` (0..1) of its place long; a line marks the original."""
    parts = [tag("rect", class_="ghost", width=SIDE, height=SIDE), tag("rect", width=SIDE * share, height=SIDE)]
    return _inline([*parts, _tick(original)], "bar")


def dot(place: float, original: float | None = None) -> Markup:
    """A dot on a scale whose ends are the lowest and the highest value; a stem leads to the original."""
    # Round caps reach over the end of a line, so the scale keeps off the edges.
    at, origin = (40 + 920 * p if p is not None else None for p in (place, original))
    assert at is not None
    parts: list[Markup | None] = [_line("axis", (0, SIDE / 2), (SIDE, SIDE / 2))]
    if origin is not None:
        parts.append(_line("stem", (origin, SIDE / 2), (at, SIDE / 2)))
    return _inline([*parts, _tick(original, 40), _line("point", (at, SIDE / 2), (at, SIDE / 2))], "dots")


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
    return _plot(
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
        drawn = tag("path", d=_through(places), class_=f"{kind} series-{number % COLOURS} dash-{number % 4}")
        marks = [_line(f"point series-{number % COLOURS}", p, p) for p in places if math.isfinite(p[1])]
        shown = [drawn, *marks] if kind == "held-out" and len(places) <= 60 else [drawn]
        return tag("g", tag("title", label), *shown) if places else None

    # Held-out lines come last and lie on top; among them the job's own, which comes first, is topmost.
    numbered = [*enumerate(found)][::-1]
    lines = [path(thinned(c.train), "train", i, f"{c.name}: training batches") for i, c in numbered]
    lines += [path(c.held_out, "held-out", i, f"{c.name}: held-out rows") for i, c in numbered]
    shown = [*(_line("rule", (0, y), (SIDE, y)) for y in (SIDE * i / (len(up) - 1) for i in range(len(up)))), *lines]
    places = decimals(up)
    return _plot(
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
    rules = [_line("rule", (0, SIDE * i / (len(ys) - 1)), (SIDE, SIDE * i / (len(ys) - 1))) for i in range(len(ys))]
    dots = [
        tag("g", tag("title", f"{x:g}: {y:.3g}"), _line("point series-0", place, place))
        for (x, y), place in zip(points, places, strict=True)
    ]
    shapes = [*rules, _tick(None if marked is None else marked / right)]
    shapes += [tag("path", d=_through(places), class_="held-out series-0 dash-0"), *dots]
    said = "" if marked is None else f"; the upright line marks {marked:g}"
    below, beside = decimals(xs), decimals(ys)
    return _plot(
        [shape for shape in shapes if shape is not None],
        (f"{up} over {across}", f"{'; '.join(f'{x:g}: {y:.3g}' for x, y in points)}{said}."),
        left=[(y / top, f"{y:.{beside}f}") for y in ys],
        below=[(x / right, f"{x:.{below}f}") for x in xs],
        kind="curves",
    )


@dataclass(frozen=True)
class Tried:
    """A model in a plane of size and quality: where it stands, what a pointer is told, and the word beside it."""

    size: float
    quality: float
    label: str
    word: str = ""


def pareto(found: Sequence[Tried], across: str, up: str, *, is_high_good: bool) -> Markup:
    """Models by size, from zero, and quality, from the lowest to the highest; a line leads along those that no smaller
    model equals or beats, the others stand off it. `across` and `up` say what the axes are. All are finite, one at
    least is larger than nothing."""
    front = _front(found, is_high_good)
    xs, ys = ticks(0, max(t.size for t in found)), ticks(*extent(t.quality for t in found))
    right, low, high = xs[-1], ys[0], ys[-1]
    beside = decimals(ys)

    def place(t: Tried) -> tuple[float, float]:
        return t.size / right * SIDE, (high - t.quality) / (high - low) * SIDE

    rules = [_line("rule", (0, SIDE * i / (len(ys) - 1)), (SIDE, SIDE * i / (len(ys) - 1))) for i in range(len(ys))]
    line = tag("path", d=_through([place(t) for t in front]), class_="held-out series-0 dash-0")
    dots = [
        tag("g", tag("title", t.label), _line(f"point series-{0 if t in front else 1}", place(t), place(t)))
        for t in found
    ]
    words = [(place(t), t.word) for t in found if t.word]
    said = "; ".join(t.label for t in found)
    return _plot(
        [*rules, line, *dots],
        (f"{up} over {across}", f"{said}. The line leads along those that no smaller one equals or beats."),
        left=[((y - low) / (high - low), f"{y:.{beside}f}") for y in ys],
        below=[(x / right, count(x)) for x in xs],
        kind="curves",
        words=words,
    )


def _front(found: Sequence[Tried], is_high_good: bool) -> list[Tried]:
    """Those that are better than every smaller one, the smallest first."""
    sign = -1 if is_high_good else 1
    front: list[Tried] = []
    for t in sorted(found, key=lambda t: (t.size, sign * t.quality)):
        if not front or sign * t.quality < sign * front[-1].quality:
            front.append(t)
    return front


def swatch(number: int) -> Markup:
    """The line of a series, for the legend."""
    return _inline(
        [_line(f"held-out series-{number % COLOURS} dash-{number % 4}", (0, SIDE / 2), (SIDE, SIDE / 2))], "swatch"
    )


@dataclass(frozen=True)
class Shade:
    """A cell of a heat map: its strength (0..1; None is an outline), the number in it, and what a pointer is told."""

    strength: float | None
    text: str
    label: str


def heat(title: str, description: str, layers: Sequence[int], cells: Mapping[int, Shade]) -> Markup:
    """A cell per layer. Layers without one stay empty."""
    drawn = _svg(
        [_cell(cells[layer], i, len(layers)) for i, layer in enumerate(layers) if layer in cells],
        (title, description),
        box=f"0 0 {len(layers)} 1",
    )
    rooms = NUMBERED if all(len(shade.text) <= SHORT for shade in cells.values()) else LONG_NUMBERED
    room = next((f" numbers-{size}" for most, size in rooms if len(layers) <= most), "")
    spans = (tag("span", cells[layer].text if layer in cells else None) for layer in layers)
    numbers = tag("div", *spans, class_="numbers", aria_hidden="true") if room else None
    return tag("div", drawn, numbers, class_=f"strip{room}", style=f"--layers:{len(layers)}")


def layer_axis(layers: Sequence[int]) -> Markup:
    """The numbers of the layers, to stand under rows of `heat`."""
    marks = [((i + 0.5) / len(layers), f"{layer}") for i, layer in layer_ticks(layers)]
    return tag("div", _below(marks), class_="strip-axis", style=f"--layers:{len(layers)}")


def _cell(shade: Shade, position: int, count: int) -> Markup:
    label = tag("title", shade.label)
    gap = 0.08 if count <= CROWDED else 0.0
    place = {"x": position + gap / 2, "y": 0.0, "width": 1 - gap, "height": 1.0}
    if shade.strength is None:
        return tag("rect", label, class_="none", **place)
    return tag("rect", label, fill_opacity=FAINTEST + (1 - FAINTEST) * shade.strength, **place)


def _plot(
    shapes: Iterable[Markup],
    described: tuple[str, str],
    *,
    left: Sequence[Mark],
    below: Sequence[Mark],
    kind: str,
    style: str | None = None,
    words: Sequence[tuple[tuple[float, float], str]] = (),
) -> Markup:
    """An SVG with its ticks; `described` are its title and description, `words` stand beside places in it."""
    marks = (tag("span", text, style=f"bottom:{100 * at:.2f}%") for at, text in left)
    beside = tag("div", *marks, class_="left", aria_hidden="true")
    drawn = _svg(shapes, described)
    if words:
        drawn = tag("div", drawn, *(_word(place, word) for place, word in words), class_="worded")
    return tag("div", beside, drawn, _below(below), class_=f"plot {kind}", style=style)


def _word(place: tuple[float, float], word: str) -> Markup:
    """A word left of a place in the right half, right of one in the left half."""
    x, y = place
    side = "before" if x > SIDE / 2 else "behind"
    return tag("span", word, class_=side, style=f"left:{x / SIDE:.2%};top:{y / SIDE:.2%}", aria_hidden="true")


def _below(marks: Sequence[Mark]) -> Markup:
    spans = (
        tag("span", text, style=f"left:{100 * at:.2f}%", class_="end" if at > 0.99 else None) for at, text in marks
    )
    return tag("div", *spans, class_="below", aria_hidden="true")


def _svg(shapes: Iterable[Markup], described: tuple[str, str], box: str = "0 0 1000 1000") -> Markup:
    """A drawing that screen readers describe; `described` are its title and description."""
    title, description = described
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *shapes,
        viewBox=box,
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}. {description}",
    )


def _inline(shapes: Iterable[Markup | None], kind: str) -> Markup:
    """A drawing beside a number that says the same, so it is hidden from screen readers."""
    return tag("svg", *shapes, class_=kind, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true")


def _tick(place: float | None, margin: float = 0) -> Markup | None:
    if place is None:
        return None
    x = margin + (SIDE - 2 * margin) * place
    return _line("mark", (x, 0), (x, SIDE))


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Markup:
    return tag("path", d=_through([start, end]), class_=kind)


def _through(places: Sequence[tuple[float, float]]) -> str:
    """A path through places; it breaks where a value isn't finite."""
    steps, pen = [], "M"
    for x, y in places:
        if not math.isfinite(y):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(steps)
