"""Networks whose accuracy is to be read from their weights: as graphs, and as tables of what else is known of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import small_cnns
import torch
from accuracy_probes import asked, pictures
from small_cnns import CnnSet
from torch import Tensor

from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import ModelGraph, Slot
from dnge_compress.zoo.blueprint import IMAGE, Blueprint
from dnge_compress.zoo.build import finished, load, record

CLASSES = "classes"
BOTH = "statistics and answers"
ACTIVATIONS = ("relu", "tanh", "gelu", "silu")
LAYOUTS = ("pool", "flatten", "bottleneck")
FEATURES = 6 + len(ACTIVATIONS)  # of a unit, from the weights; what it answers to probes follows them
FLOOR = 1e-8
PARTS = 4  # of the runs; one is judged
CHOOSING = 5  # every fifth learning run is there to choose by


@dataclass(frozen=True)
class Herd:
    """Networks of one shape, and where they stand among all."""

    graph: ModelGraph
    stack: dict[str, Tensor]  # [N, …]
    features: dict[str, Tensor]  # [N, U, F] per space, F = FEATURES + PROBED
    places: Tensor  # int64 [N]


@dataclass(frozen=True)
class Subjects:
    """Networks to be judged: what is known of each, and to which training run and data set it belongs."""

    herds: tuple[Herd, ...]
    accuracy: Tensor  # [N], 0..1
    run: Tensor  # int64 [N]
    data: Tensor  # int64 [N]
    tables: dict[str, Tensor]  # what regressors read, [N, columns] each

    def __len__(self) -> int:
        return len(self.run)


def readable(graph: ModelGraph) -> ModelGraph:
    """The graph with outputs called "classes", and with a memory for everything that is written inside."""
    written = [name for step in graph.steps for name in step.writes]
    last = written[-1]
    inner = {s.name for s in graph.spaces if s.kind == "fixed" and s.name in written and s.name != last}

    def name(old: str) -> str:
        return CLASSES if old == last else old

    spaces = (replace(s, name=name(s.name), kind="channel" if s.name in inner else s.kind) for s in graph.spaces)
    slots = (replace(s, space=name(s.space)) for s in graph.slots)
    steps = (replace(s, reads=(*map(name, s.reads),), writes=(*map(name, s.writes),)) for s in graph.steps)
    return ModelGraph(
        family=graph.family, spaces=(*spaces,), slots=(*slots,), steps=(*steps,), fingerprint=graph.fingerprint
    )


def unit_features(graph: ModelGraph, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each unit shows by itself `[U, F]`: bias, log sizes of what comes in and goes out, norm, activation."""
    acts = {name: step.activation for step in graph.steps for name in step.writes if step.activation}
    found = {}
    for space in graph.spaces:
        slots = graph.slots_of(space.name)
        if space.kind == "layer" or not any(not graph.consumes(s) for s in slots):
            continue
        parts: dict[str, list[Tensor]] = {k: [] for k in ("bias", "gain", "in", "out", "running_mean", "running_var")}
        for slot in slots:
            rows = _rows(graph, weights, slot)
            leaf = slot.param.rpartition(".")[2]
            if leaf == "weight" and weights[slot.param].dim() > 1:
                parts["out" if graph.consumes(slot) else "in"].append(rows.square().mean(1))
            else:
                parts["gain" if leaf == "weight" else leaf].append(rows.mean(1))
        zero = torch.zeros(space.units)
        sizes = [torch.stack(parts[k]).mean(0).clamp_min(FLOOR).log() / 2 if parts[k] else zero for k in ("in", "out")]
        means = [torch.stack(parts[k]).mean(0) if parts[k] else zero for k in ("bias", "gain", "running_mean")]
        spread = torch.stack(parts["running_var"]).mean(0).clamp_min(FLOOR).log() if parts["running_var"] else zero
        kinds = [zero + (acts.get(space.name) == a) for a in ACTIVATIONS]
        found[space.name] = torch.stack([*means, *sizes, spread, *kinds], 1)
    return found


def beside(own: Mapping[str, Tensor], heard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Features of units, and after them what the units answer to probes: space → `[U, FEATURES + PROBED]`."""
    return {name: torch.cat([values, heard[name]], 1) for name, values in own.items()}


def small_cnn_subjects(file: Path) -> Subjects:
    """The set of small CNNs. Tables: statistics, epoch (training steps), hyper (and steps), answers to probes."""
    found = CnnSet.load(file)
    graph = readable(small_cnns.graph())
    features: dict[str, list[Tensor]] = {}
    answers: list[Tensor] = []
    shown = pictures(1, 32, is_photograph=True)
    for i in range(len(found)):
        own = unit_features(graph, {name: values[i] for name, values in found.stack.items()})
        for name, values in own.items():
            if name != CLASSES:
                values[:, -len(ACTIVATIONS) + (0 if found.is_relu[i] else 1)] = 1
        heard, row = asked(found.module(i), graph, shown, CLASSES)
        answers.append(row)
        for name, values in beside(own, heard).items():
            features.setdefault(name, []).append(values)
    herd = Herd(graph, found.stack, {k: torch.stack(v) for k, v in features.items()}, torch.arange(len(found)))
    step, is_relu = found.step.float().log(), found.is_relu.float()
    logs = [v.log() if k in ("learning_rate", "weight_decay", "init", "share") else v for k, v in found.hyper.items()]
    statistics = [summary(values.flatten(1)) for values in found.stack.values()]
    tables = {
        "statistics": torch.cat([*statistics, is_relu[:, None]], 1),
        "epoch": step[:, None],
        "hyper": torch.stack([*logs, step, is_relu], 1),
        "answers": torch.stack(answers),
    }
    tables[BOTH] = torch.cat([tables["statistics"], tables["answers"]], 1)
    return Subjects((herd,), found.accuracy, found.run, torch.zeros_like(found.run), tables)


def zoo_subjects(zoo: Path, families: Sequence[str]) -> Subjects:
    """Networks of the pretraining zoo. Tables: statistics, epoch (share of the schedule, steps), hyper, norm,
    answers to probes. Raises SystemExit where none is there."""
    runs: dict[str, list[Path]] = {}
    for folder in finished(zoo):
        if folder.name.partition("-")[0] in families:
            runs.setdefault(folder.name.partition("@")[0], []).append(folder)
    herds, rows = [], []
    for number, folders in enumerate(runs.values()):
        herd, own = _run(folders, sum(len(h.places) for h in herds))
        herds.append(herd)
        rows += [row | {"run": number} for row in own]
    if not rows:
        kinds = " or ".join(families)
        raise SystemExit(f"'{zoo}' holds no {kinds}; `dnge zoo` makes them, or accuracy_zoo.py those of the short rows")
    accuracy, run, data = (torch.tensor([row[key] for row in rows]) for key in ("accuracy", "run", "data"))
    names = [key for key in rows[0] if key not in ("accuracy", "run", "data")]
    tables = {n: torch.stack([row[n] for row in rows]) for n in names}
    tables[BOTH] = torch.cat([tables["statistics"], tables["answers"]], 1)
    return Subjects(tuple(herds), accuracy, run, data, tables)


def splits(run: Tensor, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Positions to fit on, to choose by and to judge, for each fold; a run's networks stay together."""
    runs = run.unique()
    runs = runs[torch.randperm(len(runs), generator=torch.Generator().manual_seed(seed))]
    found = []
    for fold in range(PARTS):
        judged = runs[fold::PARTS]
        learned = runs[~torch.isin(runs, judged)]
        chosen = learned[::CHOOSING]
        fitted = learned[~torch.isin(learned, chosen)]
        found.append(tuple(torch.isin(run, part).nonzero().squeeze(1) for part in (fitted, chosen, judged)))
    return found


def summary(values: Tensor) -> Tensor:
    """Mean, variance, and quantiles 0, .25, .5, .75, 1 of each row `[N, 7]` (Unterthiner et al., arXiv 2002.11448)."""
    marks = torch.tensor([0, 0.25, 0.5, 0.75, 1.0])
    # torch's quantile takes 16 million values at most
    quantiles = torch.stack([torch.quantile(row[:: -(-len(row) // 2**22)], marks) for row in values])
    return torch.cat([values.mean(1, True), values.var(1, keepdim=True, correction=0), quantiles], 1)


def _run(folders: Sequence[Path], first: int) -> tuple[Herd, list[dict]]:
    """The networks of one run: as a herd, and a row about each."""
    weights, features, rows = [], [], []
    for folder in folders:
        model, blueprint = load(folder)
        channels, side = IMAGE[blueprint.data]
        graph = readable(build_graph(model, torch.zeros(2, channels, side, side)))
        weights.append({k: v for k, v in model.state_dict().items() if v.is_floating_point()})
        heard, answers = asked(model, graph, pictures(channels, side), CLASSES)
        features.append(beside(unit_features(graph, weights[-1]), heard))
        rows.append({
            "accuracy": record(folder)["quality"]["accuracy"],
            "data": sorted(IMAGE).index(blueprint.data),
            "statistics": _statistics(graph, weights[-1], channels),
            "epoch": torch.tensor([blueprint.stop / blueprint.steps, blueprint.stop]),
            "hyper": _hyper(blueprint),
            "answers": answers,
            "norm": torch.stack([_log(sum(v.square().sum() for v in weights[-1].values())),
                                 _log(torch.cat([v.flatten() for v in weights[-1].values()]).square().mean())]),
        })  # fmt: skip
    stack, about = ({k: torch.stack([p[k] for p in parts]) for k in parts[0]} for parts in (weights, features))
    return Herd(graph, stack, about, torch.arange(first, first + len(folders))), rows


def _statistics(graph: ModelGraph, weights: Mapping[str, Tensor], channels: int) -> Tensor:
    """Summaries of matrices, biases, gains and running statistics: mean, least and largest over the layers, the first
    and the last layer's; depth, parameters, input channels, activation."""
    groups: dict[str, list[Tensor]] = {k: [] for k in ("matrix", "bias", "gain", "running_mean", "running_var")}
    sizes = []
    for name in (p for step in graph.steps for p in step.params):
        values, leaf = weights[name].float(), name.rpartition(".")[2]
        key = "matrix" if values.dim() > 1 else "gain" if leaf == "weight" else leaf
        groups[key].append(summary(values.flatten()[None])[0])
        if key == "matrix":
            sizes.append(_log(values.square().mean() * values[0].numel()))
    groups["size"] = [s[None] for s in sizes]
    parts = []
    for key, found in groups.items():
        width = 1 if key == "size" else 7
        layers = torch.stack(found) if found else torch.zeros(1, width)
        parts += [layers.mean(0), layers.amin(0), layers.amax(0), layers[0], layers[-1]]
    count = math.log(sum(v.numel() for v in weights.values()))
    used = [step.activation for step in graph.steps]
    flags = [float(a in used) for a in ACTIVATIONS] + [float(bool(groups["gain"]))]
    return torch.cat([*parts, torch.tensor([len(sizes), count, channels, *flags])])


def _hyper(b: Blueprint) -> Tensor:
    flags = [b.family == "mlp", b.family == "cnn", b.family == "resnet", b.optimiser == "sgd", b.batch_norm]
    flags += [b.activation == a for a in ACTIVATIONS] + [b.data == "mnist", *(w in b.layout for w in LAYOUTS)]
    sizes = [b.depth, *(math.log(f(b.widths)) for f in (min, max, sum)), b.heads, b.ffn, b.patch]
    training = [math.log(b.lr), b.weight_decay, b.dropout, b.init, b.batch_size, b.steps, b.stop, b.stop / b.steps]
    return torch.tensor([*map(float, flags), *sizes, *training])


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(FLOOR).log()


def _rows(graph: ModelGraph, weights: Mapping[str, Tensor], slot: Slot) -> Tensor:
    units = graph.space(slot.space).units
    rows = weights[slot.param].float().movedim(slot.axis, 0)
    return rows.narrow(0, slot.offset, units * slot.width).reshape(units, -1)
