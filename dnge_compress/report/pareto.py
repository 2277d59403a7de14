"""Models by size and quality, and those among them that no smaller one equals or beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dnge_compress.core.wording import counts, extent
from dnge_compress.report import drawing
from dnge_compress.report.axes import decimals, ticks
from dnge_compress.report.drawing import SIDE
from dnge_compress.report.markup import tag


@dataclass(frozen=True)
class Tried:
    """A model in a plane of size and quality: where it stands, what a pointer is told, and the word beside it."""

    size: float
    quality: float
    label: str
    word: str = ""


def pareto(found: Sequence[Tried], across: str, up: str, *, is_high_good: bool) -> Markup:
    """Models by size and quality; a line leads along those that no smaller model equals or beats, the others stand off
    it. `across` and `up` say what the axes are. All are finite."""
    front = _front(found, is_high_good)
    xs, ys = ticks(*extent(t.size for t in found)), ticks(*extent(t.quality for t in found))
    whole = [x for x in xs if x == round(x)]  # a step may be smaller where toys are compared
    left, right, low, high = xs[0], xs[-1], ys[0], ys[-1]
    beside = decimals(ys)

    def place(t: Tried) -> tuple[float, float]:
        return (t.size - left) / (right - left) * SIDE, (high - t.quality) / (high - low) * SIDE

    rules = drawing.rules(len(ys))
    line = tag("path", d=drawing.through([place(t) for t in front]), class_="held-out series-0 dash-0")
    dots = [
        tag("g", tag("title", t.label), drawing.line(f"point series-{0 if t in front else 1}", place(t), place(t)))
        for t in found
    ]
    words = [(place(t), t.word) for t in found if t.word]
    said = "; ".join(t.label for t in found)
    return drawing.framed(
        [*rules, line, *dots],
        (f"{up} over {across}", f"{said}. The line leads along those that no smaller one equals or beats."),
        left=[((y - low) / (high - low), f"{y:.{beside}f}") for y in ys],
        below=[((x - left) / (right - left), size) for x, size in zip(whole, counts(whole), strict=True)],
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
