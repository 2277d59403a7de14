"""Models that are compressed again: where only replaying plans rebuilds them, the plans become one."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from dnge_compress.checkpoint.compression import Compression
from dnge_compress.core.errors import PlanError, UnsupportedModelError, first_line
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import ModelGraph
from dnge_compress.plans.composed import composed, refuse_uncomposable
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.signals.inference import Inputs


def graph_to_cut(model: nn.Module, example_inputs: Inputs | None = None) -> ModelGraph:
    """The graph of a model that is to be cut. Raises PlanError where an earlier plan and another can't become one."""
    before = _replayed(model)
    if before is None:
        return build_graph(model, example_inputs)
    try:
        graph = build_graph(model, example_inputs)
    except UnsupportedModelError as e:
        raise PlanError(
            f"this {type(model).__name__} was compressed before to widths that its config can't say ({first_line(e)}); "
            "compress the original once"
        ) from e
    refuse_uncomposable(before[1], graph)
    return graph


def again(model: nn.Module, graph: ModelGraph, compression: Compression) -> Compression:
    """The compression of a `model` with this graph, on top of what was done to it before. Raises PlanError."""
    before = _replayed(model)
    if before is None or compression.plan is None:
        return compression
    earlier, plan = before
    whole = composed(plan, compression.plan, graph)
    return replace(compression, plan=whole, base_config=earlier.base_config, vocabulary=earlier.vocabulary)


def _replayed(model: nn.Module) -> tuple[Compression, PrunePlan] | None:
    """What an earlier compression left on a model that only replaying its plan can rebuild."""
    found = getattr(model, "dnge", None)
    if not isinstance(found, Compression) or found.plan is None:
        return None
    return (found, found.plan) if found.is_uneven or not isinstance(model, PreTrainedModel) else None
