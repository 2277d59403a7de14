"""Heat maps: a row of cells for layers, the stronger the more there is of something, with numbers where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dnge_compress.report import drawing
from dnge_compress.report.axes import layer_ticks
from dnge_compress.report.drawing import CROWDED
from dnge_compress.report.markup import tag

FAINTEST = 0.12  # opacity of the lowest
# Up to how many layers cells have room for numbers, always and on wide screens; less where one of them is long.
NUMBERED = ((14, "few"), (36, "some"))
LONG_NUMBERED = ((6, "few"), (14, "some"))
SHORT = 4  # characters


@dataclass(frozen=True)
class Shade:
    """A cell of a heat map: its strength (0..1; None is an outline), the number in it, and what a pointer is told."""

    strength: float | None
    text: str
    label: str


def heat(title: str, description: str, layers: Sequence[int], cells: Mapping[int, Shade]) -> Markup:
    """A cell per layer. Layers without one stay empty."""
    drawn = drawing.svg(
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
    return tag("div", drawing.numbers_below(marks), class_="strip-axis", style=f"--layers:{len(layers)}")


def _cell(shade: Shade, position: int, count: int) -> Markup:
    label = tag("title", shade.label)
    gap = 0.08 if count <= CROWDED else 0.0
    place = {"x": position + gap / 2, "y": 0.0, "width": 1 - gap, "height": 1.0}
    if shade.strength is None:
        return tag("rect", label, class_="none", **place)
    return tag("rect", label, fill_opacity=FAINTEST + (1 - FAINTEST) * shade.strength, **place)
