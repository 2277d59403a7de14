"""From a model with a config to its graph: read, proved on a small copy, and carried over to its own sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from logging import CRITICAL
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from dnge_compress.graph.builder import shapes_of
from dnge_compress.graph.derivation.architecture import Architecture
from dnge_compress.graph.derivation.axes import counted_axes
from dnge_compress.graph.derivation.config_keys import as_dict, changed, number_keys, spelled, value_at
from dnge_compress.graph.derivation.example_inputs import run
from dnge_compress.graph.derivation.experts import are_experts, fewest, in_groups, proved_experts
from dnge_compress.graph.derivation.heads import HEADS, is_guess
from dnge_compress.graph.derivation.layers import Blocks, block_stacks, droppable
from dnge_compress.graph.derivation.proof import Tied
from dnge_compress.graph.derivation.readings import Axis, Counted
from dnge_compress.graph.derivation.small_copy import SmallCopy, small_copy, with_few_blocks
from dnge_compress.graph.derivation.spaces import Proved, divided, proved_spaces, single_rows
from dnge_compress.graph.derivation.units import Unreadable
from dnge_compress.graph.rows import Runs

IN_A_ROW = 4  # numbers of experts that are tried before every one is
MOST_TRIED = 256  # numbers of heads or experts that are tried one by one
DIGITS = re.compile(r"(?<=\.)\d+(?=\.)|(?<=\.expert_)\d+(?=\.)")  # of blocks, and of experts


@dataclass(frozen=True, kw_only=True)
class ProvedAxes:
    """Axes that a number counts, at the model's own sizes, as spaces; of experts at least `fewest` stay.

    `legal`, if any, are the only numbers of units that build.
    """

    counted: Counted
    spaces: tuple[Tied, ...]
    are_experts: bool = False
    fewest: int = 1
    legal: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProvedBlocks:
    """A stack of blocks, and those that can't be dropped."""

    blocks: Blocks
    fixed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """What was proved of an architecture, and what was read but not proved, with the reason."""

    axes: tuple[ProvedAxes, ...]
    stacks: tuple[ProvedBlocks, ...]
    refused: Mapping[str, str]
    order: tuple[str, ...]  # modules of the small copy, as inference calls them


class DerivationError(Exception):
    """An architecture of which nothing can be found out, and why."""


def derive(model: nn.Module, architecture: Architecture | None = None) -> Derivation:
    """Everything that the config of a model can say, proved. The model's weights are never touched.

    Raises DerivationError if no copy can be run.
    """
    with _quiet():
        config: Any = model.config
        return _derived(model, architecture or Architecture(type(model), type(config)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings about configs that nobody has asked for."""
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _derived(model: nn.Module, architecture: Architecture) -> Derivation:
    config: Any = model.config
    own = as_dict(config)
    shallow = with_few_blocks(architecture, own)
    small = small_copy(architecture, shallow)
    if small is None:
        raise DerivationError("no small copy of it can be built and run on inputs made from its config")
    refused: dict[str, str] = {}
    found: list[ProvedAxes] = []
    taken: set[Axis] = set()
    for counted in counted_axes(architecture, small.config):
        if taken & counted.rows.keys():
            continue
        try:
            experts = are_experts(small.model, counted)
            if experts:
                proved = proved_experts(architecture, small, in_groups(small.config, counted))
                full = in_groups(own, _at_own_size(architecture, own, counted))
            else:
                proved = proved_spaces(architecture, small, counted)
                full = _at_own_size(architecture, own, counted)
            spaces = carried_over(model, small, proved, full)
            least = fewest(own, full) if experts else 1
            is_free = experts and all_build(architecture, shallow, full, least)
            legal = legal_counts(architecture, shallow, full) if (experts or full.are_heads) and not is_free else ()
            found.append(ProvedAxes(counted=full, spaces=spaces, are_experts=experts, fewest=least, legal=legal))
            taken |= counted.rows.keys()
        except Unreadable as e:
            if not is_guess(counted):
                refused.setdefault(counted.label, str(e))
    counted_keys = {key for axes in found for key, _ in axes.counted.keys}
    for key in number_keys(small.config):
        if HEADS.search(str(key[-1])) and key not in counted_keys:
            refused.setdefault(spelled(key), "the size of a head follows from their number, or no other number builds")
    return Derivation(
        axes=tuple(found), stacks=tuple(_stacks(architecture, own, small)), refused=refused, order=call_order(small)
    )


def _at_own_size(architecture: Architecture, own: Mapping[str, Any], small: Counted) -> Counted:
    """The same reading of the same numbers in the model's own config."""
    for counted in counted_axes(architecture, own, like=small):
        if _identity(counted) == _identity(small):
            return counted
    raise Unreadable("the small copy reads it, but the config itself can't be read so")


def all_build(architecture: Architecture, shallow: Mapping[str, Any], counted: Counted, least: int) -> bool:
    """Whether a model builds with the fewest and with some numbers in a row: then none has to be a multiple."""
    step = counted.groups
    probed = {least, *(counted.units - i * step for i in range(1, IN_A_ROW + 1))}
    return all(architecture.outline(changed(shallow, counted.values(n))) is not None for n in probed if least <= n)


def legal_counts(architecture: Architecture, shallow: Mapping[str, Any], counted: Counted) -> tuple[int, ...]:
    """The numbers of heads or experts that a model can be built with; none told where all can, or there are many."""
    counts = range(counted.groups, counted.units + 1, counted.groups)
    if len(counts) > MOST_TRIED:
        return ()
    legal = tuple(n for n in counts if architecture.outline(changed(shallow, counted.values(n))) is not None)
    return () if len(legal) == len(counts) else legal


def _identity(counted: Counted) -> tuple[Any, ...]:
    return (tuple(k for k, _ in counted.keys), counted.groups > 1, counted.are_heads)


def _template(axis: Axis) -> tuple[str, int]:
    """The axis with every number in its name replaced: alike in all blocks."""
    return DIGITS.sub("#", axis[0]), axis[1]


def carried_over(model: nn.Module, small: SmallCopy, proved: Proved, full: Counted) -> tuple[Tied, ...]:
    """The spaces at the model's own sizes: the order of rows is that of the same axis in the small copy."""
    sizes = shapes_of(small.model)
    units, per = proved.counted.units, proved.counted.rows
    layouts = {_template((n, a)): (runs, (per[n, a], units, sizes[n][a])) for (n, a), runs in proved.rows.items()}
    consuming = {_template(axis) for axis in proved.consumers}
    tensors = shapes_of(model)
    aliases = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    rows: dict[Axis, Runs] = {}
    for axis, per_unit in full.rows.items():
        if axis[0] in aliases:
            continue
        if _template(axis) not in layouts:
            raise Unreadable(f"'{axis[0]}' has no counterpart in the small copy")
        runs, small_sizes = layouts[_template(axis)]
        rows[axis] = _stretched(runs, small_sizes, (per_unit, full.units, tensors[axis[0]][axis[1]]))
    consumers = [axis for axis in rows if _template(axis) in consuming]
    spaces = divided(rows, consumers, proved.depth)
    return tuple(s if full.are_heads else single_rows(s) for s in spaces)


def _stretched(runs: Runs, small: tuple[int, int, int], full: tuple[int, int, int]) -> Runs:
    """Runs of a unit in an axis of another size: in the same order, with what belongs to no unit in the same places.

    `small` and `full` are rows per unit, units and size of the axis.
    """
    scale = Fraction(full[0], small[0])
    rest, full_rest = small[2] - small[0] * small[1], full[2] - full[0] * full[1]
    found: list[tuple[int, int]] = []
    end, start = 0, Fraction(0)
    for first, n in sorted(runs):
        start += Fraction((first - end) * full_rest, rest) if rest else 0
        length = n * scale
        if start.denominator != 1 or length.denominator != 1:
            raise Unreadable("the rows of a unit don't grow with the width")
        found.append((int(start), int(length)))
        end = first + n * small[1]
        start += length * full[1]
    return tuple(found)


def _stacks(architecture: Architecture, own: Mapping[str, Any], small: SmallCopy) -> Iterable[ProvedBlocks]:
    """Stacks of the model, with what was proved of the small copy's blocks of the same kind and place."""
    copies = {b.key: b for b in block_stacks(architecture, small.config)}
    for blocks in block_stacks(architecture, own):
        copy_ = copies.get(blocks.key)
        if copy_ is None:
            continue
        outcomes = droppable(architecture, small.config, small.model, small.inputs, copy_)
        verdicts: dict[tuple[Any, ...], bool] = {}
        for i, outcome in enumerate(outcomes):
            place = _place(small.config, copy_, i)
            verdicts[place] = verdicts.get(place, True) and outcome.holds
        kinds = [_place(own, blocks, i)[2] for i in range(len(blocks.modules))]
        fixed = tuple(
            i
            for i, kind in enumerate(kinds)
            if not verdicts.get(_place(own, blocks, i), False) or (len(set(kinds)) > 1 and kinds.count(kind) == 1)
        )
        if len(fixed) < len(blocks.modules):
            yield ProvedBlocks(blocks=blocks, fixed=fixed)


def _place(config: Mapping[str, Any], blocks: Blocks, i: int) -> tuple[Any, ...]:
    """What makes blocks alike: whether it is the first or last, and its entries in the lists."""
    kinds = tuple(str(value_at(config, path)[i]) for path in blocks.lists)
    return i == 0, i == len(blocks.modules) - 1, kinds


def call_order(small: SmallCopy) -> tuple[str, ...]:
    """Modules with tensors of their own, in the order of their first call."""
    order: dict[str, None] = {}
    handles = []
    for path, module in small.model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(lambda m, args, path=path: order.setdefault(path)))
    try:
        with torch.no_grad():
            run(small.model, small.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(order)
