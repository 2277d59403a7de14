"""Any `nn.Module`, by running it: CNNs, recurrent networks, transformers, whatever no family file knows.

torch-pruning proposes which axes belong together, and attention is looked for; nothing is believed without proof. A
space is prunable only if the model without half of its units computes what the whole model computes with those units'
consumers set to zero, which is tried on a randomised copy. Everything else (outputs, shared modules, interleavings, …)
is "fixed"; widths under a layer norm or an embedding are "residual".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.core.deadline import deadline
from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph.builder import GraphBuilder
from dnge_compress.graph.layer_types import is_depthwise
from dnge_compress.graph.tracing.groups import TracedGroup, coupled_groups
from dnge_compress.graph.tracing.heads import head_groups
from dnge_compress.graph.tracing.layers import Layer, Side, executed_layers, hindrances, listed
from dnge_compress.graph.tracing.proof import Proof, attributes_of, bundles
from dnge_compress.graph.tracing.reached import unreached_modules
from dnge_compress.graph.tracing.running import as_float32, randomised_copy
from dnge_compress.graph.types import Kind, ModelGraph, Shapes

FIXED_HEADS = (
    "nn.MultiheadAttention takes the size of a head to be embed_dim / num_heads, so it can't have fewer heads of the "
    "same size"
)


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
    over = UnsupportedModelError(
        f"tracing {name} did not end within {timeout_s:g} s: torch-pruning loops for ever on some networks, most often "
        "on attention with grouped heads; compress a part of it that has none (compress(model.part, …)), or write a "
        "family file for it (docs/how-to/extend.md)"
    )
    with deadline(timeout_s, over), torch.inference_mode(False), torch.enable_grad():
        net, inputs = randomised_copy(model), as_float32(example_inputs)
        layers = {layer.name: layer for layer in executed_layers(net, inputs)}
        proof = Proof(net, inputs, layers)
        groups = proof.of(coupled_groups(net, inputs, layers))
        groups, stayed = head_groups(net, inputs, groups, proof)
        notes = _notes(net, inputs)
    if not any(g.is_free for g in groups):
        reasons = sorted({g.why or "a layer norm or an embedding mixes the units" for g in groups})
        raise UnsupportedModelError(
            f"{name} has nothing to prune: {'; '.join([*notes, *reasons]) or 'no linear or conv layer was reached'}. "
            "It needs an inner width that one layer writes and another reads, or a family file of its own"
        )
    shapes = {key: tuple(t.shape) for key, t in state.items()}
    return _assemble(shapes, layers, groups, notes, _reasons(net, stayed))


def _notes(net: nn.Module, inputs: Any) -> list[str]:
    """What a user should know about modules that the graph says nothing of."""
    notes = hindrances(net)
    unreached = unreached_modules(net, inputs)
    if unreached:
        notes.append(
            f"the example inputs never reach {listed(unreached)}, which keeps its size: a branch that leads there no "
            "longer fits where it read what was cut; give inputs that take it, or protect what it reads"
        )
    return notes


def _reasons(net: nn.Module, stayed: list[str]) -> list[tuple[Kind, str]]:
    if stayed:
        what = "they can't be proved to go; a number of heads or a width may be written into the forward method"
        return [("head", f"behind {listed(stayed)} is attention, but {what}")]
    return [("head", FIXED_HEADS)] if any(isinstance(m, nn.MultiheadAttention) for m in net.modules()) else []


def _assemble(
    shapes: Shapes,
    layers: dict[str, Layer],
    groups: list[TracedGroup],
    notes: list[str],
    reasons: list[tuple[Kind, str]],
) -> ModelGraph:
    g = GraphBuilder("traced", shapes)
    order = list(layers)
    groups = sorted(groups, key=lambda group: order.index(group.root.name))
    depthwise = {layer.path for layer in layers.values() if is_depthwise(layer.module)}  # surgery knows them
    for group in groups:
        g.space(group.root.name, group.units, group.kind)
        for path, attribute, change in attributes_of(group, layers) if group.is_free else ():
            if path not in depthwise:
                g.attribute(group.root.name, path, attribute, change)
    for bundle in bundles([g for g in groups if g.is_free], layers):
        g.equal(*(group.root.name for group in bundle))
    for layer in layers.values():
        writes = _tie(g, layer, "out", groups)
        reads = _tie(g, layer, "in", groups) if layer.reads else () if layer.op == "embed" else writes
        params = [param for param, _ in layer.tensors("out")]
        if params:
            g.step(layer.op, reads, writes, params, activation=layer.activation, is_behind=layer.is_behind)
    return replace(g.finish(), notes=tuple(notes), reasons=tuple(reasons))


def _tie(g: GraphBuilder, layer: Layer, side: Side, groups: list[TracedGroup]) -> tuple[str, ...]:
    """Slots for one side of a layer; returns the spaces there, a fixed one of its own where no group reaches."""
    names = []
    for group in groups:
        for offset, width in layer.in_tensors(side, group.parts.get((layer.name, side), ())):
            names.append(group.root.name)
            for param, axis in layer.tensors(side):
                g.slot(param, axis, group.root.name, width, offset)
    if not names:
        names = [g.space(f"{layer.name}:{side}", layer.rows(side), "fixed")]
        for param, axis in layer.tensors(side):
            g.slot(param, axis, names[0])
    return tuple(dict.fromkeys(names))
