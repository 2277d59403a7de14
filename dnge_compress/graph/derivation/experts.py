"""Whole experts: rows of stacked weights or modules of their own, and rows of the router that sends tokens there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.derivation.architecture import Architecture
from dnge_compress.graph.derivation.config_keys import changed, value_at
from dnge_compress.graph.derivation.proof import Outcome, Tied, choices, equal_outputs
from dnge_compress.graph.derivation.readings import Axis, Counted
from dnge_compress.graph.derivation.small_copy import SmallCopy, chosen_at_once
from dnge_compress.graph.derivation.spaces import Proved, divided, shared_path
from dnge_compress.graph.derivation.units import Unreadable
from dnge_compress.graph.masking import lowest
from dnge_compress.graph.products import MaskedRouters
from dnge_compress.graph.rows import rows_of


def are_experts(model: nn.Module, counted: Counted) -> bool:
    """Whether a number counts modules, the first axis of stacked weights or rows of flat ones, as many for each expert,
    and with them the rows of a router."""
    if counted.modules:
        return True
    tensors = model.state_dict()
    stacked = any(tensors[name].dim() == 3 or n > 1 for (name, _), n in counted.rows.items())
    whole = (axis == 0 or tensors[name].numel() == counted.units for name, axis in counted.rows)
    return stacked and all(whole) and bool(routers(model, counted))


def in_groups(config: Mapping[str, Any], counted: Counted) -> Counted:
    """Experts of which a router first chooses groups go in steps, one from each group."""
    groups = value_at(config, (*counted.keys[0][0][:-1], "n_group"))
    fits = isinstance(groups, int) and groups > 1 and counted.units % groups == 0
    return replace(counted, groups=groups) if fits else counted


def routers(model: nn.Module, counted: Counted) -> list[Axis]:
    """The matrices whose rows are the experts' logits."""
    dims = {n: p.dim() for n, p in model.named_parameters()}
    alone = [axis for axis, n in counted.rows.items() if n == 1]
    return [(name, axis) for name, axis in alone if dims.get(name) == 2 and "bias" not in name]


def fewest(config: Mapping[str, Any], counted: Counted) -> int:
    """As many experts as a token goes to, and two in each group: fewer can't be chosen from."""
    level = value_at(config, counted.keys[0][0][:-1]) if len(counted.keys[0][0]) > 1 else config
    return chosen_at_once(level, counted.groups)


def proved_experts(architecture: Architecture, small: SmallCopy, counted: Counted) -> Proved:
    """Proof that removing experts is what the router's smallest logits do. Raises Unreadable with the reason."""
    consumers = routers(small.model, counted)
    if not consumers:
        raise Unreadable("no router has a row for every expert")
    if counted.modules and counted.groups > 1:
        raise Unreadable("experts with modules of their own are chosen from in groups")
    rows = {axis: ((0, n),) for axis, n in counted.rows.items()}
    spaces = divided(rows, consumers, "finest")
    step, least = counted.groups, fewest(small.config, counted)
    keeps = {k for k in (counted.units - step, counted.units // 2) if k % step == 0 and least <= k < counted.units}
    if not keeps:
        raise Unreadable("a token goes to nearly all experts")
    for keep in sorted(keeps):
        for drawn in choices(counted, keep, [1] * len(spaces)):
            outcome = _prove(architecture, small, counted, spaces, drawn)
            if not outcome.holds:
                raise Unreadable(outcome.why)
    return Proved(counted=counted, rows=rows, consumers=tuple(consumers), depth="finest")


def _prove(
    architecture: Architecture, small: SmallCopy, counted: Counted, spaces: list[Tied], drawn: list[list[int]]
) -> Outcome:
    state: dict[str, Tensor] = {n: t.detach() for n, t in small.model.state_dict().items()}
    cut, masked = dict(state), []
    low: dict[str, Tensor] = {}
    for space, units in zip(spaces, drawn, strict=True):
        gone = torch.tensor(units)
        for (name, axis), runs in space.rows.items():
            lost = set(rows_of(runs, units))
            stay = [row for row in range(state[name].shape[axis]) if row not in lost]
            cut[name] = cut[name].index_select(axis, torch.tensor(stay))
            if state[name].numel() == counted.units and (name, axis) not in space.consumers:
                low[name] = lowest(state[name], axis, gone)
        masked += [(small.model.get_parameter(name), gone) for name, _ in space.consumers]
        for old, new in renamed_modules(modules_of(counted, space), units).items():
            own = {name for name in cut if name.startswith(f"{old}.")}
            moved = {new + name[len(old) :]: cut.pop(name) for name in own}
            cut |= moved if new else {}
    keep = counted.units - len(drawn[0])
    smaller = changed(small.config, counted.values(keep))
    within = MaskedRouters(masked)
    return equal_outputs(architecture, smaller, small.model, small.inputs, low, cut, within=within)


def modules_of(counted: Counted, space: Tied) -> tuple[str, ...]:
    """The experts' modules nearest to the router of a space, if they have modules of their own."""
    router = space.consumers[0][0]
    return max(counted.modules, key=lambda own: shared_path(own[0], router), default=())


def renamed_modules(modules: tuple[str, ...], gone: Collection[int]) -> dict[str, str]:
    """What numbered modules are called when some are missing, in ascending order; "" for those."""
    left = iter(modules)
    return {module: "" if i in gone else next(left) for i, module in enumerate(modules)}
