"""What a model loses at several ratios: sizes, predicted and measured damage, speed, and where it begins to cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dnge_compress.core.document import Cell, Column, Document, Figure, Notes, Paragraph, Section, Table
from dnge_compress.core.strict_json import json_values
from dnge_compress.core.terminal import Printable
from dnge_compress.core.wording import UNKNOWN, counts, duration, percent
from dnge_compress.plans.expected import Expected
from dnge_compress.report import plots
from dnge_compress.report.page import page
from dnge_compress.report.pareto import Tried, pareto
from dnge_compress.report.terminal_plot import drawn


@dataclass(frozen=True, kw_only=True)
class RatioPoint:
    """One plan of a curve.

    `params` and `bytes` are what is left, `predicted_cost` the scorer's sum, `expected` the damage on real inputs,
    `damage` that which was measured on calibration inputs, or on what was held out of the data, in nats per label,
    after the one-shot repair. `quality` is the curve's measure on held-out inputs. `speedup` is the original's time for
    a forward pass over this one's, `speed_noise` the share by which two measurements of it may differ.
    """

    ratio: float
    params: int
    bytes: int
    predicted_cost: float | None
    expected: Expected | None
    damage: float
    quality: float | None
    speedup: float
    speed_noise: float


@dataclass(frozen=True, kw_only=True)
class RatioCurve(Printable):
    """Plans of several ratios from one scoring, the smallest first. `print(curve)` draws table and plot.

    `knee` is the ratio behind which damage grows fastest, None for fewer than two ratios; `knee_damage` what is left
    there of the measured damage after the whole repair. `measure` names what `quality` is: "perplexity", "accuracy", or
    "damage" in nats on held-out inputs; "" where none were given.
    """

    points: tuple[RatioPoint, ...]
    params: int
    bytes: int
    measure: str = ""
    quality: float | None = None
    knee: float | None = None
    knee_damage: float | None = None
    recipe_name: str = ""
    scorer: str = ""
    model_name: str = ""
    notes: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)

    def document(self) -> Document:
        """The curve in sections."""
        known = [(p.ratio, p.damage) for p in self.points if math.isfinite(p.damage)]
        blocks: list[Any] = [self._table()]
        if len(known) > 1:
            figure = plots.tradeoff([(0.0, 0.0), *known], self.knee, "ratio", "nats of damage, measured")
            blocks.append(Figure(figure, drawn([(0.0, 0.0), *known], self.knee)))
        blocks.append(Paragraph(self._caption(), "quiet"))
        front = self._pareto()
        times = " · ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.timings.items())
        sections = [Section("What each ratio costs", tuple(blocks))]
        if front:
            sections.append(front)
        if times:
            sections.append(Section("Time", (Paragraph(times, "quiet", ("terminal", "page")),)))
        if self.notes:
            sections.append(Section("Notes", (Notes(self.notes, "the curve"),)))
        facts = (self.recipe_name, f"scorer {self.scorer}", f"knee at {self.knee:g}" if self.knee else "")
        return Document(
            title=self.model_name, facts=tuple(filter(None, facts)), sections=tuple(sections), eyebrow="Curve"
        )

    def _pareto(self) -> Section | None:
        """Size against quality, on pages; quality is damage where nothing held out was given."""
        measure = self.measure or "damage"
        whole = 0.0 if measure == "damage" else self.quality
        known = [(p, p.quality if self.measure else p.damage) for p in self.points]
        found = [
            Tried(p.params, value, self._said(p.params, measure, value, f"ratio {p.ratio:g}"), self._word(p))
            for p, value in known
            if value is not None and math.isfinite(value)
        ]
        if not found or whole is None or not math.isfinite(whole):
            return None
        original = Tried(self.params, whole, self._said(self.params, measure, whole, "original"), "original")
        unit = "held-out" if self.measure else "nats"
        figure = pareto([*found, original], "parameters", f"{measure}, {unit}", is_high_good=measure == "accuracy")
        better = "higher" if measure == "accuracy" else "lower"
        caption = f"Up: {measure} ({unit}), {better} is better. Across: parameters. The line leads along the best."
        return Section("Size and quality", (Figure(figure), Paragraph(caption, "quiet", ("page",))))

    def _word(self, point: RatioPoint) -> str:
        return f"{point.ratio:g}, knee" if point.ratio == self.knee else f"{point.ratio:g}"

    def _said(self, params: int, measure: str, value: float, what: str) -> str:
        return f"{what}: {self._sizes[params]} parameters, {measure} {_shown(measure, value)}"

    @property
    def _sizes(self) -> dict[int, str]:
        """All numbers of parameters, as they are written."""
        return _spelled([self.params, *(p.params for p in self.points)])

    @property
    def _weights(self) -> dict[int, str]:
        """All numbers of bytes, as they are written."""
        return _spelled([self.bytes, *(p.bytes for p in self.points)], "B")

    def _table(self) -> Table:
        columns = [
            Column(title="ratio", kind="text"),
            *(Column(title=title) for title in ("parameters", "bytes")),
            Column(title="expected damage", unit="nats"),
            Column(title="measured", unit="nats"),
        ]
        if self.measure:
            columns.append(Column(title=self.measure, unit="held-out"))
        columns.append(Column(title="speed", unit="of the original"))
        quality = (Cell(text=_shown(self.measure, self.quality)),) if self.measure else ()
        nothing = Cell(text=UNKNOWN, style="quiet")
        sizes = (Cell(text=self._sizes[self.params]), Cell(text=self._weights[self.bytes]))
        rows = [(Cell(text="0"), *sizes, nothing, nothing, *quality, Cell(text="1×"))]
        return Table(columns=tuple(columns), rows=(*rows, *map(self._row, self.points)))

    def _row(self, point: RatioPoint) -> tuple[Cell, ...]:
        is_knee = point.ratio == self.knee
        known = point.expected
        return (
            Cell(text=f"{point.ratio:g}", detail="knee" if is_knee else ""),
            Cell(text=self._sizes[point.params]),
            Cell(text=self._weights[point.bytes]),
            Cell(text=UNKNOWN)
            if known is None
            else Cell(text=f"{known.nats:.2g}", detail=f"{known.low:.2g}–{known.high:.2g}"),
            Cell(text=f"{point.damage:.3g}", style="strong" if is_knee else ""),
            *((Cell(text=_shown(self.measure, point.quality)),) if self.measure else ()),
            Cell(text="1×" if abs(point.speedup - 1) <= self._noise else f"{point.speedup:.2f}×"),
        )

    def _caption(self) -> str:
        text = "Measured after the one-shot repair; compress repairs once more"
        if self.knee_damage is not None:
            text += f" and leaves {self.knee_damage:.3g} nats at {self.knee:g}"
        return f"{text}. Speed: forward passes in turn; differences under {percent(self._noise)} are noise."

    @property
    def _noise(self) -> float:
        """The largest of all points: under one number for the whole column no row may claim more."""
        return max(p.speed_noise for p in self.points)

    def to_html(self) -> str:
        """One page; it holds everything it needs, runs nothing and asks nobody."""
        return page(self.document())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return json_values(self)


def knee_of(points: Sequence[tuple[float, float]]) -> float | None:
    """The ratio at which (ratio, damage) lies farthest below the straight line from (0, 0) to the last point; None
    where nothing lies below it."""
    if len(points) < 2:
        return None
    last, highest = points[-1]
    below = [(ratio / last - damage / highest, ratio) for ratio, damage in points[:-1] if highest > 0]
    most, ratio = max(below, default=(0.0, 0.0))
    return ratio if most > 0 else None


def _spelled(sizes: Sequence[int], unit: str = "") -> dict[int, str]:
    """Sizes, and how they are written beside each other."""
    return dict(zip(sizes, counts(sizes, unit), strict=True))


def _shown(measure: str, value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return percent(value) if measure == "accuracy" else f"{value:.4g}"
