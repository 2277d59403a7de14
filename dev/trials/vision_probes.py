"""Which images probe a vision network best? Mean log KL on real data after pruning and repair with each kind.

PYTHONPATH=. python dev/trials/vision_probes.py --each 3
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dnge_compress.executors.trial import damage, whole_answers
from dnge_compress.families import build_graph
from dnge_compress.painting import _spectral, dead_leaves, strokes
from dnge_compress.pretrain.batches import example_batches
from dnge_compress.pretrain.zoo import load
from dnge_compress.probe import inference_mode_of
from dnge_compress.scorers import Context, probe
from dnge_compress.shelf import Shelf
from dnge_compress.types import Cut

ROWS = 256


def pink_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Images `[N, C, H, W]` with amplitude falling as 1/f, correlated colour channels, varying contrast and tint."""
    n, channels, height, width = shape
    pink = _spectral(shape, 1.0, generator)
    contrast = torch.exp(0.5 * torch.randn(n, 1, 1, 1, generator=generator))
    return pink * contrast + 0.5 * torch.randn(n, channels, 1, 1, generator=generator)


RATIOS = (0.3, 0.5, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=2)
    parser.add_argument("--data", default="cifar10")
    options = parser.parse_args()
    shelf = Shelf.find(cache="zoo/cache")
    totals = {}
    for family in ("mlp", "cnn", "resnet", "vit"):
        runs = [f for f in sorted(Path("zoo").glob(f"{family}-*")) if "@" not in f.name and int(f.name[-3:]) < 112]
        loaded = [load(f) for f in runs]
        fitting = [(f, *m) for f, m in zip(runs, loaded, strict=True) if m[1].data == options.data]
        for folder, model, blueprint in fitting[:: max(1, len(fitting) // options.each)][: options.each]:
            rows = trial(model, blueprint, shelf)
            for kind, found in rows.items():
                totals.setdefault((family, kind), []).append(found)
            print(
                folder.name, blueprint.data, {k: [round(float(x), 2) for x in v] for k, v in rows.items()}, flush=True
            )
    for key, found in totals.items():
        print(*key, [round(float(x), 2) for x in torch.stack(found).mean(0)])
    kinds = {k for _, k in totals}
    for kind in sorted(kinds):
        means = torch.stack([torch.stack(v).mean(0) for (_, k), v in totals.items() if k == kind])
        print("ALL", kind, [round(float(x), 2) for x in means.mean(0)])


def trial(model, blueprint, shelf):
    judged = example_batches(blueprint, "held-out", count=1, batch_size=256, seed=303, shelf=shelf)[0].inputs
    real = [
        b.inputs for b in example_batches(blueprint, "train", count=ROWS // 64, batch_size=64, seed=101, shelf=shelf)
    ]
    shape = (ROWS, *(judged if isinstance(judged, torch.Tensor) else judged["pixel_values"]).shape[1:])
    wrap = (lambda x: x) if isinstance(judged, torch.Tensor) else (lambda x: {"pixel_values": x})
    g = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    kinds = {
        "white": torch.randn(shape, generator=g()),
        "pink": pink_noise(shape, g()),
        "leaves": dead_leaves(shape, g()),
        "strokes": strokes(shape, g()),
    }
    third = ROWS // 3
    kinds["mixed"] = torch.cat([kinds["pink"][:third], kinds["leaves"][:third], kinds["strokes"][: ROWS - 2 * third]])[
        torch.randperm(ROWS, generator=g())
    ]
    out = {k: judge(model, [wrap(p) for p in x.split(64)], judged) for k, x in kinds.items()}
    out["real"] = judge(model, real, judged)
    return out


def judge(model, batches, judged, ratios=RATIOS):
    example = judged[:2] if isinstance(judged, torch.Tensor) else None
    graph = build_graph(model, example)
    context = Context(graph, model, tuple(batches))
    found = []
    with torch.no_grad(), inference_mode_of(model):
        costs = {s: probe.unit_costs(context, s) for s in context.signals}
        reference = whole_answers(context, [judged])
        for ratio in ratios:
            cuts = []
            for s, c in costs.items():
                if graph.space(s).kind == "head" or len(c) < 2:
                    continue
                n = max(1, round((1 - ratio) * len(c)))
                cuts.append(Cut(s, tuple(sorted(c.topk(n).indices.tolist()))))
            found.append(damage(context, cuts, [judged], reference).log())
    return torch.stack(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
