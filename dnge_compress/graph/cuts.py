"""One value for "these cuts on this graph": what stays, what it is called afterwards, and what the config says then.

Masking, surgery, repair, counting, legality and reports all take an `AppliedCuts` and ask it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dnge_compress.core.errors import PlanError
from dnge_compress.graph.counting import Prices, price_left, shapes_left
from dnge_compress.graph.paths import prefixes
from dnge_compress.graph.types import ConfigField, Cut, ModelGraph, Shapes, Slot

ConfigKey = tuple[str, int | None]  # a key of the config, and the position where it holds a list


@dataclass(frozen=True)
class AppliedCuts:
    """Cuts on a graph. Raises PlanError for one that doesn't fit: space unknown or not to be cut, unit out of range
    or protected."""

    graph: ModelGraph
    cuts: tuple[Cut, ...] = ()

    def __post_init__(self) -> None:
        for cut in self.cuts:
            space = self.graph.space(cut.space)
            if space.kind in ("fixed", "residual"):
                raise PlanError(f"space '{cut.space}' is {space.kind} and can't be cut")
            if cut.keep[-1] >= space.units:
                raise PlanError(
                    f"the cut on '{cut.space}' keeps unit {cut.keep[-1]}, but the space has {space.units} units"
                )
            lost = sorted(set(space.protected) - set(cut.keep))
            if lost:
                raise PlanError(f"unit {lost[0]} of '{cut.space}' can't be removed")
        for (param, _), spaces in self.graph.stacks.items():
            kept = {self.kept(space) for space in spaces}
            if len(kept) > 1:
                raise PlanError(
                    f"the experts in '{param}' keep {min(kept)} to {max(kept)} units, but lie in one tensor; "
                    "let all keep as many"
                )

        for spaces in self.graph.equal:
            kept = {self.kept(space) for space in spaces}
            if len(kept) > 1:
                raise PlanError(
                    f"{', '.join(spaces)} keep {min(kept)} to {max(kept)} units, but one module has one size for them; "
                    "let all keep as many"
                )

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many units stay of every space that is cut."""
        return {cut.space: len(cut.keep) for cut in self.cuts}

    def kept(self, space: str) -> int:
        """How many units of a space stay; those of a dropped block count as they were."""
        return self.counts.get(space, self.graph.space(space).units)

    @cached_property
    def module_cuts(self) -> tuple[Cut, ...]:
        """The cuts that drop whole modules: blocks, and experts inside of them; the innermost first."""
        cuts = [cut for cut in self.cuts if self.graph.space(cut.space).modules]
        return tuple(sorted(cuts, key=lambda c: -self.graph.space(c.space).modules[0].count(".")))

    @cached_property
    def dropped_modules(self) -> tuple[str, ...]:
        """Paths of the modules that go."""
        return tuple(
            module
            for cut in self.module_cuts
            for i, module in enumerate(self.graph.space(cut.space).modules)
            if i not in cut.keep
        )

    @cached_property
    def dropped_prefixes(self) -> tuple[str, ...]:
        """How the names of their parameters begin ("model.layers.3.")."""
        return tuple(f"{module}." for module in self.dropped_modules)

    @cached_property
    def dropped_spaces(self) -> frozenset[str]:
        """Spaces that disappear with their block."""
        return frozenset(self.graph.spaces_within(*self.dropped_prefixes))

    def path_after(self, path: str) -> str | None:
        """What a module or parameter is called afterwards, since blocks move up; None if it goes with its block."""
        for renamed in self._renamed:
            old = next((old for old in prefixes(path) if old in renamed), None)
            if old is not None:
                new = renamed[old]
                if new is None:
                    return None
                path = new + path[len(old) :]
        return path

    @cached_property
    def _renamed(self) -> list[dict[str, str | None]]:
        """What modules are called afterwards, for every cut that drops some; the innermost first."""
        found = []
        for cut in self.module_cuts:
            modules = self.graph.space(cut.space).modules
            names = iter(modules)
            found.append({m: next(names) if i in set(cut.keep) else None for i, m in enumerate(modules)})
        return found

    def rows_kept(self, param: str, axis: int, rows: int, part: int | None = None) -> Tensor:
        """Indices of the `rows` rows of a parameter, or of one expert's part of it, along an axis that stay."""
        stays = torch.ones(rows, dtype=torch.bool)
        for cut, slot in self._slots.get((param, axis), ()):
            if slot.part == part:
                stays[slot.rows(cut.gone(self.graph.space(cut.space).units))] = False
        return stays.nonzero().squeeze(1)

    def remaining(self, param: str, tensor: Tensor) -> Tensor:
        """What is left of a parameter's tensor."""
        for axis in range(tensor.dim()):
            own = self._slots.get((param, axis), ())
            if any(slot.part is not None for _, slot in own):
                rows = [self.rows_kept(param, axis, tensor.shape[axis], part) for part in range(len(tensor))]
                tensor = torch.stack(
                    [t.index_select(axis - 1, r.to(t.device)) for t, r in zip(tensor, rows, strict=True)]
                )
        for axis in range(tensor.dim()):
            own = self._slots.get((param, axis), ())
            if any(slot.part is None for _, slot in own):
                rows_ = self.rows_kept(param, axis, tensor.shape[axis])
                tensor = tensor.index_select(axis, rows_.to(tensor.device))
        return tensor

    @cached_property
    def _slots(self) -> dict[tuple[str, int], list[tuple[Cut, Slot]]]:
        """The slots of everything that is cut, by parameter and axis."""
        found: dict[tuple[str, int], list[tuple[Cut, Slot]]] = {}
        for cut in self.cuts:
            for slot in self.graph.slots_of(cut.space):
                found.setdefault((slot.param, slot.axis), []).append((cut, slot))
        return found

    @cached_property
    def params(self) -> tuple[str, ...]:
        """The tensors that lose rows."""
        return tuple(dict.fromkeys(param for param, _ in self._slots))

    def shapes(self, shapes: Shapes) -> Shapes:
        """The shapes of tensors afterwards, under their names before; those of dropped blocks stay listed."""
        return shapes_left(self.graph, shapes, self.counts)

    def price(self, prices: Prices, shapes: Shapes) -> float:
        """What is left of a model with these shapes, at these prices."""
        return price_left(self.graph, prices, shapes, self.counts, self.dropped_prefixes)

    @cached_property
    def config_values(self) -> dict[ConfigKey, Any]:
        """The value of every config key that changes and whose spaces agree."""
        values: dict[ConfigKey, set[Any]] = {}
        touched: set[ConfigKey] = set()
        for field, found in self._fields:
            if field.fixed or not found:
                continue
            values.setdefault((field.key, field.index), set()).update(found)
            if self.counts.keys() & (set(field.spaces) - self.dropped_spaces):
                also: dict[ConfigKey, Any] = {(key, None): value for key, value in field.also}
                touched |= {(field.key, field.index), *also}
                for key, value in also.items():
                    values.setdefault(key, set()).add(value)
        return {key: next(iter(found)) for key, found in values.items() if key in touched and len(found) == 1}

    @cached_property
    def reloads_plainly(self) -> bool:
        """Whether plain transformers rebuilds the network from its config: a key that changes has one, legal value."""
        values: dict[ConfigKey, set[float]] = {}
        for field, found in self._fields:
            before = {field.value(self.graph.space(s).units) for s in field.spaces if s not in self.dropped_spaces}
            in_steps = all(self.kept(s) % field.step == 0 for s in field.spaces)
            if found != before and (field.fixed or not in_steps or not all(map(field.allows, found))):
                return False
            values.setdefault((field.key, field.index), set()).update(found)
        return all(len(found) <= 1 for found in values.values())

    @cached_property
    def _fields(self) -> list[tuple[ConfigField, set[float]]]:
        """Every config field, with the values that its spaces call for; a dropped block's call for none."""
        return [
            (f, {f.value(self.kept(s)) for s in f.spaces if s not in self.dropped_spaces})
            for f in self.graph.config_fields
        ]
