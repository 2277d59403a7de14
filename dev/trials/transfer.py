"""Can an encoder that saw vision alone help on networks of another kind? Several ways to train it, and to read it out.

    PYTHONPATH=. python dev/trials/transfer.py --zoo zoo --source vision --steps 350 --out runs/transfer

Encoders of every variant are trained side by side: on all families of the source, and with each of these left out in
turn. `--judge inner` ranks the family left out, which is all that a choice may look at; `--judge targets` ranks the
families of the other side.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.model import Corrections
from dnge_compress.encoder.snapshots import ROLES, snapshots
from dnge_compress.encoder.sweeps import KINDS
from dnge_compress.pretrain.fit import LEARNING_RATE, _clip, _lesson_at, lesson_loss
from dnge_compress.pretrain.judging import closed_form, over_network
from dnge_compress.pretrain.targets import Lesson
from dnge_compress.pretrain.train import measure_all
from dnge_compress.shelf import Shelf

SOURCES = {"vision": ("mlp", "cnn", "resnet"), "language": ("gpt2", "llama", "bert")}
TARGETS = {"vision": ("vit", "bert", "llama", "gpt2"), "language": ("mlp", "cnn", "resnet", "vit")}
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
PAIRS = {
    "inner": [(level, inside) for level in SHARES for inside in SHARES],
    "targets": [(0, 0), (0.1, 0.1), (0.25, 0.25), (0.5, 0.5), (1, 1), (1, 0), (0.25, 0), (0, 1), (0, 0.25)],
}  # of the corrections to (spaces and layers as a whole, units inside their space)
EVERYTHING = "all"


@dataclass(frozen=True)
class Variant:
    """One way to train; the first is what fit.py does."""

    noise: float = 0.1
    drop_features: float = 0.0  # probability of a statistic to be silent for one lesson
    drop_names: float = 0.0  # probability of a role or a kind to be unnamed for one lesson
    robust: float = 0.0  # how much more a family counts on which the loss is above the mean (V-REx's gradient)
    decay: float = 0.02
    limit: float = 3.0
    by_rank: bool = False  # features in standard deviations of their space (levels: of the network)


VARIANTS = {
    "as it is": Variant(),
    "unnamed roles": Variant(drop_names=0.3),
    "robust": Variant(robust=2.0),
    "feature dropout, more noise": Variant(drop_features=0.25, noise=0.3),
    "limit 0.5": Variant(limit=0.5),
    "standardised features": Variant(by_rank=True),
    "decay 1": Variant(decay=1.0),
    "all of it": Variant(drop_names=0.3, robust=2.0, drop_features=0.25, noise=0.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--source", choices=tuple(SOURCES), default="vision")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave-out", type=int, default=1, help="families of the source at a time")
    parser.add_argument("--judge", choices=("inner", "targets"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lessons = all_lessons(options.zoo, options.out)
    families = SOURCES[options.source]
    own = [x for x in lessons if x.family in families]
    left_out = ["+".join(x) for x in combinations(families, options.leave_out)]
    jobs = [(v, out) for v in options.variants for out in (EVERYTHING, *left_out)]
    names = "-".join("".join(c for c in v if c.isalnum()) for v in options.variants)
    file = options.out / f"{options.source}-{options.steps}-{options.seed}-{options.leave_out}-{names[:60]}.pt"
    if not file.is_file():
        torch.save(train(own, jobs, options.steps, options.seed), file)
    params = torch.load(file)
    if options.judge == "inner":
        judged = {f: [x for x in own if x.family == f and is_whole(x)] for f in families}
        wanted = {f: [i for i, (_, out) in enumerate(jobs) if f in out.split("+")] for f in families}
    elif options.judge == "targets":
        judged = {f: [x for x in lessons if x.family == f and is_whole(x)] for f in TARGETS[options.source]}
        wanted = {f: list(range(len(jobs))) for f in judged}
    else:
        return
    rows = judge(params, jobs, judged, wanted, own, PAIRS[options.judge])
    path = file.with_suffix(f".{options.judge}.json")
    path.write_text(json.dumps(rows))
    print(path)


def all_lessons(zoo: Path, out: Path) -> list[Lesson]:
    """The zoo's lessons, kept as one file since reading them takes a minute."""
    file = out / "lessons.pkl"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(measure_all(zoo, Shelf.find(cache=zoo / "cache"), 1)))
    return pickle.loads(file.read_bytes())


def is_whole(lesson: Lesson) -> bool:
    return "@" not in lesson.name and "+" not in lesson.name


def seen_names(lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    """Which roles and kinds occur in some networks: two masks."""
    roles, kinds = torch.zeros(len(ROLES), dtype=torch.bool), torch.zeros(len(KINDS), dtype=torch.bool)
    for x in {x.name.partition("@")[0].partition("+")[0]: x for x in lessons}.values():
        for snapshot in snapshots(x.graph, x.weights, torch.float32):
            for edge in snapshot.edges:
                roles[edge.role] = True
        for space in x.graph.spaces:
            kinds[KINDS.index(space.kind)] = True
    return roles, kinds


def generic(
    params: dict[str, Tensor], roles: Tensor, kinds: Tensor, absent: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Roles and kinds of masks `absent` get the mean embedding of those in masks `roles` and `kinds`; one encoder."""
    found = dict(params)
    for key, value in params.items():
        part = key.rpartition(".")[0] if key.endswith("weight") else key
        if part in ("ahead.role", "back.role", "ahead.gain", "back.gain"):
            known, unnamed = roles, absent[0]
        elif part in ("ahead.kind", "back.kind"):
            known, unnamed = kinds, absent[1]
        else:
            continue
        weight = known.to(value.dtype)[:, None]
        middle = (value * weight).sum(0) / weight.sum()
        found[key] = torch.where(unnamed[:, None], middle, value)
    return found


def inputs_of(lesson: Lesson, variants: Sequence[Variant], *, training: bool) -> dict[str, Tensor]:
    """Features for every encoder `[E, U, F]`, each disturbed in its variant's way."""
    found = {}
    half = next(iter(lesson.features.values())).shape[1] // 2
    levels = torch.stack([x[0, half:] for x in lesson.features.values()])
    drop = torch.stack([(torch.rand(2 * half) < v.drop_features).float() for v in variants])
    for name, x in lesson.features.items():
        own, level = x[:, :half], x[:, half:]
        scaled = torch.cat([own / own.std(0).clamp_min(0.05), level / levels.std(0, correction=0).clamp_min(0.05)], 1)
        scaled = scaled.clamp(-4, 4) if len(x) > 1 else x * 0
        each = torch.stack([scaled if v.by_rank else x for v in variants])
        if training:
            noise = torch.tensor([v.noise for v in variants])[:, None, None]
            each = (each + noise * torch.randn_like(each)) * (1 - drop[:, None, :])
        found[name] = each
    return found


def forward(base: DNGEncoder, limit: Tensor, own: dict, features: dict, lesson: Lesson) -> Corrections:
    base.bound = limit
    return functional_call(base, own, (lesson.graph, lesson.weights, features, lesson.layer_logs))


class Bounded(DNGEncoder):
    """An encoder whose limit is a tensor, so that encoders with different ones run together."""

    bound: Tensor

    def _bounded(self, x: Tensor) -> Tensor:
        return self.bound * torch.tanh(x / self.bound)


def train(lessons: Sequence[Lesson], jobs: Sequence[tuple[str, str]], steps: int, seed: int) -> dict[str, Tensor]:
    """Parameters of all jobs `[E, …]`."""
    torch.manual_seed(seed)
    encoders = [Bounded().train() for _ in jobs]
    params, _ = stack_module_state(encoders)
    variants = [VARIANTS[v] for v, _ in jobs]
    optimiser = torch.optim.AdamW(params.values(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps, pct_start=0.1)
    limits, decay = (torch.tensor([getattr(v, w) for v in variants]) for w in ("limit", "decay"))
    families = sorted({x.family for x in lessons})
    masks = [seen_names([x for x in lessons if x.family not in out.split("+")]) for _, out in jobs]
    roles, kinds = (torch.stack([m[i] for m in masks]) for i in (0, 1))
    unnamed = torch.tensor([v.drop_names for v in variants])[:, None]
    running = torch.ones(len(jobs), len(families))
    seen = torch.tensor([[f not in out.split("+") for f in families] for _, out in jobs]).float()
    for step in range(steps):
        lesson = _lesson_at(lessons, step, seed)
        torch.manual_seed(seed * 1_000_003 + step)
        features = inputs_of(lesson, variants, training=True)
        absent = (torch.rand(roles.shape) < unnamed, torch.rand(kinds.shape) < unnamed)
        family = families.index(lesson.family)

        def one(own, limit, x, role, kind, no_role, no_kind, lesson=lesson):
            return lesson_loss(
                forward(encoders[0], limit, generic(own, role, kind, (no_role, no_kind)), x, lesson), lesson
            )

        losses = vmap(one)(dict(params), limits, features, roles, kinds, *absent)
        middle = (running * seen).sum(1) / seen.sum(1)
        weight = torch.stack(
            [1 + v.robust * (r[family] - m) / m for v, r, m in zip(variants, running, middle, strict=True)]
        ).clamp(0.1, 5)
        (losses * seen[:, family] * weight).sum().backward()
        running[:, family] = 0.95 * running[:, family] + 0.05 * losses.detach()
        _clip(params, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            rate = optimiser.param_groups[0]["lr"]
            for p in params.values():
                p.mul_((1 - rate * decay).view(-1, *[1] * (p.dim() - 1)))
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}  {losses.mean():.3f}", file=sys.stderr, flush=True)
    return {k: v.detach() for k, v in params.items()}


@torch.no_grad()
def judge(
    params: dict[str, Tensor],
    jobs: Sequence[tuple[str, str]],
    judged: dict[str, list[Lesson]],
    wanted: dict[str, list[int]],
    own: Sequence[Lesson],
    pairs: Sequence[tuple[float, float]],
) -> list[dict]:
    """For every network and job: the closed form's rank correlation, and the encoder's at shares of its corrections.

    `shares`: (of levels, of what ranks inside spaces, of layers), read out as it is and with mean embeddings for
    roles and kinds that it never learned ("generic").
    """
    base, rows = Bounded().train(), []
    masks = {out: seen_names([x for x in own if x.family not in out.split("+")]) for out in {out for _, out in jobs}}
    for family, networks in judged.items():
        jobs_here = wanted[family]
        part = {k: v[jobs_here] for k, v in params.items()}
        variants = [VARIANTS[jobs[i][0]] for i in jobs_here]
        limits = torch.tensor([v.limit for v in variants])
        roles, kinds = (torch.stack([masks[jobs[i][1]][k] for i in jobs_here]) for k in (0, 1))
        for lesson in networks:
            features = inputs_of(lesson, variants, training=False)
            for reading in ("as it is", "generic"):
                none = torch.zeros(()) if reading == "as it is" else torch.ones(())

                def one(own, limit, x, role, kind, lesson=lesson, none=none):
                    absent = ((none > 0) & ~role, (none > 0) & ~kind)
                    found = forward(base, limit, generic(own, role, kind, absent), x, lesson)
                    return found.units, found.layers

                units, layers = vmap(one)(part, limits, features, roles, kinds)
                said = [
                    ({k: v[at] for k, v in units.items()}, {k: v[at] for k, v in layers.items()})
                    for at in range(len(jobs_here))
                ]
                for at, i in enumerate(jobs_here):
                    variant, out = jobs[i]
                    row = {"network": lesson.name, "variant": variant, "reading": reading}
                    if len(jobs_here) == len(jobs) and out != EVERYTHING:
                        continue
                    rows.append({**row, "how": out, "rho": at_shares(lesson, *said[at], pairs)})
                    if len(jobs_here) < len(jobs):
                        continue
                    known = {KINDS[k] for k in kinds[at].nonzero().flatten().tolist()}
                    kept = ({k: v for k, v in x.items() if lesson.graph.space(k).kind in known} for x in said[at])
                    rows.append({**row, "how": "unseen kinds closed", "rho": at_shares(lesson, *kept, pairs)})
                    together = [x for x, (v, _) in zip(said, jobs, strict=True) if v == variant]
                    rows.append({**row, "how": "agreed", "rho": at_shares(lesson, *agreed(together), pairs)})
    return rows


def agreed(said: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means of several encoders' corrections, each shrunk by m² / (m² + v), v their variance: of spaces, of units."""

    def shrunk(x: Tensor) -> Tensor:
        middle = x.mean(0)
        return middle * middle.square() / (middle.square() + x.var(0)).clamp_min(1e-12)

    units = {}
    for name in said[0][0]:
        values = torch.stack([u[name] for u, _ in said])
        level = values.mean(1)
        inside = shrunk(values - level[:, None])
        units[name] = shrunk(level) + inside - inside.mean()
    return units, {name: shrunk(torch.stack([x[name] for _, x in said])) for name in said[0][1]}


def at_shares(
    lesson: Lesson, units: dict[str, Tensor], layers: dict[str, Tensor], pairs: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Rank correlation at pairs of shares (of levels, of the inside); layers move with the levels."""
    closed = closed_form(lesson)
    found = {}
    for level, inside in pairs:
        logs = {n: closed[n] + inside * (c - c.mean()) + level * c.mean() for n, c in units.items()}
        logs |= {n: closed[n] + level * c for n, c in layers.items()}
        found[f"{level:g}/{inside:g}"] = over_network({**closed, **logs}, lesson)
    return found


if __name__ == "__main__":
    main()
