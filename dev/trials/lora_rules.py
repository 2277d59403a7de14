"""Which rule turns what is known about a matrix into its rank? Trials on the zoo, never on the reported test model.

    python dev/trials/lora_rules.py --zoo zoo --out runs/lora_rules.json

Small language models of the zoo, trained on books, are adapted to WikiText-2 with LoRA at equal parameters. An arm is
a formula over what was measured about each matrix. Rows are kept on disk after every run.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from adapting import adapt, held_out_loss, windows  # noqa: E402

from dnge_compress.executors.lora import config_of  # noqa: E402
from dnge_compress.lora_plan import Adapter, LoraPlan, Site  # noqa: E402
from dnge_compress.placers import Context, encoder, stable_rank  # noqa: E402
from dnge_compress.pretrain import zoo  # noqa: E402
from dnge_compress.pretrain.corpora import tokenizer_folder  # noqa: E402
from dnge_compress.probe import ProbeSettings, call  # noqa: E402
from dnge_compress.recipes.lora_schema import Lora, LoraRecipe  # noqa: E402
from dnge_compress.recipes.ranks import allocate  # noqa: E402
from dnge_compress.shelf import Shelf  # noqa: E402
from dnge_compress.signals import label_loss  # noqa: E402
from dnge_compress.sites import as_stack, find_sites  # noqa: E402

BATCH = 8


def wikitext(name: str, data: str, shelf: Shelf) -> torch.Tensor:
    text = shelf.file(name).read_text(encoding="utf-8")
    if data == "books-bytes":
        return torch.tensor(list(text.encode()))
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(tokenizer_folder(data, shelf=shelf) / "tokenizer.json"))
    return torch.tensor(found.encode(text).ids)


def gradients(model: nn.Module, sites: list[Site], batches: list, real: bool) -> dict[str, dict[str, float]]:
    """Per site: energies and spectra of batch gradients."""
    model.requires_grad_(True)
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    found = {s.path: {"g2": 0.0, "nuc": 0.0, "top": 0.0, "abs": 0.0} for s in sites}
    mean = {s.path: 0.0 for s in sites}
    for b in batches:
        model.zero_grad()
        out = call(model, b)
        if real:
            ids = b["input_ids"]
            nn.functional.cross_entropy(
                out[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
            ).backward()
        else:
            label_loss(out, True, generator).backward()
        for s in sites:
            g = as_stack(weights[s.weight].grad, s)[0]
            sv = torch.linalg.svdvals(g)
            row = found[s.path]
            row["g2"] += float(g.square().mean()) / len(batches)
            row["abs"] += float(g.abs().mean()) / len(batches)
            row["nuc"] += float(sv.sum()) / len(batches)
            row["top"] += float(sv[0]) / len(batches)
            mean[s.path] = mean[s.path] + g / len(batches)
    for s in sites:
        found[s.path]["mean2"] = float(mean[s.path].square().mean())
        found[s.path]["spec"] = [float(v) for v in torch.linalg.svdvals(mean[s.path])[:32]]
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return found


class Subject:
    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self.name = folder.name
        self.model, blueprint = zoo.load(folder, shelf=shelf)
        self.train = windows(wikitext("wikitext2_valid.txt", blueprint.data, shelf), blueprint.length)
        test = windows(wikitext("wikitext2_test.txt", blueprint.data, shelf), blueprint.length)
        self.test = test[:: max(1, len(test) // 400)][:400]
        self.sites = find_sites(self.model)
        context = Context(self.model, ProbeSettings(tokens=16384))
        self.known = {"probe": gradients(self.model, self.sites, list(context.batches), False)}
        real = [{"input_ids": self.train[i : i + 32]} for i in range(0, 256, 32)]
        self.known["real"] = gradients(self.model, self.sites, real, True)
        self.known["encoder"] = {p: {"g2": v} for p, v in encoder.predicted_energy(self.sites, context).items()}
        self.known["stable"] = dict(stable_rank.weigh(self.sites, context))
        print(self.name, len(self.sites), "sites;", round(held_out_loss(self.model, self.test), 4), file=sys.stderr)

    def run(
        self, weights: dict[str, float], r: int, lr: float, steps: int, seed: int, rounding: float, alpha_rule: str
    ):
        import dnge_compress.recipes.ranks as ranks_module

        ranks_module.ROUNDING = rounding
        budget = sum(s.price * r for s in self.sites)
        lora = Lora(alpha_rule=alpha_rule)
        ranks = allocate(self.sites, weights, budget, lora)
        plan = LoraPlan(
            tuple(Adapter(s, ranks[s.path]) for s in self.sites),
            "",
            budget,
            LoraRecipe(lora=lora).model_dump(mode="json"),
        )
        model = adapt(self.model, config_of(plan), self.train, lr=lr, steps=steps, batch=BATCH, seed=seed)
        return held_out_loss(model, self.test), plan.params / budget, [ranks[s.path] for s in self.sites]


def shape(s: Site) -> float:
    return s.outputs / (s.inputs + s.outputs)


def arms(subject: Subject) -> dict[str, tuple[dict[str, float], float]]:
    sites, known = subject.sites, subject.known

    def by(f):
        return {s.path: float(f(s)) for s in sites}

    def rms(who):
        return by(lambda s: math.sqrt(known[who][s.path]["g2"]))

    def shuffled(weights, seed):
        values = list(weights.values())
        random.Random(seed).shuffle(values)
        return dict(zip(weights, values, strict=True))

    def inverse(weights):
        return {k: 1 / max(v, 1e-12) for k, v in weights.items()}

    def power(w, p):
        return {k: v**p for k, v in w.items()}

    probe, real, enc = rms("probe"), rms("real"), rms("encoder")
    found = {
        "uniform": by(lambda s: 1),
        "stable": known["stable"],
        "shape": by(shape),
        "probe": probe,
        "probe^.5": power(probe, 0.5),
        "probe^2": power(probe, 2),
        "probe*shape": {s.path: probe[s.path] * shape(s) for s in sites},
        "real": real,
        "real mean": by(lambda s: math.sqrt(known["real"][s.path]["mean2"])),
        "real mean^2": by(lambda s: known["real"][s.path]["mean2"]),
        "encoder": enc,
        "encoder^.5": power(enc, 0.5),
        "encoder*shape": {s.path: enc[s.path] * shape(s) for s in sites},
        "probe permuted 1": shuffled(probe, 1),
        "probe permuted 2": shuffled(probe, 2),
        "encoder permuted 1": shuffled(enc, 1),
        "probe inverted": inverse(probe),
        "mlp": by(lambda s: 1 if "mlp" in s.path else 0),
        "attention": by(lambda s: 0 if "mlp" in s.path else 1),
    }
    by_step: dict[tuple[str, ...], list[Site]] = {}
    graph = Context(subject.model).graph
    for s in sites:
        by_step.setdefault(graph.step_of(s.weight).params, []).append(s)
    smooth = {
        s.path: math.sqrt(statistics.fmean(known["probe"][t.path]["g2"] for t in group))
        for group in by_step.values()
        for s in group
    }
    found |= {
        "probe by step": smooth,
        "encoder^1.5": power(enc, 1.5),
        "encoder*stable": {s.path: enc[s.path] * known["stable"][s.path] for s in sites},
        "encoder*stable^.5": {s.path: math.sqrt(enc[s.path] * known["stable"][s.path]) for s in sites},
        "encoder permuted 2": shuffled(enc, 2),
        "stable permuted 1": shuffled(known["stable"], 1),
        "stable permuted 2": shuffled(known["stable"], 2),
        "mlp twice": by(lambda s: 2 if "mlp" in s.path else 1),
    }
    return {k: (v, 0.5) for k, v in found.items()} | {"encoder, all first": (enc, 0.01)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--out", type=Path, default=Path("runs/lora_rules.json"))
    parser.add_argument("--models", nargs="+", default=["llama-089", "gpt2-067", "llama-103", "llama-005", "gpt2-123"])
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.005, 0.01, 0.02])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--alpha", default="constant_scale")
    options = parser.parse_args()
    shelf = Shelf.find(None, options.zoo / "cache")
    rows = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name in options.models:
        subject = Subject(options.zoo / name, shelf)
        for arm, (weights, rounding) in arms(subject).items():
            if options.arms and arm not in options.arms:
                continue
            said = arm if options.alpha == "constant_scale" else f"{arm}, constant alpha"
            for lr in options.lrs:
                for seed in range(options.seeds):
                    key = "|".join(map(str, (name, options.rank, options.steps, said, lr, seed)))
                    if key in rows:
                        continue
                    started = time.perf_counter()
                    rows[key] = subject.run(weights, options.rank, lr, options.steps, seed, rounding, options.alpha)
                    options.out.write_text(json.dumps(rows))
            mean = {
                lr: statistics.fmean(
                    rows["|".join(map(str, (name, options.rank, options.steps, said, lr, s)))][0]
                    for s in range(options.seeds)
                )
                for lr in options.lrs
            }
            shown = "  ".join(f"{lr:g}: {v:.4f}" for lr, v in mean.items())
            print(
                f"{name} r={options.rank} {said:32s} {shown}   {time.perf_counter() - started:.1f} s",
                file=sys.stderr,
                flush=True,
            )


if __name__ == "__main__":
    main()
