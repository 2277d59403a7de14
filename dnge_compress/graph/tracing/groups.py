"""Which axes of which layers can only go together, as torch-pruning proposes it; nothing of it is believed unproved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph.rows import Runs, rows_of, stretches
from dnge_compress.graph.tracing.layers import Layer, Side
from dnge_compress.graph.tracing.running import call_with, tensors_in
from dnge_compress.graph.tracing.stand_ins import stand_ins
from dnge_compress.graph.types import Kind

Key = tuple[str, Side]  # layer name, side
Layers = Mapping[str, Layer]
Attribute = tuple[str, str, int]  # module path, attribute, how much of it one unit is

NOT_CUT = "the outputs are not cut"


@dataclass(frozen=True, kw_only=True)
class TracedGroup:
    """Axes that only go together: per axis the runs of rows of a unit. `why` it's fixed, if so. `attributes` of modules
    count its units, as far as the layers themselves don't."""

    root: Layer
    units: int
    parts: Mapping[Key, Runs]
    why: str = ""
    residual: bool = False
    is_heads: bool = False
    attributes: tuple[Attribute, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the space is to the rest of the package."""
        if self.residual:
            return "residual"
        if self.why:
            return "fixed"
        if self.is_heads:
            return "head"
        return "channel" if self.root.op.startswith("conv") else "neuron"

    @property
    def is_free(self) -> bool:
        """Whether its units may go."""
        return not self.why and not self.residual


@dataclass
class Reach:
    """What one output row of a layer takes with it."""

    rows: dict[Key, set[int]] = field(default_factory=dict)
    why: str = ""


def coupled_groups(net: nn.Module, inputs: Any, layers: Layers) -> list[TracedGroup]:
    """The groups that torch-pruning finds, each from the first layer executed that writes it."""
    groups: list[TracedGroup] = []
    try:
        with stand_ins(net, list(layers.values())) as met:
            graph = tp.DependencyGraph()
            graph.build_dependency(  # every container anew: its defaults are shared between calls
                net,
                example_inputs=inputs,
                forward_fn=call_with,
                output_transform=lambda out: [t for t in tensors_in(out) if t.grad_fn is not None],
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
            for module, (layer, *_) in met.items():
                known = any((layer.name, "out") in g.parts for g in groups)
                if layer.op not in ("norm", "batchnorm") and module in graph.module2node and not known:
                    group = _group_from(_Follower(graph, met), module, layers)
                    groups += [group] if group else []
    except Exception as e:
        raise UnsupportedModelError(
            f"torch-pruning can't trace {type(net).__name__} ({type(e).__name__}: {e}); write a family file for it"
        ) from e
    return _whole_axes(groups, layers)


class _Follower:
    """Follows rows through torch-pruning's graph, and beyond it where a layer takes more rows than it says."""

    def __init__(self, graph: tp.DependencyGraph, met: Mapping[nn.Module, Sequence[Layer]]) -> None:
        self.graph, self.met = graph, met
        self.modules = {layer.name: module for module, own in met.items() for layer in own}

    def reach(self, module: nn.Module, row: int) -> Reach:
        """Everything that goes with an output row of a module."""
        reach = Reach()
        self._follow(module, "out", {row}, reach)
        while missing := self._missing(reach):
            for (name, side), rows in missing.items():
                self._follow(self.modules[name], side, rows, reach)
                reach.rows.setdefault((name, side), set()).update(rows)
        return reach

    def _missing(self, reach: Reach) -> dict[Key, set[int]]:
        found: dict[Key, set[int]] = {}
        for (name, side), rows in reach.rows.items():
            layer = next(one for one in self.met[self.modules[name]] if one.name == name)
            if layer.blocks or layer.shares > 1:
                for other, more in layer.together(side, rows).items():
                    new = more - reach.rows.get((name, other), set())
                    if new:
                        found.setdefault((name, other), set()).update(new)
        return found

    def _follow(self, module: nn.Module, side: Side, rows: set[int], reach: Reach) -> None:
        pruner = self.graph.get_pruner_of_module(module)
        prune = pruner.prune_out_channels if side == "out" else pruner.prune_in_channels
        for dependency, reached in self.graph.get_pruning_group(module, prune, sorted(rows)):
            target = dependency.target.module
            if target in self.met:
                for layer in self.met[target]:
                    self._note(layer, dependency.handler, set(reached), reach)
            elif isinstance(target, nn.Parameter):
                name = self.graph._param_to_name[target]
                reach.why = f"the parameter '{name}', outside of any known layer, shares its axis"
            elif dependency.target.type == tp.ops.OPTYPE.OUTPUT:
                reach.why = reach.why or NOT_CUT
            elif any(p.numel() > 1 for p in target.parameters()):
                reach.why = f"a {type(target).__name__} shares its axis"

    def _note(self, layer: Layer, handler: Any, rows: set[int], reach: Reach) -> None:
        # A pruner of norms is the same for both sides; a grouped conv has two.
        has_sides = bool(layer.reads) or (layer.blocks and not isinstance(layer.module, nn.GroupNorm))
        side: Side = "out" if not has_sides or self.graph.is_out_channel_pruning_fn(handler) else "in"
        is_followed = layer.blocks or layer.shares > 1  # what goes with these rows has neighbours of its own
        for other, more in ({side: rows} if is_followed else layer.together(side, rows)).items():
            reach.rows.setdefault((layer.name, other), set()).update(more)


def _group_from(follower: _Follower, module: nn.Module, layers: Layers) -> TracedGroup | None:
    """The group that a module writes, or None if its rows are not alike (those of a sum with a concatenation)."""
    root = follower.met[module][0]
    own: Key = (root.name, "out")
    first = follower.reach(module, 0)
    stride = stretches(first.rows[own])[0][1]
    units, rest = divmod(root.rows("out"), len(first.rows[own]))
    others = {u: follower.reach(module, u * stride) for u in sorted({0, units // 2, units - 1})}
    if rest or any(set(p.rows) != set(first.rows) for p in others.values()):
        return None
    parts: dict[Key, Runs] = {}
    why = next((p.why for p in others.values() if p.why), "")
    for key, rows in first.rows.items():
        runs = stretches(rows)
        if all(stretches(p.rows[key]) == [(start + u * n, n) for start, n in runs] for u, p in others.items()):
            parts[key] = tuple(runs)
        else:
            why = why or f"the order of the units in '{key[0]}' has no fixed stride"
    if own not in parts:
        return None
    members = [layers[name] for name, _ in parts]
    if any(m.shared for m in members):
        why = why or "a module or weight is used more than once"
    if units == 1 and any(isinstance(m.module, nn.GroupNorm) for m in members):
        why = why or "a group norm mixes the units"
    if not any(side == "in" and layers[name].reads for name, side in parts):
        why = why or NOT_CUT
    if units == 1:
        why = why or "there is a single unit"
    residual = any(isinstance(m.module, (nn.LayerNorm, nn.Embedding)) for m in members)
    return TracedGroup(root=root, units=units, parts=parts, why=why, residual=residual)


def _whole_axes(groups: list[TracedGroup], layers: Layers) -> list[TracedGroup]:
    """Drop the parts of axes that the groups don't cover exactly once; a group that loses one becomes fixed."""
    covered: dict[Key, list[int]] = {}
    for group in groups:
        for key, parts in group.parts.items():
            covered.setdefault(key, []).extend(rows_of(parts, range(group.units)))
    lost = {k for k, rows in covered.items() if sorted(rows) != list(range(layers[k[0]].rows(k[1])))}
    whole = []
    for group in groups:
        why = group.why or ("an axis is known in part only" if lost & set(group.parts) else "")
        whole.append(replace(group, why=why, parts={k: v for k, v in group.parts.items() if k not in lost}))
    return [g for g in whole if g.parts]


def index(rows: Iterable[int], like: Tensor) -> Tensor:
    """Rows as a tensor on the device of another."""
    return torch.tensor(list(rows), dtype=torch.long, device=like.device)
