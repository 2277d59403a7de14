"""The proof that units may go: a network without half of them computes what the whole one computes with them masked.

Modules that write sizes into attributes of their own (a number of heads, a hidden size) have them counted down for it:
which, is found by trying.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import Tensor, nn

from dnge_compress.graph.paths import prefixes
from dnge_compress.graph.rows import rows_of
from dnge_compress.graph.tracing.groups import Attribute, Layers, TracedGroup, index
from dnge_compress.graph.tracing.layers import Side
from dnge_compress.graph.tracing.running import call_with, tensors_in

SAMPLE_SEED = 0
TOLERANCE = 1e-4  # relative to the largest output; float32 noise is far smaller, a wrong row far larger
MOST_ATTRIBUTES = 6  # of a module's that are tried
MOST_TOGETHER = 3  # that may have to change together
SILENT = "masking units changes nothing that can be measured, so that no proof would show anything"
UNPROVED = "removing units is not the same as masking them"


class Proof:
    """Tries groups on a randomised copy of a model."""

    def __init__(self, net: nn.Module, inputs: Any, layers: Layers) -> None:
        self.net, self.inputs, self.layers = net, inputs, layers
        self.whole: dict[str, Tensor] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        self.dense = [t.detach() for t in tensors_in(call_with(net, inputs))]
        self.tried = 0  # cuts

    def of(self, groups: list[TracedGroup]) -> list[TracedGroup]:
        """Fix every group whose removal is more than masking its consumers; all are tried at once, then one by one."""
        groups = self._shown(groups)
        free = [g for g in groups if g.is_free]
        if not free or self.holds(free):
            return groups
        exact: dict[str, TracedGroup] = {}
        for bundle in bundles(free, self.layers):
            # A cut network that runs and answers otherwise has no size that is wrong.
            found = bundle if self.holds(bundle) else None if self.runs(bundle) else self.with_attributes(bundle)
            exact |= {g.root.name: g for g in found or ()}
        if exact and not self.holds(list(exact.values())):
            exact = {}
        return [exact.get(g.root.name, replace(g, why=UNPROVED)) if g.is_free else g for g in groups]

    def _shown(self, groups: list[TracedGroup]) -> list[TracedGroup]:
        """Fix every group whose mask changes nothing: of such a one everything would hold."""
        return [replace(g, why=SILENT) if g.is_free and not self._changes([g]) else g for g in groups]

    def _changes(self, groups: Sequence[TracedGroup]) -> bool:
        """Whether the outputs tell that units are masked."""
        masked = tensors_in(call_with(self.net, self.inputs, self._masked(groups)))
        return not all(map(_is_close, self.dense, masked))

    def with_attributes(self, groups: Sequence[TracedGroup], most: int = MOST_TOGETHER) -> list[TracedGroup] | None:
        """The groups, with the fewest attributes counted down that let the proof hold; None if it never does."""
        for attributes in self._choices(groups[0], most):
            tried = [replace(groups[0], attributes=attributes), *groups[1:]]
            if self.holds(tried):
                return tried
        return None

    def _choices(self, group: TracedGroup, most: int) -> Iterator[tuple[Attribute, ...]]:
        found = _countable(self.net, [self.layers[name].path for name, _ in group.parts], group.units)
        for size in range(min(most, len(found)) + 1):
            yield from combinations(found, size)

    def holds(self, groups: Sequence[TracedGroup]) -> bool:
        """Whether the model without a random half of each group's units equals the model with what reads them at
        zero, and the zeros change what it says."""
        self.tried += 1
        actual = self._cut_outputs(groups)
        if actual is None:
            return False
        expected = tensors_in(call_with(self.net, self.inputs, self._masked(groups)))
        is_equal = len(expected) == len(actual) and all(map(_is_close, expected, actual))
        return is_equal and not all(map(_is_close, self.dense, expected))

    def runs(self, groups: Sequence[TracedGroup]) -> bool:
        """Whether the model can be called without half of each group's units, whatever it then answers."""
        return self._cut_outputs(groups) is not None

    def _masked(self, groups: Sequence[TracedGroup]) -> dict[str, Tensor]:
        masked = dict(self.whole)
        for param, axis, rows, side in self._gone(groups):
            if side == "in":
                masked[param] = masked[param].index_fill(axis, index(rows, masked[param]), 0.0)
        return masked

    def _cut_outputs(self, groups: Sequence[TracedGroup]) -> list[Tensor] | None:
        gone: dict[tuple[str, int], set[int]] = {}
        for param, axis, rows, _ in self._gone(groups):
            gone.setdefault((param, axis), set()).update(rows)
        cut = dict(self.whole)
        for (param, axis), dropped in gone.items():
            stay = sorted(set(range(self.whole[param].shape[axis])) - dropped)
            cut[param] = cut[param].index_select(axis, index(stay, self.whole[param]))
        changes: dict[tuple[str, str], int] = {}
        for group in groups:
            for path, attribute, change in attributes_of(group, self.layers):
                changes[(path, attribute)] = changes.get((path, attribute), 0) + change * _n_gone(group)
        try:
            with _fewer(self.net, changes):
                return tensors_in(call_with(self.net, self.inputs, cut))
        except Exception:  # whatever a model raises when shapes no longer fit is the answer "no", not a failure
            return None

    def _gone(self, groups: Sequence[TracedGroup]) -> Iterator[tuple[str, int, list[int], Side]]:
        """Parameter, axis and rows of the units that go, the same ones each time."""
        chance = random.Random(SAMPLE_SEED)
        for group in groups:
            units = chance.sample(range(group.units), _n_gone(group))
            for (name, side), parts in group.parts.items():
                layer = self.layers[name]
                rows = rows_of(layer.in_tensors(side, parts), units)
                for param, axis in layer.tensors(side):
                    yield param, axis, rows, side


def _n_gone(group: TracedGroup) -> int:
    n_keep = (group.units // 2) | 1  # odd, so that a division by two written into the model shows
    return max(1, group.units - n_keep)


def attributes_of(group: TracedGroup, layers: Layers) -> Iterator[Attribute]:
    """All attributes that count a group's units: those its layers are known to have, and those that were found."""
    yield from group.attributes
    for (name, side), parts in group.parts.items():
        layer = layers[name]
        for (counted_side, attribute), rows in layer.counts.items():
            if counted_side == side:
                yield layer.path, attribute, sum(n for _, n in parts) // rows


def bundles(groups: Iterable[TracedGroup], layers: Layers) -> list[list[TracedGroup]]:
    """Groups that must keep equally many units, since a recurrent module has one size for all its levels."""
    found: list[tuple[set[str], list[TracedGroup]]] = []
    for group in groups:
        members = [layers[name] for name, side in group.parts if side == "out"]
        modules = {layer.path for layer in members if isinstance(layer.module, nn.RNNBase)}
        together = [one for one in found if one[0] & modules]
        found = [one for one in found if not one[0] & modules]
        merged = (modules.union(*(m for m, _ in together)), [g for _, own in together for g in own] + [group])
        found.append(merged)
    return [own for _, own in found]


def _countable(net: nn.Module, paths: Sequence[str], units: int) -> list[Attribute]:
    """Whole numbers that the modules around some layers keep and that may count their units, the nearest first."""
    around = dict.fromkeys(parent for path in paths for parent in prefixes(path.rpartition(".")[0]))
    common = _common_parent(paths)
    found: list[Attribute] = []
    for path in sorted(around, key=lambda p: -p.count(".") if p else 1):
        if not (path == common or path.startswith(f"{common}." if common else "")):
            continue
        module = net.get_submodule(path)
        if type(module).__module__.startswith("torch.nn"):
            continue
        for name, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and value >= units and value % units == 0:
                found.append((path, name, value // units))
    return found[:MOST_ATTRIBUTES]


def _common_parent(paths: Sequence[str]) -> str:
    shared = set.intersection(*(set(prefixes(path.rpartition(".")[0])) for path in paths))
    return max(shared, key=len)


@contextmanager
def _fewer(net: nn.Module, changes: Mapping[tuple[str, str], int]) -> Iterator[None]:
    """Attributes of modules counted down for a while."""
    before = {key: getattr(net.get_submodule(key[0]), key[1]) for key in changes}
    try:
        for (path, name), change in changes.items():
            setattr(net.get_submodule(path), name, before[(path, name)] - change)
        yield
    finally:
        for (path, name), value in before.items():
            setattr(net.get_submodule(path), name, value)


def _is_close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    a, b = a.detach().double(), b.detach().double()
    return bool((a - b).abs().max() <= TOLERANCE * a.abs().max())
