"""Differentiate an architecture with respect to its config: which axes move when a number does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

from dnge_compress.graph.derivation.architecture import Architecture, Outline
from dnge_compress.graph.derivation.config_keys import Key, Values, changed, number_keys, spelled, value_at

Axis: TypeAlias = tuple[str, int]  # tensor name, axis
Moved: TypeAlias = dict[Axis, tuple[int, int]]  # size before and after

PROBE = 24  # a value for keys that are None, to see what they set
MOST_SHARE = 0.85  # of all matrices: what moves more is the width of the residual stream
HEAD_SIZE = "head_dim"
OTHER_HEAD_SIZES = {"d_kv", "d_head"}
HEADS = re.compile("^(?!.*(dim|size|d_head|ratio)).*head")  # counts of heads, not their sizes
AT_ONCE = (1, 2)  # heads that go together: differential attention subtracts one of a pair from the other
MOST_PARTS = 16  # of the steps tried for a width that moves in steps


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Axes that a number of the config counts: `units` of them now; with k units, `keys` say `factor` × k each.

    A ratio says k × factor as well, with factor 1 / width. `rows` are rows per unit and axis, `counts` what a module
    attribute changes by per unit, `explicit` the defaults that have to be written out. Query heads go in steps of
    `groups`, one from each group.
    """

    keys: tuple[tuple[Key, Fraction], ...]
    units: int
    rows: Mapping[Axis, int]
    counts: Mapping[tuple[str, str], Fraction]
    explicit: Values
    groups: int = 1
    is_ratio: bool = False
    are_heads: bool = False

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
class _Base:
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


def counted_axes(
    architecture: Architecture, config: Mapping[str, Any], like: Counted | None = None
) -> Iterator[Counted]:
    """Every reading of the config's numbers as counts of axes; alternatives for heads stand in order of preference.

    With `like`, only the readings of the same numbers as in another config of the architecture.
    """
    outline = architecture.outline(config)
    if outline is None:
        return
    explicit = explicit_defaults(architecture, config, outline, None if like is None else set(like.explicit))
    base = _Base(architecture, changed(config, explicit), outline, explicit)
    numbers = list(dict.fromkeys(number_keys(base.config)))
    wanted = numbers if like is None else [key for key in numbers if key in dict(like.keys)]
    for key in wanted:
        if not _is_head_count(key) and (found := _single(base, key)):
            yield found
    for key in filter(_is_head_count, wanted):
        for found in _heads(base, key, numbers):
            yield replace(found, are_heads=True)


def _name(key: Key) -> str:
    return str(key[-1] if isinstance(key[-1], str) else key[-2])


def explicit_defaults(
    architecture: Architecture, config: Mapping[str, Any], outline: Outline, only: set[Key] | None = None
) -> dict[Key, Any]:
    """Keys that are None, or a head size that isn't there, and the sizes that stand behind them."""
    base = _Base(architecture, config, outline, {})
    found: dict[Key, Any] = {}
    for key in [key for key in _unset(config) if only is None or key in only]:
        probed = base.moved({key: PROBE})
        guesses = {Fraction(PROBE * old, new) for old, new in probed[1].values()} if probed else set()
        for guess in sorted(guesses):
            if guess.denominator == 1 and architecture.outline(changed(config, {key: int(guess)})) == outline:
                found[key] = int(guess)
                break
    return found


def _unset(config: Mapping[str, Any], path: Key = ()) -> Iterator[Key]:
    for name, value in config.items():
        if isinstance(value, Mapping) and name not in ("id2label", "label2id"):
            yield from _unset(value, (*path, name))
        elif value is None and not name.endswith(("_id", "_ids", "dtype", "type", "_implementation")):
            yield (*path, name)
    has_heads = any("head" in name and type(value) is int for name, value in config.items())
    if has_heads and HEAD_SIZE not in config and not OTHER_HEAD_SIZES & config.keys():
        yield (*path, HEAD_SIZE)


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


def _single(base: _Base, key: Key) -> Counted | None:
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


def _at_rates(base: _Base, key: Key, rates: Mapping[Axis, Fraction]) -> Counted | None:
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


def _one_less(base: _Base, key: Key, factor: Fraction, units: int, is_ratio: bool) -> Counted | None:
    fewer = factor * (units - 1)
    changed_to = base.moved({key: float(fewer) if is_ratio or fewer.denominator != 1 else int(fewer)})
    return None if changed_to is None else _read(base, changed_to, 1, ((key, factor),), units)


def _says(base: _Base, counted: Counted, units: int) -> bool:
    """Whether the config makes exactly so many units: some models round widths to multiples."""
    changed_to = base.moved(counted.values(units))
    expected = {axis: rows * (counted.units - units) for axis, rows in counted.rows.items()}
    return changed_to is not None and {axis: old - new for axis, (old, new) in changed_to[1].items()} == expected


def _heads(base: _Base, key: Key, numbers: list[Key]) -> Iterator[Counted]:
    """A head count with the key/value heads it goes with; query heads, one from each group; alone; and with a width of
    which every head has a block."""
    value = value_at(base.config, key)
    if not isinstance(value, int):
        return
    for second in numbers:
        small = value_at(base.config, second)
        if not _is_head_count(second) or second[:-1] != key[:-1] or second == key or not isinstance(small, int):
            continue
        if value % small or small == 1 or _stand_apart(base, key, second):
            continue
        share = value // small
        for at_once in (n for n in AT_ONCE if small % n == 0):
            keys = ((key, Fraction(share * at_once)), (second, Fraction(at_once)))
            if found := _fewer(base, keys, small // at_once):
                yield found
        for at_once in (n for n in AT_ONCE if share > 1 and small % n == 0):
            groups = small // at_once
            if found := _fewer(base, ((key, Fraction(at_once)),), value // at_once, groups):
                yield replace(found, groups=groups)
    if alone := _single(base, key):
        yield alone
    elif _grows_elsewhere(base, key):
        for width in numbers:
            size = value_at(base.config, width)
            if _is_head_count(width) or width[:-1] != key[:-1] or not isinstance(size, int) or size == value:
                continue
            if found := _fewer(base, ((key, Fraction(1)), (width, Fraction(size, value))), value):
                yield found


def _fewer(base: _Base, keys: tuple[tuple[Key, Fraction], ...], units: int, step: int = 1) -> Counted | None:
    """The reading of some numbers together, from one step less or half as many: some configs take only numbers that
    divide the width."""
    for fewer in dict.fromkeys((step, units // step // 2 * step)):
        values = {k: factor * (units - fewer) for k, factor in keys}
        if not 0 < fewer < units or any(v.denominator != 1 for v in values.values()):
            continue
        together = base.moved({k: int(v) for k, v in values.items()})
        if together and (found := _read(base, together, fewer, keys, units)):
            return found
    return None


def _stand_apart(base: _Base, key: Key, other: Key) -> bool:
    """Whether two numbers count heads of different modules, as those of an encoder and a decoder."""
    places = []
    for alone in (key, other):
        halved = base.moved({alone: value_at(base.config, alone) // 2})
        places.append({name.rsplit(".", 2)[0] for name, _ in halved[1]} if halved else set())
    return all(places) and not places[0] & places[1]


def _grows_elsewhere(base: _Base, key: Key) -> bool:
    """Whether fewer of these alone build nothing, or make other axes longer."""
    value = value_at(base.config, key)
    fewer = [base.moved({key: n}) for n in dict.fromkeys((value - 1, value // 2)) if n > 0]
    return all(found is None or any(new > old for old, new in found[1].values()) for found in fewer)


def _is_head_count(key: Key) -> bool:
    return HEADS.search(_name(key)) is not None


def _read(
    base: _Base, changed_to: tuple[Outline, Moved], fewer: int, keys: tuple[tuple[Key, Fraction], ...], units: int
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
    counts = {
        place: Fraction(old - other.counts[place], fewer)
        for place, old in base.outline.counts.items()
        if other.counts.get(place, old) != old
    }
    return Counted(keys=keys, units=units, rows=rows, counts=counts, explicit=base.explicit)
