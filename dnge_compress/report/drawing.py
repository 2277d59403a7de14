"""What all drawings are made of: SVG stretched over its place, text around it in HTML, so that letters keep their size
on every screen. Horizontal coordinates and vertical ones run from 0 to 1000; lines keep their width by CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from dnge_compress.report.markup import tag

SIDE = 1000.0
CROWDED = 36  # more columns than this stand without gaps
Mark = tuple[float, str]  # a place (0..1) along an axis and what stands there


def framed(
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
    drawn = svg(shapes, described)
    if words:
        drawn = tag("div", drawn, *(_word(place, word) for place, word in words), class_="worded")
    return tag("div", beside, drawn, numbers_below(below), class_=f"plot {kind}", style=style)


def _word(place: tuple[float, float], word: str) -> Markup:
    """A word left of a place in the right half, right of one in the left half."""
    x, y = place
    side = "before" if x > SIDE / 2 else "behind"
    return tag("span", word, class_=side, style=f"left:{x / SIDE:.2%};top:{y / SIDE:.2%}", aria_hidden="true")


def numbers_below(marks: Sequence[Mark]) -> Markup:
    """The numbers under a drawing."""
    spans = (
        tag("span", text, style=f"left:{100 * at:.2f}%", class_="end" if at > 0.99 else None) for at, text in marks
    )
    return tag("div", *spans, class_="below", aria_hidden="true")


def svg(shapes: Iterable[Markup], described: tuple[str, str], box: str = "0 0 1000 1000") -> Markup:
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


def inline(shapes: Iterable[Markup | None], kind: str) -> Markup:
    """A drawing beside a number that says the same, so it is hidden from screen readers."""
    return tag("svg", *shapes, class_=kind, viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true")


def tick(place: float | None, margin: float = 0) -> Markup | None:
    """An upright line at a place (0..1) between the margins; none for None."""
    if place is None:
        return None
    x = margin + (SIDE - 2 * margin) * place
    return line("mark", (x, 0), (x, SIDE))


def rules(count: int) -> list[Markup]:
    """So many level lines, from the top to the bottom."""
    return [line("rule", (0, y), (SIDE, y)) for y in (SIDE * i / (count - 1) for i in range(count))]


def line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Markup:
    """A straight line; one without length is a point."""
    return tag("path", d=through([start, end]), class_=kind)


def through(places: Sequence[tuple[float, float]]) -> str:
    """A path through places; it breaks where a value isn't finite."""
    steps, pen = [], "M"
    for x, y in places:
        if not math.isfinite(y):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(steps)
