"""From axes that a number counts to spaces: which of them go together, one choice of units each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from dnge_compress.graph.derivation.architecture import Architecture
from dnge_compress.graph.derivation.proof import Tied, prove
from dnge_compress.graph.derivation.readings import Axis, Counted
from dnge_compress.graph.derivation.small_copy import SmallCopy
from dnge_compress.graph.derivation.units import Unreadable, consuming_axes, stacked, unit_rows
from dnge_compress.graph.joining import Joining
from dnge_compress.graph.paths import block_of
from dnge_compress.graph.rows import Runs

DEPTHS = ("finest", "stack", "all")  # how finely the axes are divided into spaces


@dataclass(frozen=True, kw_only=True)
class Proved:
    """The rows of a unit along every axis, what reads them, and how finely they are divided into spaces."""

    counted: Counted
    rows: Mapping[Axis, Runs]
    consumers: tuple[Axis, ...]
    depth: str


def proved_spaces(architecture: Architecture, small: SmallCopy, counted: Counted) -> Proved:
    """The finest division into spaces that the proof allows. Raises Unreadable with the reason if none does."""
    why = "nothing reads the units"
    counted = _without_aliases(small.model, counted)
    for consumers in _readings(small.model, counted):
        try:
            rows = unit_rows(small.model, small.inputs, counted, consumers)
        except Unreadable as e:
            why = str(e)
            continue
        for depth in DEPTHS:
            spaces = divided(rows, consumers, depth)
            fine = spaces if counted.are_heads else [single_rows(s) for s in spaces]
            outcome = prove(architecture, small.config, small.model, small.inputs, counted, fine)
            if outcome.holds:
                return Proved(counted=counted, rows=rows, consumers=tuple(consumers), depth=depth)
            why = outcome.why
            if "equal" not in why or len(spaces) == 1:
                break
    raise Unreadable(why)


def _without_aliases(model: nn.Module, counted: Counted) -> Counted:
    """A tied weight stands under its first name only."""
    every = dict(model.named_parameters(remove_duplicate=False))
    aliases = every.keys() - dict(model.named_parameters()).keys()
    return replace(counted, rows={a: n for a, n in counted.rows.items() if a[0] not in aliases})


def _readings(model: nn.Module, counted: Counted) -> list[list[Axis]]:
    """Which axes may be those that read the units: by kind of module; of stacked matrices, whatever is possible."""
    known = consuming_axes(model, counted.rows)
    open_ = stacked(model, counted.rows)
    if not open_:
        return [known] if known else []
    last = [(n, a) for n, a in open_ if a == model.get_parameter(n).dim() - 1]
    middle = [(n, a) for n, a in open_ if a == model.get_parameter(n).dim() - 2]
    leaves = sorted({n.rpartition(".")[2] for n, _ in open_}, reverse=True)
    by_leaf = [[(n, a) for n, a in open_ if n.endswith(f".{leaf}")] for leaf in leaves]
    options = [last, middle, *by_leaf, []]
    found = [known + option for option in options if known + option]
    return [list(r) for r in dict.fromkeys(map(tuple, found))]


def divided(rows: Mapping[Axis, Runs], consumers: list[Axis], depth: str) -> list[Tied]:
    """Axes grouped around what reads them, by the path of their modules: block by block, by stack, or all in one."""
    groups: dict[str, list[Axis]] = {}
    if depth == "all":
        groups["all"] = list(consumers)
    for axis in consumers if depth != "all" else ():
        groups.setdefault(block_of(axis[0])[0] if depth == "stack" else axis[0], []).append(axis)
    members: dict[str, list[Axis]] = {name: [] for name in groups}
    joining = Joining(groups)
    for axis in rows:
        if axis in consumers:
            continue
        nearness = {g: max(shared_path(axis[0], c[0]) for c in own) for g, own in groups.items()}
        best = max(nearness.values())
        near = [g for g, n in nearness.items() if n == best]
        for other in near[1:]:
            joining.join(near[0], other)
        members[near[0]].append(axis)
    joined: dict[str, tuple[list[Axis], list[Axis]]] = {}
    for name, own in groups.items():
        both = joined.setdefault(joining.root(name), ([], []))
        both[0].extend(own)
        both[1].extend(members[name])
    return [Tied(tuple(own), {axis: rows[axis] for axis in (*own, *others)}) for own, others in joined.values()]


def single_rows(space: Tied) -> Tied:
    """The space with a unit for every row that is read, where a unit of the config counts several."""
    share = math.gcd(*(n for runs in space.rows.values() for _, n in runs))
    rows = {axis: tuple((start, n // share) for start, n in runs) for axis, runs in space.rows.items()}
    return Tied(space.consumers, rows, share)


def shared_path(a: str, b: str) -> int:
    """How many names at the beginning two paths have in common."""
    count = 0
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        count += 1
    return count
