"""Any `nn.Module`, through torch-pruning's DependencyGraph: CNNs, MLPs and whatever no family file knows.

torch-pruning proposes which axes belong together; nothing is believed without proof. A space is prunable only if the
model without half of its units computes what the whole model computes with those units' consumers set to zero, which is
tried on a randomised copy. Everything else (outputs, attention, shared modules, interleavings, …) is "fixed"; widths
under a layer norm or an embedding are "residual".
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph.builder import GraphBuilder
from dnge_compress.graph.tracing import (
    Layer,
    Side,
    as_float32,
    call_with,
    deadline,
    executed_layers,
    randomised_copy,
    tensors_in,
)
from dnge_compress.graph.types import Kind, ModelGraph, Shapes

Key = tuple[str, Side]  # layer path, side
Layers = Mapping[str, Layer]

SAMPLE_SEED = 0
TOLERANCE = 1e-4  # relative to the largest output; float32 noise is far smaller, a wrong row far larger
NOT_CUT = "the outputs are not cut"


@dataclass(frozen=True, kw_only=True)
class TracedGroup:
    """Axes that only go together: per axis (width, offset) of each run of rows of a unit. `why` it's fixed, if so."""

    root: Layer
    units: int
    parts: Mapping[Key, tuple[tuple[int, int], ...]]
    why: str = ""
    residual: bool = False

    @property
    def kind(self) -> Kind:
        """What the space is to the rest of the package."""
        if self.residual:
            return "residual"
        if self.why:
            return "fixed"
        return "channel" if self.root.op == "conv" else "neuron"


@dataclass
class Reach:
    """What one output row of a layer takes with it."""

    rows: dict[Key, set[int]] = field(default_factory=dict)
    why: str = ""


def build(model: nn.Module, example_inputs: Any, *, timeout_s: float = 60.0) -> ModelGraph:
    """Trace `model` with `example_inputs` (a tensor, a tuple or a dict of arguments) and read it as a graph.

    Works on a copy; the model, its mode and its gradients stay as they are. torch-pruning can loop for ever, so the
    work ends after `timeout_s` seconds. Raises DataError if the model can't be called with the inputs, and
    UnsupportedModelError if it can't be traced or has nothing to prune.

        graph = build(torchvision_model, torch.randn(1, 3, 224, 224))
    """
    name, state = type(model).__name__, model.state_dict()
    if any(isinstance(t, Tensor) and t.is_meta for t in state.values()):
        raise UnsupportedModelError(f"{name} is on the meta device, but tracing has to run it; load its weights first")
    with deadline(timeout_s, name), torch.inference_mode(False), torch.enable_grad():
        net, inputs = randomised_copy(model), as_float32(example_inputs)
        layers = {layer.path: layer for layer in executed_layers(net, inputs)}
        groups = _prove(net, inputs, layers, _coupled_groups(net, inputs, layers))
    if all(g.kind in ("fixed", "residual") for g in groups):
        reasons = sorted({g.why or "a layer norm or an embedding mixes the units" for g in groups})
        raise UnsupportedModelError(
            f"{name} has nothing to prune: {'; '.join(reasons) or 'no linear or conv layer was reached'}. "
            "It needs an inner width that one layer writes and another reads, or a family file of its own"
        )
    return _assemble({key: tuple(t.shape) for key, t in state.items()}, layers, groups)


def _coupled_groups(net: nn.Module, inputs: Any, layers: Layers) -> list[TracedGroup]:
    """The groups that torch-pruning finds, each from the first layer executed that writes it."""
    graph = tp.DependencyGraph()
    groups: list[TracedGroup] = []
    try:
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
        for layer in layers.values():
            known = any((layer.path, "out") in g.parts for g in groups)
            if layer.op in ("conv", "linear", "embed") and layer.module in graph.module2node and not known:
                group = _group_from(graph, layer, layers)
                groups += [group] if group else []
    except Exception as e:
        raise UnsupportedModelError(
            f"torch-pruning can't trace {type(net).__name__} ({type(e).__name__}: {e}); write a family file for it"
        ) from e
    return _whole_axes(groups, layers)


def _group_from(graph: tp.DependencyGraph, root: Layer, layers: Layers) -> TracedGroup | None:
    """The group that `root` writes, or None if its rows are not alike (those of a sum with a concatenation)."""
    own: Key = (root.path, "out")
    first = _reach(graph, root, 0, layers)
    stride = _runs(first.rows[own])[0][1]
    units, rest = divmod(root.rows("out"), len(first.rows[own]))
    others = {u: _reach(graph, root, u * stride, layers) for u in sorted({0, units // 2, units - 1})}
    if rest or any(set(p.rows) != set(first.rows) for p in others.values()):
        return None
    parts: dict[Key, tuple[tuple[int, int], ...]] = {}
    why = next((p.why for p in others.values() if p.why), "")
    for key, rows in first.rows.items():
        runs = _runs(rows)
        if all(_runs(p.rows[key]) == [(start + u * n, n) for start, n in runs] for u, p in others.items()):
            parts[key] = tuple((n, start) for start, n in runs)
        else:
            why = why or f"the order of the units in '{key[0]}' has no fixed stride"
    if own not in parts:
        return None
    members = [layers[path] for path, _ in parts]
    if any(m.shared for m in members):
        why = why or "a module or weight is used more than once"
    if any(isinstance(m.module, nn.GroupNorm) for m in members):
        why = why or "a group norm mixes the units"
    if not any(side == "in" for _, side in parts):
        why = why or NOT_CUT
    if units == 1:
        why = why or "there is a single unit"
    residual = any(isinstance(m.module, (nn.LayerNorm, nn.Embedding)) for m in members)
    return TracedGroup(root=root, units=units, parts=parts, why=why, residual=residual)


def _reach(graph: tp.DependencyGraph, root: Layer, row: int, layers: Layers) -> Reach:
    by_module = {layer.module: layer for layer in layers.values()}
    reach = Reach()
    prune = graph.get_pruner_of_module(root.module).prune_out_channels
    for dependency, rows in graph.get_pruning_group(root.module, prune, [row]):
        target = dependency.target.module
        layer = by_module.get(target)
        if layer is not None:
            writes = not layer.reads or graph.is_out_channel_pruning_fn(dependency.handler)
            reach.rows.setdefault((layer.path, "out" if writes else "in"), set()).update(rows)
        elif isinstance(target, nn.Parameter):
            reach.why = f"the parameter '{graph._param_to_name[target]}', outside of any known layer, shares its axis"
        elif dependency.target.type == tp.ops.OPTYPE.OUTPUT:
            reach.why = reach.why or NOT_CUT
        elif any(p.numel() > 1 for p in target.parameters()):
            reach.why = f"a {type(target).__name__} shares its axis"
    return reach


def _whole_axes(groups: list[TracedGroup], layers: Layers) -> list[TracedGroup]:
    """Drop the parts of axes that the groups don't cover exactly once; a group that loses one becomes fixed."""
    covered: dict[Key, list[int]] = {}
    for group in groups:
        for key, parts in group.parts.items():
            covered.setdefault(key, []).extend(_rows_of(parts, range(group.units)))
    lost = {k for k, rows in covered.items() if sorted(rows) != list(range(layers[k[0]].rows(k[1])))}
    whole = []
    for group in groups:
        why = group.why or ("an axis is known in part only" if lost & set(group.parts) else "")
        whole.append(replace(group, why=why, parts={k: v for k, v in group.parts.items() if k not in lost}))
    return [g for g in whole if g.parts]


def _prove(net: nn.Module, inputs: Any, layers: Layers, groups: list[TracedGroup]) -> list[TracedGroup]:
    """Fix every group whose removal is more than masking its consumers; all are tried at once, then one by one."""
    free = [g for g in groups if g.kind not in ("fixed", "residual")]
    if not free or _is_exact(net, inputs, layers, free):
        return groups
    exact = [g for g in free if _is_exact(net, inputs, layers, [g])]
    if exact and not _is_exact(net, inputs, layers, exact):
        exact = []
    unproved = [g for g in free if g not in exact]
    return [replace(g, why="removing units is not the same as masking them") if g in unproved else g for g in groups]


def _is_exact(net: nn.Module, inputs: Any, layers: Layers, groups: list[TracedGroup]) -> bool:
    """Whether `net` without a random half of each group's units equals `net` with what reads them at zero."""
    chance = random.Random(SAMPLE_SEED)
    whole: dict[str, Tensor] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    masked = dict(whole)
    gone: dict[tuple[str, int], set[int]] = {}
    for group in groups:
        n_keep = (group.units // 2) | 1  # odd, so that a division by two written into the model shows
        n_gone = max(1, group.units - n_keep)
        units = chance.sample(range(group.units), n_gone)
        for (path, side), parts in group.parts.items():
            rows = _rows_of(parts, units)
            for param, axis in layers[path].tensors(side):
                gone.setdefault((param, axis), set()).update(rows)
                if side == "in":
                    masked[param] = masked[param].index_fill(axis, _index(rows, whole[param]), 0.0)
    cut = dict(whole)
    for (param, axis), dropped in gone.items():
        stay = sorted(set(range(whole[param].shape[axis])) - dropped)
        cut[param] = cut[param].index_select(axis, _index(stay, whole[param]))
    expected = tensors_in(call_with(net, inputs, masked))
    depthwise = [x for x in layers.values() if getattr(x.module, "groups", 1) > 1]
    try:
        for layer in depthwise:
            layer.module.groups = len(cut[f"{layer.path}.weight"])
        actual = tensors_in(call_with(net, inputs, cut))
    except Exception:  # whatever a model raises when shapes no longer fit is the answer "no", not a failure
        return False
    finally:
        for layer in depthwise:
            layer.module.groups = layer.rows("out")
    return len(expected) == len(actual) and all(map(_is_close, expected, actual))


def _is_close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    a, b = a.detach().double(), b.detach().double()
    return bool((a - b).abs().max() <= TOLERANCE * a.abs().max())


def _assemble(shapes: Shapes, layers: Layers, groups: list[TracedGroup]) -> ModelGraph:
    g = GraphBuilder("traced", shapes)
    for group in groups:
        g.space(group.root.path, group.units, group.kind)
    for layer in layers.values():
        writes = _tie(g, layer, "out", groups)
        reads = _tie(g, layer, "in", groups) if layer.reads else () if layer.op == "embed" else writes
        g.step(
            layer.op,
            reads,
            writes,
            [param for param, _ in layer.tensors("out")],
            activation=layer.activation,
            is_behind=layer.is_behind,
        )
    return g.finish()


def _tie(g: GraphBuilder, layer: Layer, side: Side, groups: list[TracedGroup]) -> tuple[str, ...]:
    """Slots for one side of a layer; returns the spaces there, a fixed one of its own where no group reaches."""
    names = []
    for group in groups:
        for width, offset in group.parts.get((layer.path, side), ()):
            names.append(group.root.path)
            for param, axis in layer.tensors(side):
                g.slot(param, axis, group.root.path, width, offset)
    if not names:
        names = [g.space(f"{layer.path}:{side}", layer.rows(side), "fixed")]
        for param, axis in layer.tensors(side):
            g.slot(param, axis, names[0])
    return tuple(dict.fromkeys(names))


def _rows_of(parts: tuple[tuple[int, int], ...], units: Iterable[int]) -> list[int]:
    return [offset + u * width + i for u in units for width, offset in parts for i in range(width)]


def _runs(rows: set[int]) -> list[tuple[int, int]]:
    """(start, length) of each unbroken run."""
    runs: list[tuple[int, int]] = []
    for row in sorted(rows):
        if runs and row == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=like.device)
