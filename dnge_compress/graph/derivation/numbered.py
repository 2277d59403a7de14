"""Modules that a number of the config counts, as experts with modules of their own, and the rows that go with them."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from dnge_compress.graph.derivation.architecture import Outline
from dnge_compress.graph.derivation.config_keys import Key, changed, value_at
from dnge_compress.graph.derivation.readings import Axis, Base, Counted, attributes


def numbered_modules(base: Base, key: Key) -> Counted | None:
    """The reading of a number as that of modules in several stacks, whose last ones go with it, and of rows for each:
    with nothing else, they would be blocks."""
    value = value_at(base.config, key)
    if not isinstance(value, int) or value < 2:
        return None
    fewer = base.architecture.outline(changed(base.config, {key: value - 1}))
    stacks = _stacks(base.outline, fewer, value) if fewer is not None else ()
    if fewer is None or not stacks:
        return None
    rows: dict[Axis, int] = {}
    for name, shape in fewer.shapes.items():
        for axis, (old, new) in enumerate(zip(base.outline.shapes[name], shape, strict=True)):
            if old != new and (old, new) != (value, value - 1):
                return None
            if old != new:
                rows[name, axis] = 1
    counts = attributes(base.outline, fewer, 1)
    found = Counted(keys=((key, Fraction(1)),), units=value, rows=rows, counts=counts, explicit=base.explicit)
    return replace(found, modules=stacks) if rows else None


def _stacks(base: Outline, fewer: Outline, value: int) -> tuple[tuple[str, ...], ...]:
    """The modules of every stack that loses its last one; none if anything else is lost."""
    lost = base.shapes.keys() - fewer.shapes.keys()
    if fewer.shapes.keys() - base.shapes.keys() or any(
        len(base.shapes[name]) != len(shape) for name, shape in fewer.shapes.items()
    ):
        return ()
    last = re.compile(rf"^(.*\D){value - 1}\.")
    stacks: dict[str, None] = {}
    for name in sorted(lost):
        found = last.match(name)
        if found is None:
            return ()
        stacks[found[1]] = None
    modules = tuple(tuple(f"{stem}{i}" for i in range(value)) for stem in stacks)
    whole = all(any(name.startswith(f"{m}.") for name in base.shapes) for own in modules for m in own)
    return modules if whole else ()
