"""Part of benchmarks/encoder.py: do predicted costs rank the units of networks, families and sizes never seen?"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean as mean

import torch
from encoder_folds import NARROW, folds, interval, widest
from encoder_variants import WAVES, scoring
from harness import markdown
from safetensors.torch import load_file

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.messages import MAGNITUDE, RAW
from dnge_compress.encoder.snapshots import ROLES, snapshots
from dnge_compress.zoo.blueprint import FAMILIES
from dnge_compress.zoo.pretrain.fit import Fold, fit
from dnge_compress.zoo.pretrain.judging import Logs, Predict, corrected_by, obs_logs, over_network, within_spaces
from dnge_compress.zoo.pretrain.targets import BARE_FAMILIES, RIVALS, TrainingExample

CLOSED = "obs"
STATISTICS = "statistics-only MLP"
VARIANTS: dict[str, Callable[[], DNGEncoder]] = {
    "encoder": DNGEncoder,
    STATISTICS: scoring(directions="none"),
    "forward pass only": scoring(directions="forward"),
    "all layers at once (static graph)": scoring(order="static"),
    "shuffled order": scoring(order="shuffled"),
    "weights only, no signals": scoring(signals=False),
    "K = 1: raw weights": scoring(streams=(RAW,)),
    "K = 11: waves as well": scoring(streams=(RAW, MAGNITUDE + WAVES)),
}


def trained(
    variant: str,
    parts: Sequence[Fold],
    examples: Callable[[], Sequence[TrainingExample]],
    steps: int,
    seed: int,
    work: Path,
) -> dict[str, DNGEncoder]:
    """One encoder per fold, trained now or read from an earlier call in `work`."""
    name = "".join(c if c.isalnum() else "-" for c in variant)
    folder = work / f"{name}-{steps}-{seed}"
    files = {part.name: folder / f"{part.name.replace(' ', '-')}.safetensors" for part in parts}
    if not all(f.is_file() for f in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        print(f"training '{variant}', seed {seed}", file=sys.stderr, flush=True)
        make, state = VARIANTS[variant], folder / "training.pt"
        for part, encoder in fit(examples(), parts, steps=steps, seed=seed, make=make, state=state).items():
            encoder.save_pretrained(files[part], {"fold": part, "seed": seed, "steps": steps})
    return {part: _loaded(variant, file) for part, file in files.items()}


def _loaded(variant: str, file: Path) -> DNGEncoder:
    encoder = VARIANTS[variant]()
    encoder.load_state_dict(load_file(file))
    return encoder.eval()


def rival(name: str) -> Predict:
    """Another scorer's costs; only their order counts."""
    if name == "random":
        return _random
    return lambda example: {n: example.rivals[f"{name}/{n}"] for n in example.targets}


def _random(example: TrainingExample) -> Logs:
    generator = torch.Generator().manual_seed(zlib.crc32(example.name.encode()))
    return {name: torch.rand(len(v), generator=generator) for name, v in example.targets.items()}


def families_left_out(
    examples: Sequence[TrainingExample], encoders: dict[str, list[dict[str, DNGEncoder]]]
) -> list[str]:
    """The table of rank correlations, every family judged by encoders that never saw it."""
    judged = {f: [x for x in examples if x.family == f and is_whole(x)] for f in FAMILIES}
    rows: dict[str, dict[str, list[float]]] = {}
    inside: dict[str, list[float]] = {}

    def add(who: str, family: str, predicts: Sequence[Predict]) -> None:
        for example in judged[family]:
            logs = [predict(example) for predict in predicts]
            rows.setdefault(who, {}).setdefault(family, []).append(mean(over_network(x, example) for x in logs))
            inside.setdefault(who, []).append(mean(within_spaces(x, example) for x in logs))

    for family in FAMILIES:
        add(CLOSED, family, [obs_logs])
        for variant, seeds in encoders.items():
            left_out = [found[f"without {family}"] for found in seeds]
            add(variant, family, [corrected_by(encoder) for encoder in left_out])
        for name in ("random", *RIVALS):
            add(name if name in ("random", "magnitude") else f"{name}, real data", family, [rival(name)])
    ceiling = {f: [x.reliability_over_all for x in judged[f]] for f in FAMILIES}
    base = rows[CLOSED]
    head = ["scorer", *FAMILIES, "mean", "share of reliability", "− obs (95 %)", "within a space"]
    table: list[list[str]] = []
    top = mean(mean(ceiling[f]) for f in FAMILIES)
    for who, found in rows.items():
        means = [mean(found[f]) for f in FAMILIES]
        gains = {f: [a - b for a, b in zip(found[f], base[f], strict=True)] for f in FAMILIES}
        value, low, high = interval(gains)
        cells = [who, *(f"{m:.3f}" for m in means), f"**{mean(means):.3f}**", f"{mean(means) / top:.3f}"]
        gain = "–" if who == CLOSED else f"{value:+.3f} ({low:+.3f} … {high:+.3f})"
        table.append([*cells, gain, f"{mean(inside[who]):.3f}"])
    limits = [mean(ceiling[f]) for f in FAMILIES]
    limit_inside = mean(x.reliability for f in FAMILIES for x in judged[f])
    last = [
        "*reliability of the target*",
        *(f"*{v:.3f}*" for v in limits),
        f"*{top:.3f}*",
        "1",
        "",
        f"*{limit_inside:.3f}*",
    ]
    counts = ", ".join(f"{len(judged[f])} {f}" for f in FAMILIES)
    lines = [
        *markdown(head, [*table, last]),
        "",
        f"Networks judged, fully trained: {counts}. Intervals: bootstrap over networks inside every family.",
        "Fisher, Taylor, FLAP and Wanda have real data (256 images, 64 texts), part of what the target is made of.",
        "Reliability: correlation of OBS on one draw of real data with that on another; targets use both.",
        "Scores of Magnitude, FLAP and Wanda are relative to their space by definition and only compare within one.",
    ]
    if STATISTICS in rows:
        value, low, high = interval(
            {f: [a - b for a, b in zip(rows["encoder"][f], rows[STATISTICS][f], strict=True)] for f in FAMILIES}
        )
        lines.append(f"Encoder minus {STATISTICS}: {value:+.3f} ({low:+.3f} … {high:+.3f}).")
    return lines


def transfers(examples: Sequence[TrainingExample], encoders: dict[str, list[dict[str, DNGEncoder]]]) -> list[str]:
    """Vision to language and back, narrow to wide, and to networks without a head."""
    whole = [x for x in examples if is_whole(x)]

    def of(*families: str) -> list[tuple[str, list[TrainingExample]]]:
        return [(f, [x for x in whole if x.family == f]) for f in families]

    wide = [x for x in whole if widest(x) > NARROW]
    cases = [
        ("mlp, cnn, resnet", "vision", of("vit", "bert", "llama", "gpt2")),
        ("gpt2, llama, bert", "language", of("mlp", "cnn", "resnet", "vit")),
        (f"up to {NARROW} wide", "narrow", [(f"wider ({len(wide)})", wide)]),
    ]
    for family in BARE_FAMILIES:
        bare = [x for x in examples if x.family == family and x.name.endswith("+bare")]
        cases.append((f"all but {family}", f"without {family}", [(f"{family} without its head", bare)]))
    others = ("random", *RIVALS)
    own = "encoder, abstaining"
    head = ["learned from", "judged on", *encoders, own, "obs", *others, "encoder − obs (95 %)"]
    table = []
    for source, fold, targets in cases:
        learns = next(f.learns for f in folds() if f.name == fold)
        learned = set().union(*(roles_in(x) for x in examples if learns(x)))
        for where, judged in targets:
            found: dict[str, list[float]] = {}
            for x in judged:
                ranked = {who: [corrected_by(s[fold])(x) for s in seeds] for who, seeds in encoders.items()}
                ranked["obs"] = [obs_logs(x)]
                ranked[own] = ranked["encoder" if roles_in(x) <= learned else "obs"]
                ranked |= {name: [rival(name)(x)] for name in others}
                for who, logs in ranked.items():
                    found.setdefault(who, []).append(mean(over_network(each, x) for each in logs))
            gains = {"": [a - b for a, b in zip(found["encoder"], found["obs"], strict=True)]}
            value, low, high = interval(gains)
            cells = [f"{mean(found[who]):.3f}" for who in (*encoders, own, "obs", *others)]
            table.append([source, where, *cells, f"{value:+.3f} ({low:+.3f} … {high:+.3f})"])
    note = """\
Fisher, Taylor, FLAP and Wanda have real data (256 images, 64 texts). Means over seeds. Abstaining: a network with
blocks of a role that never occurred in training (a convolution, a query, …) is left to OBS."""
    return [*markdown(head, table), "", note]


def roles_in(example: TrainingExample) -> set[str]:
    """What the weight blocks of a network do: "linear", "conv", "query", …"""
    return {ROLES[e.role] for s in snapshots(example.graph, example.weights, torch.float32) for e in s.edges}


def is_whole(example: TrainingExample) -> bool:
    """Whether it is a fully trained network with its head, rather than an early one or a bare body."""
    return "@" not in example.name and "+" not in example.name
