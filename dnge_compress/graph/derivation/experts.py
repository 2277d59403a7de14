"""Whole experts: the first axis of their stacked weights and of the router that sends tokens to them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.derivation.architecture import Architecture
from dnge_compress.graph.derivation.axes import Axis, Counted
from dnge_compress.graph.derivation.config_keys import changed, value_at
from dnge_compress.graph.derivation.proof import Outcome, Tied, choices, equal_outputs
from dnge_compress.graph.derivation.small_copy import SmallCopy
from dnge_compress.graph.derivation.spaces import Proved, divided
from dnge_compress.graph.derivation.units import Unreadable
from dnge_compress.graph.masking import lowest
from dnge_compress.graph.products import MaskedRouters

PER_TOKEN = re.compile("top_?k$|per_tok|moe_k$")  # how many experts a token goes to


def are_experts(model: nn.Module, counted: Counted) -> bool:
    """Whether a number counts the first axis of stacked weights, the rows of a router and a number for each expert."""
    tensors = model.state_dict()
    stacked = any(tensors[name].dim() == 3 for name, _ in counted.rows)
    whole = (axis == 0 or tensors[name].numel() == counted.units for name, axis in counted.rows)
    return stacked and all(whole) and set(counted.rows.values()) == {1}


def in_groups(config: Mapping[str, Any], counted: Counted) -> Counted:
    """Experts of which a router first chooses groups go in steps, one from each group."""
    groups = value_at(config, (*counted.keys[0][0][:-1], "n_group"))
    fits = isinstance(groups, int) and groups > 1 and counted.units % groups == 0
    return replace(counted, groups=groups) if fits else counted


def routers(model: nn.Module, counted: Counted) -> list[Axis]:
    """The matrices whose rows are the experts' logits."""
    dims = {n: p.dim() for n, p in model.named_parameters()}
    return [(name, axis) for name, axis in counted.rows if dims.get(name) == 2 and "bias" not in name]


def fewest(config: Mapping[str, Any], counted: Counted) -> int:
    """As many experts as a token goes to, and two in each group: fewer can't be chosen from."""
    level = value_at(config, counted.keys[0][0][:-1]) if len(counted.keys[0][0]) > 1 else config
    chosen = max((v for k, v in level.items() if PER_TOKEN.search(k) and isinstance(v, int)), default=1)
    return max(chosen, 2 * counted.groups if counted.groups > 1 else 1)


def proved_experts(architecture: Architecture, small: SmallCopy, counted: Counted) -> Proved:
    """Proof that removing experts is what the router's smallest logits do. Raises Unreadable with the reason."""
    consumers = routers(small.model, counted)
    if not consumers:
        raise Unreadable("no router has a row for every expert")
    rows = dict.fromkeys(counted.rows, ((0, 1),))
    spaces = divided(rows, consumers, "finest")
    step, least = counted.groups, fewest(small.config, counted)
    keeps = {k for k in (counted.units - step, counted.units // 2) if k % step == 0 and least <= k < counted.units}
    if not keeps:
        raise Unreadable("a token goes to nearly all experts")
    for keep in sorted(keeps):
        outcome = _prove(architecture, small, counted, spaces, keep)
        if not outcome.holds:
            raise Unreadable(outcome.why)
    return Proved(counted=counted, rows=rows, consumers=tuple(consumers), depth="finest")


def _prove(architecture: Architecture, small: SmallCopy, counted: Counted, spaces: list[Tied], keep: int) -> Outcome:
    chance = random.Random(0)
    state: dict[str, Tensor] = {n: t.detach() for n, t in small.model.state_dict().items()}
    cut, masked = dict(state), []
    low: dict[str, Tensor] = {}
    drawn = choices(chance, counted, keep, [1] * len(spaces))
    for space, units in zip(spaces, drawn, strict=True):
        gone = torch.tensor(units)
        stay = torch.tensor([u for u in range(counted.units) if u not in gone.tolist()])
        for name, axis in space.rows:
            cut[name] = cut[name].index_select(axis, stay)
            if state[name].dim() < 3 and (name, axis) not in space.consumers:
                low[name] = lowest(state[name], axis, gone)
        masked += [(small.model.get_parameter(name), gone) for name, _ in space.consumers]
    smaller = changed(small.config, counted.values(keep))
    within = MaskedRouters(masked)
    return equal_outputs(architecture, smaller, small.model, small.inputs, low, cut, within=within)
