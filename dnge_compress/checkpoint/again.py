"""Models that are compressed again: where only replaying plans rebuilds them, the plans become one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from dnge_compress.checkpoint.compression import Compression
from dnge_compress.graph.builder import shapes_of
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.pruned import pruned_graph
from dnge_compress.graph.types import ModelGraph
from dnge_compress.graph.vocabulary import vocabulary_graph
from dnge_compress.plans.composed import composed, refuse_uncomposable
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.signals.inference import Inputs
from dnge_compress.surgery.vocabulary import cut_vocabulary


def graph_to_cut(model: nn.Module, example_inputs: Inputs | None = None) -> ModelGraph:
    """The graph of a model that is to be cut. Raises PlanError where an earlier plan and another can't become one."""
    graph = graph_of(model, example_inputs)
    before = _replayed(model)
    if before is not None and not _is_renamed(model):
        refuse_uncomposable(before[1], graph)
    return graph


def graph_of(model: nn.Module, example_inputs: Inputs | None = None) -> ModelGraph:
    """The model's graph; of one that `compress` gave uneven widths, its base's graph under the same cuts, whose spaces
    keep the base's names."""
    attached = getattr(model, "dnge", None)
    if not isinstance(attached, Compression) or attached.plan is None or not _is_renamed(model):
        return build_graph(model, example_inputs)
    assert attached.base_config is not None
    with torch.device("meta"):
        base = type(model)(AutoConfig.for_model(**attached.base_config))
    if attached.vocabulary is not None:
        cut_vocabulary(base, vocabulary_graph(base), attached.vocabulary.keep)
    return pruned_graph(AppliedCuts(build_graph(base), attached.plan.cuts), shapes_of(model))


def again(model: nn.Module, graph: ModelGraph, compression: Compression) -> Compression:
    """The compression of a `model` with this graph, on top of what was done to it before. Raises PlanError."""
    before = _replayed(model)
    if before is None or compression.plan is None:
        return compression
    earlier, plan = before
    whole = composed(plan, compression.plan, None if _is_renamed(model) else graph)
    return replace(compression, plan=whole, base_config=earlier.base_config, vocabulary=earlier.vocabulary)


def _is_renamed(model: nn.Module) -> bool:
    """Whether the graph of a model is read off its base's config, by whose names its spaces go on being called."""
    attached = getattr(model, "dnge", None)
    return isinstance(attached, Compression) and attached.is_uneven and attached.base_config is not None


def _replayed(model: nn.Module) -> tuple[Compression, PrunePlan] | None:
    """What an earlier compression left on a model that only replaying its plan can rebuild."""
    found = getattr(model, "dnge", None)
    if not isinstance(found, Compression) or found.plan is None:
        return None
    return (found, found.plan) if found.is_uneven or not isinstance(model, PreTrainedModel) else None
