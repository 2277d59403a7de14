"""What a number of the config counts: read off the axes that move when it changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

from dnge_compress.graph.derivation.architecture import Architecture, Outline
from dnge_compress.graph.derivation.config_keys import Key, Values, changed, spelled, value_at

Axis: TypeAlias = tuple[str, int]  # tensor name, axis
Moved: TypeAlias = dict[Axis, tuple[int, int]]  # size before and after

MOST_SHARE = 0.85  # of all matrices: what moves more is the width of the residual stream
MOST_PARTS = 16  # of the steps tried for a width that moves in steps


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Axes that a number of the config counts: `units` of them now; with k units, `keys` say `factor` × k each.

    A ratio says k × factor as well, with factor 1 / width. `rows` are rows per unit and axis, `counts` what a module
    attribute changes by per unit, `explicit` the defaults that have to be written out. Query heads go in steps of
    `groups`, one from each group. Where a unit is a module of its own, `modules` are those of every stack.
    """

    keys: tuple[tuple[Key, Fraction], ...]
    units: int
    rows: Mapping[Axis, int]
    counts: Mapping[tuple[str, str], Fraction]
    explicit: Values
    groups: int = 1
    is_ratio: bool = False
    are_heads: bool = False
    modules: tuple[tuple[str, ...], ...] = ()

    def values(self, units: int) -> dict[Key, Any]:
        """What the config says with so many units."""
        found = {k: f * units for k, f in self.keys}
        whole = {k: not self.is_ratio and v.denominator == 1 for k, v in found.items()}
        return {**self.explicit, **{k: int(v) if whole[k] else float(v) for k, v in found.items()}}

    @property
    def label(self) -> str:
        """The first key, as messages write it."""
        return spelled(self.keys[0][0])


@dataclass(frozen=True)
class Base:
    """The config that numbers are changed in, its defaults written out, and the model it describes."""

    architecture: Architecture
    config: Mapping[str, Any]
    outline: Outline
    explicit: Values

    def moved(self, values: Values) -> tuple[Outline, Moved] | None:
        """What moves under other values; None if they don't build, or make other tensors."""
        other = self.architecture.outline(changed(self.config, values))
        moved = moved_axes(self.outline, other) if other is not None else None
        return (other, moved) if other is not None and moved is not None else None


def moved_axes(base: Outline, other: Outline) -> Moved | None:
    """Axes whose size differs; None where the tensors themselves do."""
    if base.shapes.keys() != other.shapes.keys():
        return None
    moved: Moved = {}
    for name, shape in base.shapes.items():
        new = other.shapes[name]
        if len(new) != len(shape):
            return None
        moved |= {(name, axis): (a, b) for axis, (a, b) in enumerate(zip(shape, new, strict=True)) if a != b}
    return moved


def single(base: Base, key: Key) -> Counted | None:
    """What one number counts: a unit is the smallest step at which every width moves by whole rows."""
    value = value_at(base.config, key)
    others = (value - 1, value // 2, value * 2) if isinstance(value, int) else (value / 2, value * 2)
    for other in others:
        changed_to = base.moved({key: other}) if other > 0 else None
        if changed_to is None:
            continue
        _, moved = changed_to
        if not moved:
            return None
        rates = {axis: Fraction(old - new) / Fraction(value - other) for axis, (old, new) in moved.items()}
        found = _at_rates(base, key, rates)
        if found:
            return found
    return None


def _at_rates(base: Base, key: Key, rates: Mapping[Axis, Fraction]) -> Counted | None:
    """The reading in which every axis moves by its rate, checked with one unit less."""
    value = Fraction(value_at(base.config, key)).limit_denominator(10**6)
    is_ratio = isinstance(value_at(base.config, key), float)
    whole = {axis: rate * value for axis, rate in rates.items()}
    if any(rows.denominator != 1 or rows <= 0 for rows in whole.values()):
        return None
    common = math.gcd(*(int(rows) for rows in whole.values()))
    steps = [common // n for n in range(1, MOST_PARTS + 1) if common % n == 0]
    if not is_ratio:
        steps.insert(0, int(value))
    for units in dict.fromkeys(n for n in steps if n > 1 and common % n == 0):
        factor = value / units
        found = _one_less(base, key, factor, units, is_ratio)
        if found is None or any(found.rows.get(axis, 0) * units != rows for axis, rows in whole.items()):
            continue
        found = replace(found, is_ratio=is_ratio)
        if not is_ratio or all(_says(base, found, n) for n in {units - 3, units * 2 // 3, units // 2 + 1} if n > 0):
            return found
    return None


def _one_less(base: Base, key: Key, factor: Fraction, units: int, is_ratio: bool) -> Counted | None:
    fewer = factor * (units - 1)
    changed_to = base.moved({key: float(fewer) if is_ratio or fewer.denominator != 1 else int(fewer)})
    return None if changed_to is None else read(base, changed_to, 1, ((key, factor),), units)


def _says(base: Base, counted: Counted, units: int) -> bool:
    """Whether the config makes exactly so many units: some models round widths to multiples."""
    changed_to = base.moved(counted.values(units))
    expected = {axis: rows * (counted.units - units) for axis, rows in counted.rows.items()}
    return changed_to is not None and {axis: old - new for axis, (old, new) in changed_to[1].items()} == expected


def fewer_together(base: Base, keys: tuple[tuple[Key, Fraction], ...], units: int, step: int = 1) -> Counted | None:
    """The reading of some numbers together, from one step less or half as many: some configs take only numbers that
    divide the width."""
    for fewer in dict.fromkeys((step, units // step // 2 * step)):
        values = {k: factor * (units - fewer) for k, factor in keys}
        if not 0 < fewer < units or any(v.denominator != 1 for v in values.values()):
            continue
        together = base.moved({k: int(v) for k, v in values.items()})
        if together and (found := read(base, together, fewer, keys, units)):
            return found
    return None


def read(
    base: Base, changed_to: tuple[Outline, Moved], fewer: int, keys: tuple[tuple[Key, Fraction], ...], units: int
) -> Counted | None:
    """The change as rows per unit; None where an axis doesn't move by whole rows, or nearly everything moves."""
    other, moved = changed_to
    rows: dict[Axis, int] = {}
    for axis, (old, new) in moved.items():
        per_unit = Fraction(old - new, fewer)
        if per_unit.denominator != 1 or per_unit <= 0 or per_unit * units > old:
            return None
        rows[axis] = int(per_unit)
    matrices = [name for name, shape in base.outline.shapes.items() if len(shape) > 1]
    touched = {name for name, _ in rows if len(base.outline.shapes[name]) > 1}
    if not touched or (len(touched) > MOST_SHARE * len(matrices) and len(matrices) > 8):
        return None
    return Counted(
        keys=keys, units=units, rows=rows, counts=attributes(base.outline, other, fewer), explicit=base.explicit
    )


def attributes(before: Outline, after: Outline, fewer: int) -> dict[tuple[str, str], Fraction]:
    """What the numbers that modules keep change by per unit."""
    return {
        place: Fraction(old - after.counts[place], fewer)
        for place, old in before.counts.items()
        if after.counts.get(place, old) != old
    }
