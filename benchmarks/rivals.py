"""Tools that users would pick instead, run on the same models: torch-pruning itself, optipfair's neuron selection,
and model folding. Each takes a dense model and returns a pruned copy with FFN neurons removed in every layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch_pruning as tp
from torch import Tensor, nn

from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import Cut
from dnge_compress.signals.inference import Inputs
from dnge_compress.surgery.cut import cut

Producers = Callable[[nn.Module, int], list[nn.Linear]]


def torch_pruning(model: nn.Module, inputs: Inputs, ratio: float) -> nn.Module:
    """Torch-pruning 1.6's group magnitude on the groups of the FFN's first matrices, traced and pruned by itself."""
    small = copy.deepcopy(model)
    for p in small.parameters():
        p.requires_grad_(True)
    extra = {"use_cache": False} if getattr(small.config, "use_cache", None) is not None else {}
    graph = tp.DependencyGraph().build_dependency(
        small, example_inputs={**inputs, **extra}, output_transform=lambda out: out[0]
    )
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    modules = dict(small.named_modules())
    for space in build_graph(model).of_kind("neuron"):
        slot = next(s for s in build_graph(model).slots_of(space.name) if not build_graph(model).consumes(s))
        root = modules[slot.param.rpartition(".")[0]]
        group = graph.get_pruning_group(root, tp.prune_linear_out_channels, idxs=list(range(space.units)))
        scores = importance(group)
        away = scores.argsort()[: round(ratio * space.units)].tolist()
        graph.get_pruning_group(root, tp.prune_linear_out_channels, idxs=away).prune()
    return small


def optipfair(model: nn.Module, ratio: float) -> nn.Module:
    """Optipfair's default neuron selection for gated layers, "maximum absolute weight": max + |min| of the neuron's
    rows in the gate and up matrices (re-derived from its documentation; its selection only, through our surgery)."""
    weights = model.state_dict()
    graph = build_graph(model)

    def spread(w: Tensor) -> Tensor:
        return w.float().max(1).values + w.float().min(1).values.abs()

    cuts = []
    for space in graph.of_kind("neuron"):
        rows = [s.param for s in graph.slots_of(space.name) if not graph.consumes(s) and s.param.endswith("weight")]
        scores = sum(spread(weights[p]) for p in rows)
        keep = scores.topk(space.units - round(ratio * space.units)).indices
        cuts.append(Cut(space.name, tuple(sorted(keep.tolist()))))
    small = copy.deepcopy(model)
    cut(small, AppliedCuts(graph, tuple(cuts)))
    return small


def folding(model: nn.Module, ratio: float, seed: int = 0) -> nn.Module:
    """Model folding (Wang et al. 2025): k-means on each neuron's incoming rows; a cluster becomes one neuron with the
    mean of its members' incoming weights and the sum of their outgoing columns. No data, no repair."""
    weights = model.state_dict()
    graph = build_graph(model)
    small = copy.deepcopy(model)
    merged: dict[str, Tensor] = {}
    cuts = []
    for space in graph.of_kind("neuron"):
        producers = [s for s in graph.slots_of(space.name) if not graph.consumes(s)]
        rows = torch.cat([weights[s.param].float().transpose(0, s.axis).reshape(space.units, -1) for s in producers], 1)
        labels = _kmeans(rows, space.units - round(ratio * space.units), seed)
        clusters = int(labels.max()) + 1
        one_hot = torch.nn.functional.one_hot(labels, clusters).float()
        mean = one_hot / one_hot.sum(0)
        for s in graph.slots_of(space.name):
            mix = one_hot if graph.consumes(s) else mean
            moved = merged.get(s.param, weights[s.param]).float().transpose(0, s.axis)
            merged[s.param] = (
                (mix.T @ moved.reshape(space.units, -1)).reshape(clusters, *moved.shape[1:]).transpose(0, s.axis)
            )
        cuts.append(Cut(space.name, tuple(range(clusters))))
    cut(small, AppliedCuts(graph, tuple(cuts)))
    small.load_state_dict({k: merged.get(k, v) for k, v in small.state_dict().items()})
    return small


def _kmeans(rows: Tensor, clusters: int, seed: int, rounds: int = 15) -> Tensor:
    """Lloyd's algorithm from random rows; every cluster keeps at least one member."""
    generator = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=generator)[:clusters]]
    for _ in range(rounds):
        labels = torch.cdist(rows, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, labels, rows)
        counts = labels.bincount(minlength=clusters)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    labels = torch.cdist(rows, centres).argmin(1)
    return labels.unique(return_inverse=True)[1] if clusters == len(labels.unique()) else _repaired(labels, clusters)


def _repaired(labels: Tensor, clusters: int) -> Tensor:
    """Give every empty cluster a member of the largest one, so that exactly `clusters` neurons are left."""
    labels = labels.clone()
    for empty in (labels.bincount(minlength=clusters) == 0).nonzero().flatten().tolist():
        largest = int(labels.bincount(minlength=clusters).argmax())
        labels[(labels == largest).nonzero()[0]] = empty
    return labels
