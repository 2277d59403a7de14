"""Which widths can change together, and to what: the legality of a plan.

Plain transformers rebuilds a network from its config, so spaces counted by one config key must shrink alike, and some
keys allow few values or none. A group has T *steps*; at step t every space of it keeps t/T of its units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.joining import Joining
from dnge_compress.graph.types import ALIGNED, ConfigField, ModelGraph, Space
from dnge_compress.plans.held import held, inside_of, is_protected, lies_elsewhere, refuse_unmatched
from dnge_compress.recipes.schema import Prune

Block = tuple[str, int]  # a layer space, and which of its units


@dataclass(frozen=True, kw_only=True)
class TiedWidths:
    """Spaces of one kind of width that shrink together. `legal` lists the allowed steps, ascending, `steps` last."""

    kind: str
    spaces: tuple[str, ...]
    steps: int
    legal: tuple[int, ...]

    def at_most(self, fraction: float) -> int:
        """The largest legal step of at most `fraction` of all, or the smallest legal one."""
        fitting = [t for t in self.legal if t <= fraction * self.steps + 1e-9]
        return fitting[-1] if fitting else self.legal[0]

    def nearest(self, fraction: float) -> int:
        """The legal step closest to `fraction`; of two, the larger."""
        return min(self.legal, key=lambda t: (abs(t - fraction * self.steps), -t))


def width_groups(graph: ModelGraph, prune: Prune) -> tuple[list[TiedWidths], list[str]]:
    """The groups that a recipe allows to shrink (no layer spaces), and notes on what must stay and why."""
    refuse_unmatched(graph, prune.protected)
    notes: list[str] = []
    groups = []
    for names, fields in _tied(graph, uneven=prune.uneven):
        spaces = [graph.space(n) for n in names]
        kind = spaces[0].kind
        if not any(s.kind in prune.kinds for s in spaces) or lies_elsewhere(graph, names, prune):
            continue
        fixed = next((f.fixed for f in fields if f.fixed), "")
        if fixed and not prune.uneven:
            notes.append(f"{kind}s stay: {fixed}")
            continue
        reasons = held(graph, names, prune)
        if reasons:
            notes += reasons
            continue
        steps = math.gcd(*(s.units for s in spaces))
        legal = tuple(t for t in range(1, steps + 1) if t == steps or _is_legal(t, steps, spaces, fields, prune, graph))
        if prune.align != "none" and len(legal) == 1:
            notes.append(
                f"{', '.join(names[:3])}{'…' if len(names) > 3 else ''} stay: align {prune.align} allows no less"
            )
            continue
        groups.append(TiedWidths(kind=kind, spaces=tuple(names), steps=steps, legal=legal))
        if not prune.uneven:
            notes += _restrictions(groups[-1], fields, spaces)
    notes += graph.notes
    notes += [f"{kind}s stay: {why}" for kind, why in graph.reasons if kind in prune.kinds and not graph.of_kind(kind)]
    return groups, notes


def droppable(graph: ModelGraph, prune: Prune) -> list[Block]:
    """(layer space, unit) of every block that may be dropped under the recipe."""
    if "layer" not in prune.kinds:
        return []
    return [
        (space.name, i)
        for space in graph.of_kind("layer")
        for i, module in enumerate(space.modules)
        if i not in space.protected and not is_protected(module, prune) and module.startswith(inside_of(prune.within))
    ]


def refuse_all_fixed(graph: ModelGraph, prune: Prune) -> None:
    """Raise BudgetError where nothing may go under the recipe; it takes no scores to know that."""
    groups, notes = width_groups(graph, prune)
    if not groups and not droppable(graph, prune):
        raise all_fixed(prune, notes)


def all_fixed(prune: Prune, notes: Sequence[str]) -> BudgetError:
    """The error for a recipe under which nothing may go."""
    where = f"within '{prune.within}'" if prune.within else "here"
    return BudgetError(
        f"nothing of the kinds {', '.join(prune.kinds)} can be removed {where}: {'; '.join(notes) or 'no such space'}"
    )


def _tied(graph: ModelGraph, uneven: bool) -> list[tuple[list[str], list[ConfigField]]]:
    """Prunable width spaces, tied by the config keys that count them; each on its own where nothing ties them."""
    prunable = [s.name for s in graph.of_kind("neuron", "head", "channel", "expert")]
    joining = Joining(prunable)
    fields = [f for f in graph.config_fields if f.spaces and f.spaces[0] in prunable]
    by_key: dict[tuple[str, int | None], str] = {}
    for f in [f for f in fields if f.is_even or not uneven]:
        anchor = by_key.setdefault((f.key, f.index), f.spaces[0])
        for name in f.spaces:
            joining.join(anchor, name)
    for spaces in (*graph.stacks.values(), *graph.equal):  # one tensor holds all experts, so all are as wide
        for name in spaces:
            joining.join(spaces[0], name)
    members: dict[str, list[str]] = {}
    for name in prunable:
        members.setdefault(joining.root(name), []).append(name)
    return [(names, [f for f in fields if set(f.spaces) & set(names)]) for names in members.values()]


def _is_legal(
    t: int, steps: int, spaces: Sequence[Space], fields: Sequence[ConfigField], prune: Prune, graph: ModelGraph
) -> bool:
    if t < prune.min_keep * steps:
        return False
    multiples = {"neuron": prune.width_multiple, "channel": prune.width_multiple, "head": prune.shards}
    if any(s.units * t // steps % multiples.get(s.kind, 1) for s in spaces):
        return False
    units = {s.name: s.units * t // steps for s in spaces}
    if any(columns % prune.columns_multiple for columns in _columns_read(graph, spaces, units)):
        return False
    if prune.uneven:
        fields = [f for f in fields if f.is_even]
        stacked = {name for names in graph.stacks.values() for name in names}
        if any(units[s.name] % ALIGNED for s in spaces if s.name in stacked and s.units % ALIGNED == 0):
            return False
    in_steps = all(units[name] % f.step == 0 for f in fields for name in f.spaces)
    return in_steps and all(f.allows(_value(f, t, steps, spaces)) for f in fields)


def _columns_read(graph: ModelGraph, spaces: Sequence[Space], units: Mapping[str, int]) -> Iterable[int]:
    """How many columns the matrices have that read heads, if so many are left of each space."""
    found: dict[tuple[str, int], int] = {}
    for space in spaces:
        for slot in graph.consumers(space.name) if space.kind == "head" else ():
            found[(slot.param, slot.axis)] = found.get((slot.param, slot.axis), 0) + units[space.name] * slot.width
    return found.values()


def _value(field: ConfigField, t: int, steps: int, spaces: Sequence[Space]) -> float:
    """What a config key says at step t: its factor times the units that stay."""
    units = next(s.units for s in spaces if s.name == field.spaces[0])
    return field.value(units * t // steps)


def _restrictions(group: TiedWidths, fields: Sequence[ConfigField], spaces: Sequence[Space]) -> list[str]:
    for f in fields:
        if f.divides is not None:
            values = [_value(f, t, group.steps, spaces) for t in group.legal]
            return [f"{f.key} must divide {f.divides} to reload in plain transformers: one of {values}"]
    return []
