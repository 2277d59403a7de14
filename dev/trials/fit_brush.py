"""Fit the brush of the leaf painter on the zoo: random steps from the best so far, kept if pruning gets better.

PYTHONPATH=. python dev/trials/fit_brush.py
"""

import random
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from vision_probes import judge  # noqa: E402

from dnge_compress.painting import Brush, dead_leaves, strokes
from dnge_compress.pretrain.batches import example_batches
from dnge_compress.pretrain.fit import is_held_out
from dnge_compress.pretrain.zoo import load
from dnge_compress.shelf import Shelf

N = 192


def networks(data, shelf, each=2):
    found = []
    for family in ("mlp", "cnn", "resnet", "vit"):
        runs = [
            f
            for f in sorted(Path("zoo").glob(f"{family}-*"))
            if "@" not in f.name and int(f.name[-3:]) < 112 and not is_held_out(f.name)
        ]
        pairs = [(f.name, *load(f)) for f in runs]
        pairs = [p for p in pairs if p[2].data == data]
        for name, model, b in pairs[1 :: max(1, len(pairs) // each)][:each]:
            judged = example_batches(b, "train", count=1, batch_size=256, seed=303, shelf=shelf)[0].inputs
            found.append((name, model, judged))
    return found


def value(nets, paint):
    total = []
    for _, model, judged in nets:
        plain = isinstance(judged, torch.Tensor)
        x = paint((N, *(judged if plain else judged["pixel_values"]).shape[1:]), torch.Generator().manual_seed(0))
        batches = [p if plain else {"pixel_values": p} for p in x.split(64)]
        total.append(judge(model, batches, judged, ratios=(0.3, 0.5)).mean())
    return float(torch.stack(total).mean())


def main() -> None:
    shelf = Shelf.find(cache="zoo/cache")
    nets = networks("mnist", shelf)
    print([n for n, _, _ in nets])
    for share in (0.75, 0.9):

        def paint(shape, g, share=share):
            n = round(share * shape[0])
            parts = [strokes((n, *shape[1:]), g)] * (n > 0) + [dead_leaves((shape[0] - n, *shape[1:]), g)] * (
                n < shape[0]
            )
            return torch.cat(parts)[torch.randperm(shape[0], generator=g)]

        print("mnist, share of strokes", share, round(value(nets, paint), 3), flush=True)
    nets = networks("cifar10", shelf)
    print([n for n, _, _ in nets])
    rng = random.Random(0)
    best, step = Brush(), 0.5
    top = value(nets, lambda s, g: dead_leaves(s, g, best))
    print("start", round(top, 3), flush=True)
    for i in range(45):
        changed = {
            k: v * 2.718 ** (step * rng.gauss(0, 1)) if rng.random() < 0.5 else v for k, v in asdict(best).items()
        }
        changed["largest"] = min(changed["largest"], 2.0)
        trial = Brush(**changed)
        got = value(nets, lambda s, g, b=trial: dead_leaves(s, g, b))
        if got < top:
            best, top, step = trial, got, min(0.7, step * 1.2)
            print(i, round(top, 3), {k: round(v, 3) for k, v in asdict(best).items()}, flush=True)
        else:
            step = max(0.15, step * 0.95)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
