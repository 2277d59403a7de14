"""The graph of a network after cuts, for pruned models whose config can't say their widths."""

from __future__ import annotations

from dataclasses import replace

from dnge_compress.graph.builder import fingerprint
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import ModelGraph, Shapes, Slot, Space, Step


def pruned_graph(applied: AppliedCuts, shapes: Shapes) -> ModelGraph:
    """The graph of the pruned model with these shapes: dropped blocks are gone, and those behind have moved up.

    Spaces keep their names, so `ffn.3` is still the feed-forward layer of the base's block 3. It has no config fields,
    so what is cut again stays uneven.
    """
    graph, keeps = applied.graph, {cut.space: cut.keep for cut in applied.cuts}
    gone = {
        s.name
        for s in graph.spaces
        if graph.slots_of(s.name) and all(applied.path_after(slot.param) is None for slot in graph.slots_of(s.name))
    }

    def space_after(space: Space) -> Space:
        keep = keeps.get(space.name)
        if keep is None:
            return space
        protected = tuple(new for new, old in enumerate(keep) if old in space.protected)
        return replace(space, units=len(keep), modules=space.modules[: len(keep)], protected=protected)

    def slot_after(slot: Slot) -> Slot | None:
        param = applied.path_after(slot.param)
        return None if param is None else replace(slot, param=param)

    def step_after(step: Step) -> Step | None:
        params = tuple(p for p in map(applied.path_after, step.params) if p is not None)
        return replace(step, params=params) if params or not step.params else None

    steps = [s for s in map(step_after, graph.steps) if s is not None]
    return replace(
        graph,
        spaces=tuple(space_after(s) for s in graph.spaces if s.name not in gone),
        slots=tuple(s for s in map(slot_after, graph.slots) if s is not None),
        steps=tuple(replace(s, index=i) for i, s in enumerate(steps)),
        config_fields=(),
        attributes=tuple(
            (space, path, name, factor)
            for space, module, name, factor in graph.attributes
            if space not in gone and (path := applied.path_after(module)) is not None
        ),
        fingerprint=fingerprint(graph.family, shapes),
    )
