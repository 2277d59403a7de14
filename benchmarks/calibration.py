"""How much of the gap between random and real inputs does synthetic calibration close? On held-out zoo networks.

    python benchmarks/calibration.py --zoo zoo        # about 5 minutes; writes results/calibration.{md,json}

Neurons and channels are chosen and repaired with each kind of inputs, the same number of each, 30 / 50 / 70 % of them
in every layer; the damage is judged on other real data. Share closed: (random − synthetic) / (random − real), in log
nats. Real data are the network's own training images or texts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import RESULTS, markdown, write
from torch import Tensor, nn

from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import Cut
from dnge_compress.plans.trial import measured_divergence
from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext, obs
from dnge_compress.signals.calibration import calibration_inputs
from dnge_compress.signals.divergence import outputs_of
from dnge_compress.signals.inference import Inputs, inference_mode_of
from dnge_compress.zoo import build as zoo
from dnge_compress.zoo.batches import example_batches
from dnge_compress.zoo.blueprint import Blueprint
from dnge_compress.zoo.corpora import VOCABULARY
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.pretrain.fit import is_held_out
from dnge_compress.zoo.pretrain.train import has_learned

FAMILIES = ("mlp", "cnn", "resnet", "vit", "bert")  # causal language models sample their own text
RATIOS = (0.3, 0.5, 0.7)
TOKENS = 8192


def main() -> None:
    """Measure all held-out networks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--each", type=int, default=6, help="networks of a family")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data_root = DataRoot.find(cache=options.zoo / "cache")
    rows: dict[str, dict[str, list[float]]] = {}
    for family in FAMILIES:
        found = [f for f in zoo.finished(options.zoo) if f.name.startswith(family) and "@" not in f.name]
        for folder in [f for f in found if is_held_out(f.name) and has_learned(f)][: options.each]:
            rows[folder.name] = measured(folder, data_root)
            print(folder.name, rows[folder.name], file=sys.stderr, flush=True)
    shown = " / ".join(f"{r:.0%}" for r in RATIOS)
    head = ["family", "networks", "random", "synthetic", "real", f"share of the gap closed at {shown}"]
    table = []
    for family in (*FAMILIES, ""):
        mine = [v for name, v in rows.items() if name.startswith(family)]
        means = {k: torch.tensor([row[k] for row in mine]).mean(0) for k in ("random", "synthetic", "real")}
        closed = (means["random"] - means["synthetic"]) / (means["random"] - means["real"])
        cells = [" / ".join(f"{x:.2f}" for x in means[k].tolist()) for k in means]
        shares = " / ".join(f"{x:.0%}" for x in closed.tolist())
        table.append([family or "all", str(len(mine)), *cells, shares])
    title = "Calibration against real data: mean log damage (log nats; lower is better)"
    write("calibration", title, markdown(head, table))
    (RESULTS / "calibration.json").write_text(json.dumps(rows, indent=1))


def measured(folder: Path, data_root: DataRoot) -> dict[str, list[float]]:
    """One network: log damage per kind of inputs and ratio."""
    model, blueprint = zoo.load(folder, data_root=data_root)
    judged = example_batches(blueprint, "held-out", count=1, batch_size=256, seed=505, data_root=data_root)[0].inputs
    inputs = calibration_inputs(model, Calibration(tokens=TOKENS), judged if isinstance(judged, Tensor) else None)
    rows = sum(len(b if isinstance(b, Tensor) else next(iter(b.values()))) for b in inputs)
    rows = TOKENS // blueprint.length if blueprint.is_language else rows
    real = example_batches(blueprint, "train", count=max(1, rows // 32), batch_size=32, seed=404, data_root=data_root)
    kinds = {"random": random_inputs(blueprint, judged, rows), "synthetic": inputs, "real": [b.inputs for b in real]}
    return {kind: log_damage(model, batches, judged) for kind, batches in kinds.items()}


def random_inputs(blueprint: Blueprint, like: Inputs, rows: int) -> list[Inputs]:
    """White noise, or uniform token ids."""
    generator = torch.Generator().manual_seed(0)
    if blueprint.is_language:
        ids = torch.randint(VOCABULARY[blueprint.data], (rows, blueprint.length), generator=generator)
        return [{"input_ids": part} for part in ids.split(32)]
    shape = (like if isinstance(like, Tensor) else like["pixel_values"]).shape[1:]
    noise = torch.randn((rows, *shape), generator=generator)
    return [part if isinstance(like, Tensor) else {"pixel_values": part} for part in noise.split(64)]


def log_damage(model: nn.Module, batches: Sequence[Inputs], judged: Inputs) -> list[float]:
    """Log damage on `judged` after selection and repair on `batches`, at each ratio."""
    graph = build_graph(model, judged[:2] if isinstance(judged, Tensor) else None)
    context = ScoringContext(graph=graph, model=model, data=tuple(batches))
    found = []
    with torch.no_grad(), inference_mode_of(model):
        costs = {s.name: obs.unit_costs(context, s.name) for s in graph.of_kind("neuron", "channel")}
        reference = [outputs_of(model, judged)]
        for ratio in RATIOS:
            cuts = tuple(
                Cut(name, tuple(sorted(c.topk(max(1, round((1 - ratio) * len(c)))).indices.tolist())))
                for name, c in costs.items()
            )
            damage = measured_divergence(context, AppliedCuts(graph, cuts), [judged], reference, context.repair)
            found.append(float(damage.clamp_min(1e-9).log()))
    return found


if __name__ == "__main__":
    main()
