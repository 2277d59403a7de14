"""Roles of matrices: which are used together, as query, key and value or as gate and up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from dnge_compress.graph.types import Space, Step


def with_roles(steps: Iterable[Step], spaces: Mapping[str, Space]) -> Iterator[Step]:
    """The steps numbered, matrices that are used together as one: query, key and value, or gate and up."""
    together: list[Step] = []
    index = 0
    for step in [*steps, None]:
        if together and (step is None or (step.op, step.reads, step.writes) != _ends(together[0])):
            for done in _merged(together, spaces):
                yield replace(done, index=index)
                index += 1
            together = []
        if step is not None:
            together.append(step)


def _ends(step: Step) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return step.op, step.reads, step.writes


def _merged(steps: list[Step], spaces: Mapping[str, Space]) -> list[Step]:
    kind = spaces[steps[0].writes[0]].kind if steps[0].writes else "fixed"
    roles = {"head": ("q", "k", "v"), "neuron": ("g", "u")}.get(kind, ())
    if steps[0].op != "linear" or len(steps) != len(roles):
        return steps
    names = [s.params[0].removesuffix(".weight").rpartition(".")[2] for s in steps]
    if kind == "head":
        order = [next((i for i, name in enumerate(names) if name.startswith(role)), None) for role in roles]
    else:
        gate = next((i for i, name in enumerate(names) if re.search("gate|w1|wi_0", name)), 0)
        order = [gate, 1 - gate]
    if None in order or len(set(order)) != len(roles):
        return steps
    params = tuple(p for i in order if i is not None for p in steps[i].params)
    return [replace(steps[0], op="attention" if kind == "head" else "gated", params=params)]
