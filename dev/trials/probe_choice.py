"""Can a network's response tell which synthetic images look like its own data? A classifier over a wide bank.

PYTHONPATH=. python dev/trials/probe_choice.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from vision_probes import judge, pink_noise  # noqa: E402

from dnge_compress.families import build_graph
from dnge_compress.painting import dead_leaves, strokes
from dnge_compress.pretrain.batches import example_batches
from dnge_compress.pretrain.zoo import load
from dnge_compress.probe import call, inference_mode_of
from dnge_compress.shelf import Shelf

N = 256
PROCESSES = (pink_noise, dead_leaves, strokes)


def responses(model, x, wrap, graph):
    """Per image: output entropy share, top probability, log logit spread, and log rms at every matrix's module."""
    modules = [
        p.rpartition(".")[0]
        for s in graph.steps
        for p in s.params
        if p.endswith("weight") and s.op not in ("norm", "batchnorm")
    ]
    seen = {m: [] for m in modules}
    handles = [
        model.get_submodule(m).register_forward_hook(
            lambda mod, a, out, m=m: seen[m].append(
                (out[0] if isinstance(out, tuple) else out).flatten(1).float().square().mean(1).clamp_min(1e-12).log()
                / 2
            )
        )
        for m in modules
    ]
    outs = []
    with torch.no_grad(), inference_mode_of(model):
        for part in x.split(64):
            outs.append(call(model, wrap(part)).float())
    for h in handles:
        h.remove()
    logits = torch.cat(outs)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1) / torch.log(torch.tensor(float(logits.shape[-1])))
    inner = torch.stack([torch.cat(v) for v in seen.values() if v], 1)  # [N, modules]
    return torch.stack([entropy, logp.max(-1).values.exp(), logits.std(-1).log()], 1), inner


def features(model, images, wrap, graph, bank):
    """[N, features] relative to the bank's own statistics."""
    top, inner = responses(model, images, wrap, graph)
    top_b, inner_b = responses(model, bank, wrap, graph)
    z = ((inner - inner_b.mean(0)) / inner_b.std(0).clamp_min(1e-3)).clamp(-4, 4)
    thirds = [t.mean(1) for t in z.tensor_split(3, 1)] if z.shape[1] >= 3 else [z.mean(1)] * 3
    spread = z.std(1) if z.shape[1] > 1 else torch.zeros(len(z))
    relative = (top[:, 2] - top_b[:, 2].mean()) / top_b[:, 2].std().clamp_min(1e-3)
    return torch.stack([top[:, 0], top[:, 1], relative.clamp(-4, 4), *thirds, spread], 1)


def gather():
    path = Path("/tmp/choice.pt")
    if path.exists():
        return torch.load(path)
    shelf = Shelf.find(cache="zoo/cache")
    rows = []
    for family in ("mlp", "cnn", "resnet", "vit"):
        for folder in sorted(Path("zoo").glob(f"{family}-*")):
            if "@" in folder.name or int(folder.name[-3:]) >= 112:
                continue
            model, blueprint = load(folder)
            batches = example_batches(blueprint, "train", count=4, batch_size=64, seed=101, shelf=shelf)
            inputs = [b.inputs for b in batches]
            plain = isinstance(inputs[0], torch.Tensor)
            wrap = (lambda x: x) if plain else (lambda x: {"pixel_values": x})
            real = torch.cat(inputs if plain else [b["pixel_values"] for b in inputs])
            graph = build_graph(model, real[:2] if plain else None)
            bank = torch.cat([p((N, *real.shape[1:]), torch.Generator().manual_seed(1)) for p in PROCESSES])
            rows.append(
                dict(
                    name=folder.name,
                    family=family,
                    data=blueprint.data,
                    real=features(model, real, wrap, graph, bank),
                    bank=features(model, bank, wrap, graph, bank),
                )
            )
    torch.save(rows, path)
    return rows


def fit(rows, hidden=16, steps=400):
    torch.manual_seed(0)
    size = rows[0]["real"].shape[1] + len(PROCESSES)
    model = torch.nn.Sequential(torch.nn.Linear(size - 3, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, 1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    x = torch.cat([torch.cat([r["real"], r["bank"]]) for r in rows])
    y = torch.cat([torch.cat([torch.ones(len(r["real"])), torch.zeros(len(r["bank"]))]) for r in rows])
    for _ in range(steps):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(x).squeeze(1), y, pos_weight=torch.tensor(3.0)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model, float(loss)


def main() -> None:
    rows = gather()
    shelf = Shelf.find(cache="zoo/cache")
    totals = {}
    for family in ("mlp", "cnn", "resnet", "vit"):
        chooser, loss = fit([r for r in rows if r["family"] != family])
        print(family, "loss", round(loss, 3))
        for data in ("cifar10", "mnist"):
            mine = [r for r in rows if r["family"] == family and r["data"] == data]
            for r in mine:
                with torch.no_grad():
                    logit = chooser(r["bank"]).squeeze(1)
                share = logit.view(len(PROCESSES), N).exp().mean(1)
                print(
                    "  ",
                    r["name"],
                    data,
                    "share pink/leaves/strokes",
                    [round(float(s), 2) for s in share / share.sum()],
                )
            for r in mine[:: max(1, len(mine) // 2)][:2]:
                model, blueprint = load(Path("zoo") / r["name"])
                judged = example_batches(blueprint, "held-out", count=1, batch_size=256, seed=303, shelf=shelf)[
                    0
                ].inputs
                plain = isinstance(judged, torch.Tensor)
                wrap = (lambda x: x) if plain else (lambda x: {"pixel_values": x})
                shape = (N, *(judged if plain else judged["pixel_values"]).shape[1:])
                bank = torch.cat([p(shape, torch.Generator().manual_seed(1)) for p in PROCESSES])
                with torch.no_grad():
                    logit = chooser(r["bank"]).squeeze(1)
                gumbel = -(-torch.rand(len(logit), generator=torch.Generator().manual_seed(0)).log()).log()
                pick = (logit + gumbel).topk(N).indices
                third = [bank[i * N :][:N] for i in range(3)]
                mixed = torch.cat([t[: N // 3] for t in third])[torch.randperm(3 * (N // 3))]
                for kind, x in (
                    ("chosen", bank[pick]),
                    ("greedy", bank[logit.topk(N).indices]),
                    ("leaves", third[1]),
                    ("strokes", third[2]),
                    ("mixed", mixed),
                ):
                    totals.setdefault((data, kind), []).append(judge(model, [wrap(p) for p in x.split(64)], judged))
                real = [
                    b.inputs for b in example_batches(blueprint, "train", count=4, batch_size=64, seed=101, shelf=shelf)
                ]
                totals.setdefault((data, "real"), []).append(judge(model, real, judged))
    for key, found in sorted(totals.items()):
        print(*key, [round(float(x), 2) for x in torch.stack(found).mean(0)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
